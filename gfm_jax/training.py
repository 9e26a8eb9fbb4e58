"""Fitting parameters: one loop for every loss in the house."""

import functools
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

from gfm_jax.pytrees import place

__all__ = ["Fitted", "fit"]


class Fitted(NamedTuple):
    """What a fit leaves: the averaged parameters, the last ones, and of every step the loss, the norm of its gradient, and what
    the loss said beside."""

    params: PyTree
    last: PyTree
    losses: Float[Array, " num_steps"]
    gradient_norms: Float[Array, " num_steps"]
    info: PyTree


def fit(
    key: Array,
    loss: Callable[..., tuple[Array, dict]],
    params: PyTree,
    data: PyTree,
    sample: Callable[[Array, PyTree], PyTree],
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    average: float = 0.99,
    chunk: int = 200,
    folder: str | pathlib.Path | None = None,
    save_every: float = 30.0,
    mesh: jax.sharding.Mesh | None = None,
    progress: str | None = None,
) -> Fitted:
    r"""Minimises a loss over fresh batches.

    .. math:: \theta_{k+1} = \theta_k + \mathrm{update}(\nabla \ell(\theta_k; \text{batch}_k)), \qquad
       \bar\theta_{k+1} = a \bar\theta_k + (1 - a) \theta_{k+1}

    Step k draws its batch from `fold_in(key, k)`, so that a fit that is stopped and resumed ends at the same numbers. The
    average forgets its start: a is min(average, (1 + k) / (10 + k)).

    Args:
      key: randomness of the batches and of the loss.
      loss: `(params, key, batch) -> (scalar, info)`, info a pytree of scalars.
      params: where to start.
      data: arrays that `sample` draws from.
      sample: `(key, data) -> batch`, a pytree led by the examples.
      optimizer: any optax transformation.
      num_steps: steps to take, at least 1.
      average: decay of the running average of the parameters, in [0, 1).
      chunk: steps in one compiled call, between two looks at the outside world.
      folder: where to leave checkpoints, and to resume from what a killed fit left.
      save_every: seconds between two checkpoints, which are left after a chunk; the end is always saved.
      mesh: devices to split each batch over, along its first axis.
      progress: a name for the progress bar; None for no bar.

    Returns:
      The averaged and the last parameters, and the losses, norms and infos of all steps (NaN for those that a resumed fit
      took before).

    Raises:
      ValueError: for a number of steps below 1, or a decay outside [0, 1).
      FloatingPointError: where the loss is no longer finite at the end of a chunk.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    if not 0 <= average < 1:
        raise ValueError(f"average: expected a decay in [0, 1), got {average}")
    params = jax.tree.map(jnp.array, params)  # a copy: the loop gives its buffers away
    state = (params, optimizer.init(params), jax.tree.map(jnp.array, params))
    if mesh is not None:
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state, data, key = place((state, data, key), whole)
    start = 0
    if folder is not None:
        start, state = _restore(folder, state)
    saved = time.monotonic()
    told = None  # by every step: (loss, info), norm
    bar = tqdm(total=num_steps, initial=start, desc=progress, disable=progress is None, leave=False)
    while start < num_steps:
        length = min(chunk, num_steps - start)
        static = (loss, sample, optimizer, average, chunk, mesh)
        state, says = _take_steps(static, key, state, data, start, length)
        told = jax.tree.map(lambda _: np.full(num_steps, np.nan, np.float32), says) if told is None else told
        for whole, part in zip(jax.tree.leaves(told), jax.tree.leaves(says), strict=True):
            whole[start : start + length] = part[:length]
        losses = told[0][0]
        if not np.isfinite(losses[start + length - 1]):
            raise FloatingPointError(f"loss: {losses[start + length - 1]} after {start + length} steps")
        start += length
        bar.update(length)
        bar.set_postfix(loss=f"{losses[start - length : start].mean():.4g}")
        if folder is not None and (start == num_steps or time.monotonic() > saved + save_every):
            _save(folder, start, state)
            saved = time.monotonic()
    bar.close()
    last, _, averaged = state
    if told is None:  # all of it was done before
        static = (loss, sample, optimizer, average, chunk, mesh)
        _, says = jax.eval_shape(functools.partial(_take_steps, static), key, state, data, 0, 1)
        told = jax.tree.map(lambda _: np.full(num_steps, np.nan, np.float32), says)
    (losses, info), norms = told
    return Fitted(averaged, last, losses, norms, info)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _take_steps(static, key, state, data, start, length):
    """`length` steps, at most `chunk`, from step `start` on; what the others say is NaN. One program for any length."""
    loss, sample, optimizer, average, chunk, mesh = static

    def value_and_gradient(params, k):
        key_batch, key_loss = jax.random.split(jax.random.fold_in(key, k))
        batch = sample(key_batch, data)
        if mesh is not None:
            over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
            batch = jax.lax.with_sharding_constraint(batch, over_batch)
        return jax.value_and_grad(loss, has_aux=True)(params, key_loss, batch)

    def step(i, carry):
        (params, opt_state, averaged), said = carry
        k = start + i
        value, gradient = value_and_gradient(params, k)
        says = value, optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(average, (1 + k) / (10 + k))
        averaged = optax.incremental_update(params, averaged, 1 - decay)
        return (params, opt_state, averaged), jax.tree.map(lambda all, one: all.at[i].set(one), said, says)

    value, gradient = jax.eval_shape(value_and_gradient, state[0], start)
    says = value, jax.eval_shape(optax.tree.norm, gradient)
    nothing = jax.tree.map(lambda one: jnp.full(chunk, jnp.nan, one.dtype), says)
    return jax.lax.fori_loop(0, length, step, (state, nothing))


# --- checkpoints: the only lines that know orbax, imported when a folder is given, since it takes a second ------------


def _manager(folder) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(pathlib.Path(folder).resolve(), options=options)


def _save(folder, step, state):
    import orbax.checkpoint as ocp

    with _manager(folder) as manager:
        manager.save(step, args=ocp.args.StandardSave(state))


def _restore(folder, state):
    """(steps taken, state) of the newest whole checkpoint in the folder; (0, `state`) where there is none."""
    import orbax.checkpoint as ocp

    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return 0, state
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        found = manager.item_metadata(step)
        restored = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    del found
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
        if not hasattr(leaf, "dtype"):
            raise ValueError(f"{folder}: {jax.tree_util.keystr(path)} is not an array")
    return step, restored
