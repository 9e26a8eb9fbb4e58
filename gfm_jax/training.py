"""Fitting parameters: one loop for every loss in the house."""

import contextlib
import functools
import inspect
import operator
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from gfm_jax.checkpoints import Checkpoint, is_begun, load, own, save, seconds_of
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.fingerprint import describe
from gfm_jax.pytrees import auto_mesh, on_auto_mesh, place

__all__ = ["Fitted", "fit", "seconds_of"]


class Fitted(NamedTuple):
    """What a fit leaves.

    Attributes:
      params: the averaged parameters.
      last: the parameters after the last step.
      losses, gradient_norms: of every step.
      info: what the loss said beside, of every step.
      seconds: that the steps took, compilation included, over all parts of a fit that was stopped and resumed.
    """

    params: PyTree
    last: PyTree
    losses: Float[Array, " num_steps"]
    gradient_norms: Float[Array, " num_steps"]
    info: PyTree
    seconds: float


def fit(
    key: Array,
    loss: Callable[..., tuple[Array, dict]],
    params: PyTree,
    data: PyTree,
    sample: Callable[[Array, PyTree], PyTree],
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    num_steps: int,
    *,
    average: float = 0.99,
    chunk: int = 200,
    folder: str | pathlib.Path | None = None,
    save_every: float = 30.0,
    mesh: jax.sharding.Mesh | None = None,
    progress: str | bool | None = None,
) -> Fitted:
    r"""Minimises a loss over fresh batches.

    .. math:: \theta_{k+1} = \theta_k + \mathrm{update}(\nabla \ell(\theta_k; \text{batch}_k)), \qquad
       \bar\theta_{k+1} = a \bar\theta_k + (1 - a) \theta_{k+1}

    Step k draws its batch from `fold_in(key, k)`, so that a fit that is stopped and resumed ends at the same numbers, with the
    same history. The average forgets its start: a is min(average, (1 + k) / (10 + k)); it is held in float32 at least.

    Args:
      key: randomness of the batches and of the loss.
      loss: `(params, key, batch) -> (scalar, info)`, info a pytree of scalars.
      params: where to start: arrays of floats, a complex one as two; for `optax.lookahead` its `LookaheadParams`, of whose
        fast ones the loss is.
      data: arrays that `sample` draws from, each with at least one row.
      sample: `(key, data) -> batch`, a pytree led by the examples.
      optimizer: any optax transformation. Its `update` is given the arguments it asks for among `value`, `grad`, `value_fn`,
        all of the loss on the step's batch, and `grad_fn`, the gradient elsewhere on that batch.
      num_steps: steps to take, at least 1.
      average: decay of the running average of the parameters, in [0, 1).
      chunk: steps in one compiled call, between two looks at the outside world, at least 1.
      folder: where to leave checkpoints, and to resume from what a killed fit left: a folder of its own. It holds beside them
        `fingerprint.json`, which tells the fit's key, data, start, steps, average, loss, sample and optimizer.
      save_every: seconds between two checkpoints, which are left after a chunk; the end is always saved.
      mesh: devices to split each batch over, along its first axis; their number divides that of the batch.
      progress: a name for the progress bar; True for one without a name of its own, None for no bar.

    Returns:
      The averaged and the last parameters, the losses, norms and infos of all steps, and the seconds they took.

    Raises:
      ValueError: for a number of steps or a chunk below 1, a decay outside [0, 1), parameters or data without numbers, what is
        no optimizer, a loss that is not a scalar with infos, a batch that the mesh's devices do not divide; for a folder that
        holds another fit, saying what differs, or anything else, or that another process writes to.
      FloatingPointError: where the loss is no longer finite at the end of a chunk.
      OSError: where the disk is full.
    """
    num_steps, chunk = _count("num_steps", num_steps), _count("chunk", chunk)
    progress = {True: "fit", False: None}.get(progress, progress)
    _check(average, params, data, optimizer, loss, sample)
    params, data, key = on_auto_mesh((params, data, key))
    identity = {} if folder is None else _identity(key, loss, params, data, sample, optimizer, num_steps, average)
    state = _start(optimizer, params)
    if mesh is not None:
        mesh = auto_mesh(mesh)
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state, data, key = place((state, data, key), whole)
    static = (loss, sample, optimizer, average, chunk, mesh)
    folder = None if folder is None else pathlib.Path(folder).expanduser()
    with contextlib.nullcontext() if folder is None else own(folder, identity):
        start, before, told, says = 0, 0.0, None, None
        if folder is not None and is_begun(folder):
            _, says = jax.eval_shape(functools.partial(_take_steps, static), key, state, data, 0, 1)
            said = [_room(jax.eval_shape(_wide, leaf), num_steps) for leaf in jax.tree.leaves(says)]
            start, before, (state, said) = load(folder, (state, said))
            told = [np.array(part) for part in said]
            state = state if mesh is None else place(state, whole)
        begin = saved = time.monotonic()
        seconds = before
        with tqdm(total=num_steps, initial=start, desc=progress, disable=progress is None, leave=False) as bar:
            while start < num_steps:
                length = min(chunk, num_steps - start)
                state, says = _take_steps(static, key, state, data, start, length)
                told = _enter(told, says, start, length, num_steps)
                losses = told[0][start : start + length]
                if not np.isfinite(losses[-1]):
                    where = _not_finite(params=params, data=data)
                    raise FloatingPointError(f"loss: {losses[-1]} after {start + length} steps{where}")
                start += length
                bar.update(length)
                bar.set_postfix(loss=f"{losses.mean():.4g}")
                seconds = before + time.monotonic() - begin
                if folder is not None and (start == num_steps or time.monotonic() > saved + save_every):
                    save(folder, Checkpoint(start, seconds, (state, told)))
                    saved = time.monotonic()
    (losses, info), norms = jax.tree.unflatten(jax.tree.structure(says), told)
    last, _, averaged = state
    averaged = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), averaged, last)
    return Fitted(averaged, last, losses, norms, info, seconds)


def _start(optimizer, params):
    """Parameters, optimizer state and average, copied, since the loop gives their buffers away."""
    params = jax.tree.map(_copy, params)
    opt_state = optimizer.init(params)
    looks_ahead = lambda node: isinstance(node, optax.LookaheadState)
    if any(map(looks_ahead, jax.tree.leaves(opt_state, is_leaf=looks_ahead))) and _fast(params) is params:
        raise ValueError(
            "params: expected optax.LookaheadParams.init_synced(params), which optax.lookahead moves, got "
            f"{type(params).__name__}"
        )
    return params, jax.tree.map(_copy, opt_state), jax.tree.map(lambda leaf: _copy(_wide(leaf)), params)


def _copy(leaf):
    """A copy of an array; numbers of this process are copied without compiling a program."""
    plain = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.number)
    if plain and leaf.is_fully_addressable and not leaf.weak_type:
        return jax.device_put(leaf, may_alias=False)
    return jnp.array(leaf)


def _wide(leaf):
    """Floats in float32 at least, in which sums and averages do not stand still."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _room(part, steps):
    return np.zeros((steps, *part.shape[1:]), part.dtype)


def _enter(told, says, start, length, num_steps):
    """What all steps said, leaf by leaf, with what the last ones did; numbers are held in float32 at least."""
    parts = [np.asarray(leaf)[:length] for leaf in jax.tree.leaves(says)]
    parts = [np.asarray(_wide(part)) for part in parts]
    told = [_room(part, num_steps) for part in parts] if told is None else told
    for all_steps, part in zip(told, parts, strict=True):
        all_steps[start : start + length] = part
    return told


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _take_steps(static, key, state, data, start, length):
    """`length` steps, at most `chunk`, from step `start` on; what the others say is 0. One program for any length."""
    loss, sample, optimizer, average, chunk, mesh = static
    update = _updater(optimizer)

    def scalar_loss(params, key_loss, batch):
        found = loss(params, key_loss, batch)
        if not (isinstance(found, tuple) and len(found) == 2 and jnp.shape(found[0]) == ()):
            shapes = jax.tree.map(jnp.shape, found)
            raise ValueError(f"loss: expected (scalar, info) from loss(params, key, batch), got shapes {shapes}")
        return found

    @jax.jit  # traced once, for the shapes of a batch and for the loop
    def draw(k):
        key_batch, key_loss = jax.random.split(jax.random.fold_in(key, k))
        batch = sample(key_batch, data)
        return key_loss, batch if mesh is None else _over_devices(batch, mesh)

    @jax.jit  # traced once, for the shapes of what it says and for the loop
    def value_and_gradient(params, key_loss, batch):
        return jax.value_and_grad(scalar_loss, has_aux=True)(params, key_loss, batch)

    def step(i, carry):
        (params, opt_state, averaged), said = carry
        k = start + i
        drawn = draw(k)
        value, gradient = value_and_gradient(_fast(params), *drawn)
        says = value, optax.tree.norm(jax.tree.map(_wide, gradient))
        of_batch = lambda params: scalar_loss(params, *drawn)
        updates, opt_state = update(gradient, opt_state, params, value[0], of_batch)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(average, (1 + k) / (10 + k))
        averaged = optax.incremental_update(jax.tree.map(_wide, params), averaged, 1 - decay)
        return (params, opt_state, averaged), jax.tree.map(lambda all, one: all.at[i].set(one), said, says)

    value, gradient = jax.eval_shape(lambda params, k: value_and_gradient(_fast(params), *draw(k)), state[0], start)
    says = value, jax.eval_shape(lambda gradient: optax.tree.norm(jax.tree.map(_wide, gradient)), gradient)
    nothing = jax.tree.map(
        lambda one: jnp.zeros((chunk, *one.shape), one.dtype), says
    )  # no NaN: a debugger looks for them
    return jax.lax.fori_loop(0, length, fast_in_loops(step), (state, nothing))


def _fast(params):
    """The parameters that a loss is of."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _over_devices(batch, mesh):
    num = mesh.devices.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if leaf.ndim == 0 or leaf.shape[0] % num:
            name = f"batch{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"mesh: its {num} devices must divide the examples that lead every array of a batch, got {name} {leaf.shape}"
            )
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    return jax.lax.with_sharding_constraint(batch, over_batch)


def _updater(optimizer):
    """`(gradient, state, params, value, of_batch) -> updates, state`, with the extra arguments that the optimizer asks for."""
    taken = inspect.signature(optimizer.update).parameters.values()
    names = {parameter.name for parameter in taken}
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)

    def update(gradient, state, params, value, of_batch):
        # Optax's line searches refuse extra arguments that `value_fn` does not take.
        value_fn = lambda params, grad_fn=None: of_batch(params)[0]
        # Methods with several stages ask for the gradient elsewhere, on the same batch; SAM hands the number of the stage over.
        grad_fn = lambda params, *_: jax.grad(value_fn)(params)
        extra = {"value": value, "grad": gradient, "value_fn": value_fn, "grad_fn": grad_fn}
        if any_name:
            return optimizer.update(gradient, state, params, **extra)
        return optimizer.update(gradient, state, params, **{name: extra[name] for name in extra.keys() & names})

    return update


# --- what comes in ----------------------------------------------------------------------------------------------------


def _count(name, value) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return whole


def _check(average, params, data, optimizer, loss, sample):
    if not (isinstance(average, int | float | np.number) and 0 <= average < 1):
        raise ValueError(f"average: expected a decay in [0, 1), got {average}")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer: expected an optax transformation with init and update, such as optax.adam(1e-3), got {optimizer!r}"
        )
    for name, function in (("loss", loss), ("sample", sample)):
        if not callable(function):
            raise ValueError(f"{name}: expected a function, got {type(function).__name__}")
    if not jax.tree.leaves(params):
        raise ValueError("params: expected a pytree with at least one array, got one without leaves")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"params: expected floats, which a gradient moves, got {dtype} at {where}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if jnp.shape(leaf)[:1] == (0,):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"data: expected at least one row in every array, got shape {jnp.shape(leaf)} at data{where}"
            )


def _identity(key, loss, params, data, sample, optimizer, num_steps, average):
    parts = {
        "key": key, "num_steps": num_steps, "average": float(average), "params": params, "data": data, "loss": loss,
        "sample": sample, "optimizer": optimizer,
    }  # fmt: skip
    return functools.reduce(dict.__or__, (describe(name, part) for name, part in parts.items()))


def _not_finite(**trees) -> str:
    """Which arrays hold numbers that are not finite, as the end of a sentence."""
    names = [
        name + jax.tree_util.keystr(path)
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not jnp.isfinite(leaf).all()
    ]
    return f"; not finite before the first step: {', '.join(names)}" if names else ""
