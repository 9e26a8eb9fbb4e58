"""Recording training runs: one, or many side by side, in one compiled call."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.base import Task, Trajectory
from gfm_jax.checks import check_count
from gfm_jax.compiling import quick_jit
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.pytrees import place
from gfm_jax.runs.recording_checks import PARTS, check_recording, check_runs, check_saves, x64
from gfm_jax.runs.training_loop import train
from gfm_jax.runs.update_plan import cached_plan, warn_of_slots

__all__ = ["record", "save_steps"]


def save_steps(num_steps: int, num_saves: int, spacing: str = "even") -> np.ndarray:
    """The steps at which a run is saved: 0, then `num_saves` more up to `num_steps`.

    Args:
      num_steps: length of the run, at least 1.
      num_saves: saves after the first, 1..num_steps.
      spacing: "even" or "log"; log-spaced steps that would coincide are moved apart.

    Returns:
      Strictly increasing int32 [num_saves + 1].

    Raises:
      ValueError: for a number of saves outside 1..num_steps, or another spacing.

    >>> save_steps(100, 4).tolist(), save_steps(100, 3, "log").tolist()
    ([0, 25, 50, 75, 100], [0, 1, 10, 100])
    """
    num_steps, num_saves = check_count("num_steps", num_steps), check_count("num_saves", num_saves)
    if num_saves > num_steps:
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
    learning_rates: Float[Array | np.ndarray, "*runs num_steps"]
    | Int[Array | np.ndarray, "*runs num_steps"]
    | Sequence[float]
    | Sequence[Sequence[float]],
    saves: Sequence[int] | np.ndarray | Array | None = None,
    *,
    num_saves: int | None = None,
    keep: Sequence[str] = PARTS,
    dtype: DTypeLike = jnp.float32,
    variety: PyTree = None,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Trajectory:
    r"""Trains a network, or many side by side, and records the runs in one compiled call.

    .. math:: w_{k+1} = w_k + \mathrm{update}(\nabla L_k(w_k), s_k), \qquad
       time_k = \sum_{j < k,\, \text{taken}} \mathrm{lr}_j

    An axis of keys makes a batch of runs, and so do rates of two axes. A second call with the same functions and shapes does
    not compile. The optimizer looks its rate up by its own count of steps, as in any optax loop. Where a wrapper leaves steps
    out (`optax.MultiSteps`, `optax.apply_if_finite`, SAM in transparent mode), `time` is the sum of the rates that were used,
    and `learning_rate` the rate used last.

    Any optax optimizer can be recorded that takes its rate as a schedule. Of `value`, `grad`, `value_fn` and `grad_fn` of the
    step's minibatch it gets those that it asks for (`optax.lbfgs`, `optax.contrib.momo`, `optax.contrib.sam`,
    `optax.contrib.reduce_on_plateau`, `gfm_jax.optimizers.heun`). `optax.lookahead` is refused: its parameters are a pair.

    Works inside `jax.jit` and `jax.vmap`. Differentiable in forward mode only (`jax.jvp`, `jax.jacfwd`): its loops have lengths
    that differ from segment to segment.

    Args:
      key: randomness of the initial weights and of the draws: one key, or an axis of them, one a run. One key for a batch is
        split.
      task: what is trained.
      optimizer: a function of the learning rate, such as `optax.adam` or `functools.partial(optax.sgd, momentum=.9)`.
      learning_rates: of every step, [num_steps], or of every run and step, [runs, num_steps], finite and from 0 on: any
        schedule, as data, brought to float32.
      saves: the steps at which to save, integers increasing from 0 to at most num_steps, as `save_steps` makes them.
      num_saves: in place of `saves`, so many after the start, evenly. Without either 32, or one a step where there are fewer.
      keep: which of `PARTS` to record.
      dtype: of the recorded weights, gradients and slots: float32, bfloat16, float16 or float64.
      variety: a dict of finite scalars (or arrays) that the task understands; led by [runs] in a batch.
      chunk: how many runs of a batch go side by side, the chunks one after the other; None for all. Small chunks stay in
        cache.
      mesh: devices to split a batch over, along its first axis; their number must divide that of the runs.

    Returns:
      The run, led by [saves], or the batch, led by [runs, saves]. Means of weights, gradients and losses are taken in float32
      or better.

    Raises:
      ValueError: for unordered, fractional or out-of-range saves, an unknown part or dtype, rates that are no table of finite
        numbers from 0 on, numbers of keys, rates, varieties or devices that do not fit together, or an optimizer that is
        already built or cannot be recorded.

    >>> from gfm_jax.runs import linear_regression
    >>> task = linear_regression(jax.random.key(0), 20, 3)
    >>> record(jax.random.key(1), task, optax.adam, jnp.full(10, 0.1), num_saves=5).weights.shape
    (6, 3)
    >>> record(jax.random.key(1), task, optax.adam, jnp.full((4, 10), 0.1), num_saves=5).weights.shape
    (4, 6, 3)
    """
    rates = check_recording(optimizer, learning_rates, keep, dtype, variety)
    steps = _saves(saves, num_saves, rates.shape[-1])
    key, rates = check_runs(key, rates, variety, chunk, mesh)
    many = rates.ndim == 2
    of_one = lambda leaf: (jnp.shape(leaf)[many:], getattr(leaf, "dtype", jnp.result_type(leaf)))
    kinds, structure = jax.tree.flatten(variety)
    plan = cached_plan(optimizer, task.init, of_one(key), structure, tuple(map(of_one, kinds)), x64())
    warn_of_slots(plan, keep)
    if mesh is not None:
        over_runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        key, rates, variety = place((key, rates, variety), over_runs)
    functions, num_steps = task._replace(data=None), rates.shape[-1]
    if many:
        weights, draws = _start_many(functions, num_steps, mesh, key, variety)
    else:
        weights, draws = _start(functions, num_steps, key, variety)
    static = (task.loss, optimizer, plan, steps, tuple(keep), jnp.dtype(dtype), chunk, mesh)
    return _train(static, task.data, weights, draws, rates)


def _saves(saves, num_saves, num_steps) -> tuple[int, ...]:
    """The steps to save at, as numbers of Python."""
    if saves is not None and num_saves is not None:
        raise ValueError(f"num_saves: expected one of saves and num_saves, got both ({num_saves} saves)")
    if saves is None:
        saves = save_steps(num_steps, min(32, num_steps) if num_saves is None else num_saves)
    return check_saves(saves, num_steps)


def _start(task, num_steps, key, variety):
    key_init, key_draws = jax.random.split(key)
    return task.init(key_init, variety), task.draws(key_draws, num_steps, variety)


# A batch starts by a program of its own, so that all optimizers of one task share it. It runs once a recording, and
# optimising it would take longer than running it: with random numbers to draw, compilers spend seconds on it.
@functools.partial(quick_jit, static_argnums=(0, 1, 2), level=1)
def _start_many(task, num_steps, mesh, keys, variety):
    start = lambda runs: jax.lax.map(lambda run: _start(task, num_steps, *run), runs)
    return _over_runs(start, mesh)((keys, variety))


@functools.partial(jax.jit, static_argnums=0)
def _train(static, data, weights, draws, learning_rates):
    loss, optimizer, plan, saves, keep, dtype, chunk, mesh = static

    def one(data, run):
        weights, draws, rates = run
        return train(weights, draws, loss, data, optimizer, plan, rates, saves, keep, dtype)

    def many(data, runs):
        alone = functools.partial(one, data)
        if chunk is None or chunk >= len(runs[2]):
            return jax.vmap(alone)(runs)
        return jax.lax.map(alone, runs, batch_size=chunk)

    runs = weights, draws, learning_rates
    if learning_rates.ndim == 1:
        return fast_in_loops(one)(data, runs)
    return _over_runs(fast_in_loops(many), mesh, data)(runs)


def _over_runs(function, mesh, *shared):
    """`function(*shared, runs)` as a function of `runs`, which the devices of a mesh divide among themselves."""
    if mesh is None:
        return functools.partial(function, *shared)
    runs, whole = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
    specs = (*[whole] * len(shared), runs)
    return functools.partial(
        jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False), *shared
    )
