"""Recording training runs: one run as a pure function, many of them in one compiled call."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.base import Task, Trajectory
from gfm_jax.compiling import quick_jit
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.pytrees import place
from gfm_jax.runs.recording_checks import PARTS, check_key, check_recording
from gfm_jax.runs.training_loop import train
from gfm_jax.runs.update_plan import cached_plan, plan_of, warn_of_slots, weights_of

__all__ = ["record", "record_many", "save_steps"]


def save_steps(num_steps: int, num_saves: int, spacing: str = "even") -> np.ndarray:
    """The steps at which a run is saved: 0, then `num_saves` more up to `num_steps`.

    Args:
      num_steps: length of the run, at least 1.
      num_saves: saves after the first, 1..num_steps.
      spacing: "even" or "log"; log-spaced steps that would coincide are moved apart.

    Returns:
      Strictly increasing int32 [num_saves + 1].
    """
    if not 1 <= num_saves <= num_steps:
        raise ValueError(f"num_saves: expected 1..num_steps = {num_steps}, got {num_saves}")
    if spacing not in ("even", "log"):
        raise ValueError(f"spacing: expected 'even' or 'log', got {spacing!r}")
    if spacing == "even":
        return np.round(np.linspace(0, num_steps, num_saves + 1)).astype(np.int32)
    steps = np.round(np.geomspace(1, num_steps, num_saves)).astype(np.int32)
    steps[-1] = num_steps  # also where it is the only one
    steps = np.maximum.accumulate(steps - np.arange(num_saves)) + np.arange(num_saves)
    steps = np.minimum(steps, num_steps - np.arange(num_saves)[::-1])
    return np.concatenate([[0], steps]).astype(np.int32)


def record(
    key: Array,
    task: Task,
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: Float[Array | np.ndarray, " num_steps"] | Int[Array | np.ndarray, " num_steps"] | Sequence[float],
    saves: Sequence[int] | np.ndarray | Array,
    *,
    keep: Sequence[str] = PARTS,
    dtype: DTypeLike = jnp.float32,
    variety: PyTree = None,
) -> Trajectory:
    r"""Trains once and records the run. Pure: wrap it in `jax.jit`, or use `record_many`.

    .. math:: w_{k+1} = w_k + \mathrm{update}(\nabla L_k(w_k), s_k), \qquad
       time_k = \sum_{j < k,\, \text{taken}} \mathrm{lr}_j

    The optimizer looks its rate up by its own count of steps, as in any optax loop. Where a wrapper leaves steps out
    (`optax.MultiSteps`, `optax.apply_if_finite`, SAM in transparent mode), `time` is the sum of the rates that were used, and
    `learning_rate` the rate used last.

    Any optax optimizer can be recorded that takes its rate as a schedule. Of `value`, `grad`, `value_fn` and `grad_fn` of the
    step's minibatch it gets those that it asks for (`optax.lbfgs`, `optax.contrib.momo`, `optax.contrib.sam`,
    `optax.contrib.reduce_on_plateau`, `gfm_jax.optimizers.heun`). `optax.lookahead` is refused: its parameters are a pair.

    Differentiable in forward mode only (`jax.jvp`, `jax.jacfwd`): its loops have lengths that differ from segment to segment.

    Args:
      key: randomness of the initial weights and of the draws: one key.
      task: what is trained.
      optimizer: a function of the learning rate, such as `optax.adam` or `functools.partial(optax.sgd, momentum=.9)`.
      learning_rate: that of every step, [num_steps], finite and from 0 on: any schedule, as data, brought to float32.
      saves: the steps at which to save, integers increasing from 0 to at most num_steps, as `save_steps` makes them.
      keep: which of `PARTS` to record.
      dtype: of the recorded weights, gradients and slots: float32, bfloat16, float16 or float64.
      variety: a dict of finite scalars (or arrays) that the task understands.

    Returns:
      The run, led by [saves]. Means of weights, gradients and losses are taken in float32 or better.

    Raises:
      ValueError: for unordered, fractional or out-of-range saves, an unknown part or dtype, rates that are no table of finite
        numbers from 0 on, several keys, or an optimizer that is already built or cannot be recorded.
    """
    learning_rate = check_recording(optimizer, learning_rate, saves, keep, dtype, variety, axes=1)
    check_key("key", key, 0)
    plan = plan_of(optimizer, weights_of(task.init, key, variety))
    warn_of_slots(plan, keep)
    weights, draws = _start(key, task, learning_rate.shape[-1], variety)

    def trained(weights, draws, rates):
        return train(weights, draws, task.loss, task.data, optimizer, plan, rates, saves, keep, dtype)

    return fast_in_loops(trained)(weights, draws, learning_rate)


def _start(key, task, num_steps, variety):
    key_init, key_draws = jax.random.split(key)
    return task.init(key_init, variety), task.draws(key_draws, num_steps, variety)


def record_many(
    keys: Array,
    task: Task,
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: Float[Array | np.ndarray, "*runs num_steps"]
    | Int[Array | np.ndarray, "*runs num_steps"]
    | Sequence[float]
    | Sequence[Sequence[float]],
    saves: Sequence[int] | np.ndarray | Array,
    *,
    keep: Sequence[str] = PARTS,
    dtype: DTypeLike = jnp.float32,
    variety: PyTree = None,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Trajectory:
    """Records many runs of one structure in one compiled call; the second call with the same functions does not compile.

    Everything that `record` says of optimizers and clocks holds here too. Usable under `jax.jit` and differentiable in forward
    mode only (`jax.jvp`, `jax.jacfwd`).

    Args:
      keys: one key a run.
      task, optimizer, saves, keep, dtype: as in `record`, shared by all runs.
      learning_rate: [runs, num_steps], or [num_steps] for all runs alike.
      variety: a dict of arrays [runs, ...].
      chunk: how many runs go side by side, the chunks one after the other; None for all at once. Small chunks stay
        in cache.
      mesh: devices to split the runs over, along its first axis; their number must divide that of the runs.

    Returns:
      The runs, led by [runs, saves].

    Raises:
      ValueError: as `record`, and where the numbers of keys, rates, varieties or devices do not fit together.
    """
    check_key("keys", keys, 1)
    num_runs = len(keys)
    learning_rate = check_recording(optimizer, learning_rate, saves, keep, dtype, variety, axes=2)
    if num_runs == 0:
        raise ValueError("keys: expected one for each run, got none")
    if chunk is not None and not chunk >= 1:
        raise ValueError(f"chunk: expected a number of runs from 1 on, or None for all, got {chunk}")
    if learning_rate.ndim == 1:
        learning_rate = jnp.broadcast_to(learning_rate, (num_runs, *learning_rate.shape))
    leaves = jax.tree_util.tree_leaves_with_path(variety or {})
    names = [
        ("learning_rate", learning_rate),
        *((f"variety{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves),
    ]
    for name, leaf in names:
        if jnp.shape(leaf)[:1] != (num_runs,):
            raise ValueError(f"{name}: expected a leading axis of {num_runs} runs, one a key, got {jnp.shape(leaf)}")
    if mesh is not None and num_runs % mesh.devices.size:
        raise ValueError(f"mesh: its {mesh.devices.size} devices must divide the number of runs, {num_runs}")
    of_one = lambda leaf: (jnp.shape(leaf)[1:], getattr(leaf, "dtype", jnp.result_type(leaf)))
    kinds, structure = jax.tree.flatten(variety)
    plan = cached_plan(
        optimizer, task.init, of_one(keys), structure, tuple(map(of_one, kinds)), jax.config.jax_enable_x64
    )
    warn_of_slots(plan, keep)
    functions, saves, keep = task._replace(data=None), tuple(int(step) for step in saves), tuple(keep)
    if mesh is not None:
        over_runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        keys, learning_rate, variety = place((keys, learning_rate, variety), over_runs)
    weights, draws = _start_many(functions, learning_rate.shape[-1], mesh, keys, variety)
    static = (task.loss, optimizer, plan, saves, keep, jnp.dtype(dtype), chunk, mesh)
    return _train_many(static, task.data, weights, draws, learning_rate)


# Two compiled calls, so that all optimizers of one task share the first. It runs once a recording, and optimising it
# would take longer than running it: with random numbers to draw, compilers spend seconds on it.


@functools.partial(quick_jit, static_argnums=(0, 1, 2), level=1)
def _start_many(task, num_steps, mesh, keys, variety):
    start = lambda runs: jax.lax.map(lambda run: _start(run[0], task, num_steps, run[1]), runs)
    return _over_runs(start, mesh)((keys, variety))


@functools.partial(jax.jit, static_argnums=0)
def _train_many(static, data, weights, draws, learning_rate):
    loss, optimizer, plan, saves, keep, dtype, chunk, mesh = static

    def trained(data, runs):
        one = lambda run: train(run[0], run[1], loss, data, optimizer, plan, run[2], saves, keep, dtype)
        num_runs = runs[2].shape[0]
        return jax.vmap(one)(runs) if chunk is None or chunk >= num_runs else jax.lax.map(one, runs, batch_size=chunk)

    return _over_runs(fast_in_loops(trained), mesh, data)((weights, draws, learning_rate))


def _over_runs(function, mesh, *shared):
    """`function(*shared, runs)` as a function of `runs`, which the devices of a mesh divide among themselves."""
    if mesh is None:
        return functools.partial(function, *shared)
    runs, whole = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
    specs = (*[whole] * len(shared), runs)
    return functools.partial(
        jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False), *shared
    )
