"""Recording training runs: one run as a pure function, many of them in one compiled call."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Task, Trajectory
from gfm_jax.compiling import quick_jit
from gfm_jax.pytrees import layout_of, place, ravel
from gfm_jax.trajectories.slots import optimizer_slots

__all__ = ["PARTS", "record", "record_many", "save_steps"]

PARTS = ("weights", "mean_weights", "gradient", "state", "learning_rate", "loss")


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
    learning_rate: Float[Array | np.ndarray, " num_steps"],
    saves: Sequence[int] | np.ndarray,
    *,
    keep: Sequence[str] = PARTS,
    dtype: DTypeLike = jnp.float32,
    variety: PyTree = None,
) -> Trajectory:
    r"""Trains once and records the run. Pure: wrap it in `jax.jit`, or use `record_many`.

    .. math:: w_{k+1} = w_k + \mathrm{update}(\nabla L_k(w_k), s_k), \qquad time_k = \sum_{j<k} \mathrm{lr}_j

    Args:
      key: randomness of the initial weights and of the draws.
      task: what is trained.
      optimizer: a function of the learning rate, such as `optax.adam` or `functools.partial(optax.sgd, momentum=.9)`;
        those that ask for `grad_fn` get the gradient on the step's own minibatch.
      learning_rate: that of every step, [num_steps]: any schedule, as data.
      saves: the steps at which to save, increasing from 0 to at most num_steps, as `save_steps` makes them.
      keep: which of `PARTS` to record.
      dtype: of the recorded weights, gradients and slots: float32, bfloat16, float16 or float64.
      variety: a dict of scalars that the task understands.

    Returns:
      The run, led by [saves].

    Raises:
      ValueError: for unordered or out-of-range saves, an unknown part, or an optimizer that is already built.
    """
    _check(optimizer, saves, keep, learning_rate.shape)
    weights, draws = _start(key, task, learning_rate.shape[-1], variety)
    return _train(weights, draws, task.loss, task.data, optimizer, learning_rate, saves, keep, dtype)


def _start(key, task, num_steps, variety):
    key_init, key_draws = jax.random.split(key)
    return task.init(key_init, variety), task.draws(key_draws, num_steps, variety)


def _train(weights, draws, loss, data, optimizer, learning_rate, saves, keep, dtype):
    transform = optax.with_extra_args_support(optimizer(lambda count: learning_rate[count]))
    gradient_of = jax.value_and_grad(loss)
    want_mean, want_gradient = "mean_weights" in keep, "gradient" in keep

    def step(k, carry):
        weights, state, sums = carry
        draw = jax.tree.map(lambda leaf: leaf[k], draws)
        loss, gradient = gradient_of(weights, data, draw)
        # For methods with several stages: the gradient elsewhere, on the same minibatch.
        more = lambda weights: gradient_of(weights, data, draw)[1]
        updates, state = transform.update(gradient, state, weights, grad_fn=more)
        weights = optax.apply_updates(weights, updates)
        return weights, state, jax.tree.map(jnp.add, sums, summed(loss, gradient, weights))

    def summed(loss, gradient, weights):
        return loss, gradient if want_gradient else (), weights if want_mean else ()

    def snapshot(weights, state, loss, gradient, mean_weights):
        flat = lambda tree: ravel(tree).astype(dtype)
        parts = {
            "weights": lambda: flat(weights),
            "mean_weights": lambda: flat(mean_weights),
            "gradient": lambda: flat(gradient),
            "state": lambda: {name: flat(slot) for name, slot in optimizer_slots(state, weights).items()},
            "loss": lambda: loss,
        }
        return {name: part() for name, part in parts.items() if name in keep}

    def segment(carry, bounds):
        start, stop = bounds
        look = stop == 0  # save 0 looks at the first minibatch without taking the step
        sums = optax.tree.zeros_like(summed(learning_rate[0], carry[0], carry[0]))
        *moved, sums = jax.lax.fori_loop(start, jnp.maximum(stop, 1), step, (*carry, sums))
        weights, state = jax.tree.map(lambda old, new: jnp.where(look, old, new), carry, tuple(moved))
        loss, gradient, mean = jax.tree.map(
            lambda total: total / jnp.maximum(stop - start, 1).astype(total.dtype), sums
        )
        mean = jax.tree.map(lambda mean, w: jnp.where(look, w, mean), mean, weights if want_mean else ())
        finite = optax.tree.norm(weights, squared=True) < jnp.inf
        return (weights, state), (snapshot(weights, state, loss, gradient, mean), finite)

    starts, stops = jnp.asarray([0, *saves[:-1]]), jnp.asarray(saves)
    _, (arrays, finite) = jax.lax.scan(segment, (weights, transform.init(weights)), (starts, stops))
    clock = jnp.concatenate([jnp.zeros(1, learning_rate.dtype), jnp.cumsum(learning_rate)])
    saves = jnp.asarray(saves, jnp.int32)
    return Trajectory(
        step=saves,
        time=clock[saves],
        learning_rate=learning_rate[jnp.maximum(saves - 1, 0)] if "learning_rate" in keep else None,
        finite=finite.all(),
        layout=layout_of(weights),
        **arrays,
    )


def _check(optimizer, saves, keep, shape):
    if isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise ValueError(
            "optimizer: expected a function of the learning rate, such as optax.adam or "
            f"functools.partial(optax.sgd, momentum=0.9), got {type(optimizer).__name__}"
        )
    if len(shape) == 0:
        raise ValueError("learning_rate: expected that of every step, such as jnp.full(num_steps, 1e-3), got a scalar")
    steps = np.asarray(saves)
    if steps.ndim != 1 or len(steps) < 2 or steps[0] != 0 or (np.diff(steps) <= 0).any() or steps[-1] > shape[-1]:
        raise ValueError(f"saves: expected steps increasing from 0 to at most {shape[-1]}, got {steps.tolist()}")
    if unknown := set(keep) - set(PARTS):
        raise ValueError(f"keep: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")


def record_many(
    keys: Array,
    task: Task,
    optimizer: Callable[..., optax.GradientTransformation],
    learning_rate: Float[Array | np.ndarray, "*runs num_steps"],
    saves: Sequence[int] | np.ndarray,
    *,
    keep: Sequence[str] = PARTS,
    dtype: DTypeLike = jnp.float32,
    variety: PyTree = None,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Trajectory:
    """Records many runs of one structure in one compiled call; the second call with the same functions does not compile.

    Args:
      keys: one key a run.
      task, optimizer, saves, keep, dtype: as in `record`, shared by all runs.
      learning_rate: [runs, num_steps], or [num_steps] for all runs alike.
      variety: a dict of arrays [runs].
      chunk: how many runs go side by side, the chunks one after the other; None for all at once. Small chunks stay
        in cache.
      mesh: devices to split the runs over, along its first axis; their number must divide that of the runs.

    Returns:
      The runs, led by [runs, saves].

    Raises:
      ValueError: as `record`, and where the numbers of keys, rates, varieties or devices do not fit together.
    """
    num_runs = len(keys)
    learning_rate = jnp.asarray(learning_rate)
    _check(optimizer, saves, keep, learning_rate.shape)
    if learning_rate.ndim == 1:
        learning_rate = jnp.broadcast_to(learning_rate, (num_runs, *learning_rate.shape))
    for name, leaf in {"learning_rate": learning_rate, **(variety or {})}.items():
        if jnp.shape(leaf)[:1] != (num_runs,):
            raise ValueError(f"{name}: expected a leading axis of {num_runs} runs, one a key, got {jnp.shape(leaf)}")
    if mesh is not None and num_runs % mesh.devices.size:
        raise ValueError(f"mesh: its {mesh.devices.size} devices must divide the number of runs, {num_runs}")
    functions, saves, keep = task._replace(data=None), tuple(int(step) for step in saves), tuple(keep)
    if mesh is not None:
        over_runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        keys, learning_rate, variety = place((keys, learning_rate, variety), over_runs)
    weights, draws = _start_many(functions, learning_rate.shape[-1], mesh, keys, variety)
    static = (task.loss, optimizer, saves, keep, jnp.dtype(dtype), chunk, mesh)
    return _train_many(static, task.data, weights, draws, learning_rate)


# Two compiled calls, so that all optimizers of one task share the first. It runs once a recording, and optimising it
# would take longer than running it: with random numbers to draw, compilers spend seconds on it.


@functools.partial(quick_jit, static_argnums=(0, 1, 2), level=1)
def _start_many(task, num_steps, mesh, keys, variety):
    start = lambda runs: jax.lax.map(lambda run: _start(run[0], task, num_steps, run[1]), runs)
    return _over_runs(start, mesh)((keys, variety))


@functools.partial(jax.jit, static_argnums=0)
def _train_many(static, data, weights, draws, learning_rate):
    loss, optimizer, saves, keep, dtype, chunk, mesh = static

    def train(data, runs):
        one = lambda run: _train(run[0], run[1], loss, data, optimizer, run[2], saves, keep, dtype)
        num_runs = runs[2].shape[0]
        return jax.vmap(one)(runs) if chunk is None or chunk >= num_runs else jax.lax.map(one, runs, batch_size=chunk)

    return _over_runs(train, mesh, data)((weights, draws, learning_rate))


def _over_runs(function, mesh, *shared):
    """`function(*shared, runs)` as a function of `runs`, which the devices of a mesh divide among themselves."""
    if mesh is None:
        return functools.partial(function, *shared)
    runs, whole = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
    specs = (*[whole] * len(shared), runs)
    return functools.partial(
        jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False), *shared
    )
