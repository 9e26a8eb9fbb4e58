"""`fit`: the one loop that learns parameters by gradients, for every method."""

import contextlib
import functools
import operator
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from gfm_jax.base import Learner, Procedure
from gfm_jax.checkpoints import Checkpoint, is_begun, load, own, save, seconds_of
from gfm_jax.fingerprint import describe
from gfm_jax.fit_program import Program, merge_frozen, split_frozen, start_state, take_steps, wide
from gfm_jax.pytrees import auto_mesh, on_auto_mesh, place

__all__ = ["FitInfo", "fit", "seconds_of", "with_defaults"]


class FitInfo(NamedTuple):
    """How a fit went.

    Attributes:
      losses, gradient_norms: of every step.
      terms: what the loss said beside, of every step.
      last: the parameters after the last step, not averaged.
      seconds: that the steps took, compilation included, over all parts of a fit that was stopped and resumed.
    """

    losses: Float[Array, " num_steps"]
    gradient_norms: Float[Array, " num_steps"]
    terms: PyTree
    last: PyTree
    seconds: float


def fit(
    key: Array,
    method: Any,
    data: Any,
    *,
    num_steps: int | None = None,
    learning_rate: float | None = None,
    optimizer: optax.GradientTransformation | optax.MultiSteps | None = None,
    ema_decay: float | None = None,
    start: PyTree | None = None,
    folder: str | pathlib.Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: str | bool | None = None,
    chunk: int = 200,
    save_every: float = 30.0,
) -> tuple[PyTree, FitInfo | None]:
    r"""Fits the parameters of a method to data: a flow, a codec, a generator of weights, or a learner of your own.

    .. math:: \theta_{k+1} = \theta_k + \mathrm{update}(\nabla \ell(\theta_k; \text{batch}_k)), \qquad
       \bar\theta_{k+1} = a \bar\theta_k + (1 - a) \theta_{k+1}

    Step k draws its batch from `fold_in(key, k)`, so that a fit that is stopped and resumed ends at the same numbers, with the
    same history. The average forgets its start: a is min(ema_decay, (1 + k) / (10 + k)); it is held in float32 at least.

    Args:
      key: randomness of the start, the batches and the loss.
      method: a `Learner`, a `Procedure`, or what has one as its `learner`, such as `flow_map(network)` or `pca(32)`.
      data: as the method says: points [num, dim], `(weights, cond)`, and so on.
      num_steps: steps to take, at least 1; by default as many as the method says.
      learning_rate: peak of the schedule of the method's default optimizer.
      optimizer: any optax transformation in place of the default one. Its `update` is given the arguments it asks for among
        `value`, `grad`, `value_fn`, all of the loss on the step's batch, and `grad_fn`, the gradient elsewhere on that batch.
      ema_decay: decay of the running average of the parameters, in [0, 1).
      start: parameters of an earlier fit to go on from. By default the learner's `init` makes them: arrays of floats, a complex
        one as two; for `optax.lookahead` its `LookaheadParams`, of whose fast ones the loss is.
      folder: where to leave checkpoints, and to resume from what a killed fit left: a folder of its own. It holds beside them
        `fingerprint.json`, which tells the fit's key, data, start, steps, average, loss, sample and optimizer.
      mesh: devices to split each batch over, along its first axis; their number divides that of the batch.
      progress: a name for the progress bar; True for one without a name of its own, False for no bar, None for one on a
        terminal alone.
      chunk: steps in one compiled call, between two looks at the outside world, at least 1.
      save_every: seconds between two checkpoints, which are left after a chunk; the end is always saved.

    Returns:
      The averaged parameters, and how the fit went; None in its place for a `Procedure`.

    Raises:
      ValueError: for a number of steps or a chunk below 1, a decay outside [0, 1), parameters or data without numbers, what is
        no optimizer or no learner, a loss that is not a scalar with infos, a batch that the mesh's devices do not divide; for
        choices of an optimizer for a method that is a `Procedure`; for a folder that holds another fit, saying what differs,
        or anything else, or that another process writes to; and as the method's own checks of its data.
      FloatingPointError: where the loss is no longer finite at the end of a chunk.
      OSError: where the disk is full.

    >>> import jax, jax.numpy as jnp, optax
    >>> from gfm_jax import Learner, fit
    >>> mean = Learner(
    ...     init=lambda key, data: jnp.zeros(2),
    ...     sample=lambda key, data: jax.random.choice(key, data, (8,)),
    ...     loss=lambda params, key, batch: (jnp.mean((params - batch) ** 2), {}),
    ... )
    >>> data = jnp.array([3.0, -1.0]) + 0.1 * jax.random.normal(jax.random.key(0), (100, 2))
    >>> params, info = fit(jax.random.key(1), mean, data, optimizer=optax.adam(0.1), num_steps=200)
    >>> params.round(1).tolist()
    [3.0, -1.0]
    """
    learner = getattr(method, "learner", method)
    choices = {
        "num_steps": num_steps, "learning_rate": learning_rate, "optimizer": optimizer, "ema_decay": ema_decay, "start": start,
    }  # fmt: skip
    key_init, key_fit, key_data = jax.random.split(key, 3)
    if isinstance(learner, Procedure):
        if given := [name for name, value in choices.items() if value is not None]:
            raise ValueError(f"{', '.join(given)}: expected None for a method that is not fitted by one descent")
        return learner.fit(key, data, folder=folder, progress=progress), None
    if not isinstance(learner, Learner):
        raise ValueError(f"method: expected a Learner, or what has one, got {type(method).__name__}")
    num_steps, decay, optimizer, kind = _training(learner, num_steps, learning_rate, optimizer, ema_decay)
    chunk = _count("chunk", chunk)
    for name, function in (("loss", learner.loss), ("sample", learner.sample), ("init", learner.init)):
        if not callable(function):
            raise ValueError(f"{name}: expected a function, got {type(function).__name__}")
    data = learner.prepare(key_data, data)
    _check_data(data)
    params = learner.init(key_init, data) if start is None else learner.resume(start, data)
    _check_params(learner, params)
    params, data, key_fit = on_auto_mesh((params, data, key_fit))
    identity = {}
    if folder is not None:
        identity = _identity(key, learner, params, data, optimizer, num_steps, decay)
    state = start_state(optimizer, *split_frozen(learner, params))
    if mesh is not None:
        mesh = auto_mesh(mesh)
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state, data, key_fit = place((state, data, key_fit), whole)
    program = Program(kind, learner, optimizer, decay, chunk, mesh)
    folder = None if folder is None else pathlib.Path(folder).expanduser()
    with contextlib.nullcontext() if folder is None else own(folder, identity):
        done, before, told, says = 0, 0.0, [], None
        if folder is not None and is_begun(folder):
            _, says = jax.eval_shape(functools.partial(take_steps, program), key_fit, state, data, 0, 1)
            said = [_room(jax.eval_shape(wide, leaf), num_steps) for leaf in jax.tree.leaves(says)]
            done, before, (state, said) = load(folder, (state, said))
            told = [np.array(part) for part in said]
            state = state if mesh is None else place(state, whole)
        begin = saved = time.monotonic()
        seconds = before
        name = progress if isinstance(progress, str) else "fit"
        hidden = None if progress is None else not progress
        with tqdm(total=num_steps, initial=done, desc=name, disable=hidden, leave=False) as bar:
            while done < num_steps:
                length = min(chunk, num_steps - done)
                state, says = take_steps(program, key_fit, state, data, done, length)
                told = _enter(told, says, done, length, num_steps)
                losses = told[0][done : done + length]
                if not np.isfinite(losses[-1]):
                    where = _not_finite(params=params, data=data)
                    raise FloatingPointError(f"loss: {losses[-1]} after {done + length} steps{where}")
                done += length
                bar.update(length)
                bar.set_postfix(loss=f"{losses.mean():.4g}")
                seconds = before + time.monotonic() - begin
                if folder is not None and (done == num_steps or time.monotonic() > saved + save_every):
                    save(folder, Checkpoint(done, seconds, (state, told)))
                    saved = time.monotonic()
    (losses, terms), norms = jax.tree.unflatten(jax.tree.structure(says), told)
    last, _, averaged, frozen = state
    averaged = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), averaged, last)
    return merge_frozen(averaged, frozen), FitInfo(losses, norms, terms, merge_frozen(last, frozen), seconds)


def with_defaults(
    method: Any,
    *,
    num_steps: int | None = None,
    learning_rate: float | None = None,
    optimizer: Callable[[float, int], optax.GradientTransformation] | None = None,
    ema_decay: float | None = None,
) -> Any:
    """A method that is fitted otherwise where `fit` is told nothing: for those that are parts of others.

    Args:
      method: a `Learner`, or what has one as its `learner`.
      num_steps, learning_rate, optimizer, ema_decay: as `Defaults` has them; None for the method's own.

    Returns:
      The method with other defaults.

    Raises:
      ValueError: for a method without defaults.

    >>> import gfm_jax as gfm
    >>> short = gfm.with_defaults(gfm.autoencoder(8), num_steps=100)
    >>> short.learner.defaults.num_steps
    100
    """
    learner = getattr(method, "learner", method)
    if not isinstance(learner, Learner) or learner.defaults is None:
        raise ValueError(f"method: expected one with defaults of an optimizer, got {type(method).__name__}")
    choices = {"num_steps": num_steps, "learning_rate": learning_rate, "optimizer": optimizer, "ema_decay": ema_decay}
    defaults = learner.defaults._replace(**{name: value for name, value in choices.items() if value is not None})
    learner = learner._replace(defaults=defaults)
    return learner if isinstance(method, Learner) else method._replace(learner=learner)


def _training(learner, num_steps, learning_rate, optimizer, ema_decay):
    """Steps, decay and optimizer of a fit, and what tells that optimizer from others."""
    defaults = learner.defaults
    if (num_steps is None or optimizer is None) and defaults is None:
        missing = "num_steps" if num_steps is None else "optimizer"
        raise ValueError(f"{missing}: expected one, since the learner has no default, got None")
    num_steps = _count("num_steps", defaults.num_steps if num_steps is None else num_steps)
    if ema_decay is None:
        ema_decay = getattr(defaults, "ema_decay", 0.99)
    if not (isinstance(ema_decay, int | float | np.number) and 0 <= ema_decay < 1):
        raise ValueError(f"ema_decay: expected a decay in [0, 1), got {ema_decay}")
    if optimizer is None:
        rate = defaults.learning_rate if learning_rate is None else learning_rate
        if not 0 < rate < np.inf:
            raise ValueError(f"learning_rate: expected a positive number, got {rate}")
        return num_steps, ema_decay, defaults.optimizer(rate, num_steps), (defaults.optimizer, rate, num_steps)
    if learning_rate is not None:
        raise ValueError(f"learning_rate: expected none beside an optimizer, which has its own, got {learning_rate}")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer: expected an optax transformation with init and update, such as optax.adam(1e-3), got {optimizer!r}"
        )
    return num_steps, ema_decay, optimizer, optimizer


def _room(part, steps):
    return np.zeros((steps, *part.shape[1:]), part.dtype)


def _enter(told, says, start, length, num_steps):
    """What all steps said, leaf by leaf, with what the last ones did; numbers are held in float32 at least."""
    parts = [np.asarray(leaf)[:length] for leaf in jax.tree.leaves(says)]
    parts = [np.asarray(wide(part)) for part in parts]
    told = told or [_room(part, num_steps) for part in parts]
    for all_steps, part in zip(told, parts, strict=True):
        all_steps[start : start + length] = part
    return told


# --- what comes in ----------------------------------------------------------------------------------------------------


def _count(name, value) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return whole


def _check_params(learner, params):
    moving, _ = split_frozen(learner, params)
    if not jax.tree.leaves(moving):
        raise ValueError("params: expected a pytree with at least one array, got one without leaves")
    for path, leaf in jax.tree_util.tree_leaves_with_path(moving):
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"params: expected floats, which a gradient moves, got {dtype} at {where}")


def _check_data(data):
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if jnp.shape(leaf)[:1] == (0,):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"data: expected at least one row in every array, got shape {jnp.shape(leaf)} at data{where}"
            )


def _identity(key, learner, params, data, optimizer, num_steps, ema_decay):
    parts = {
        "key": key, "num_steps": num_steps, "ema_decay": float(ema_decay), "params": params, "data": data,
        "loss": learner.loss, "sample": learner.sample, "optimizer": optimizer,
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
