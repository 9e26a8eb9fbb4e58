"""Recording training runs: one run as a pure function, many of them in one compiled call."""

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.base import Task, Trajectory
from gfm_jax.checks import is_traced
from gfm_jax.compiling import quick_jit
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.optimizers.whole_gradient import WholeGradient, whole_params
from gfm_jax.pytrees import layout_of, place, ravel
from gfm_jax.runs.counters import Clock, clock_of, schedule
from gfm_jax.runs.slots import optimizer_slots, unrecorded_state

__all__ = ["PARTS", "record", "record_many", "save_steps"]

PARTS = ("weights", "mean_weights", "gradient", "state", "learning_rate", "loss")
EXTRA = ("value", "grad", "value_fn", "grad_fn")  # what optimizers may ask for beside the gradient, in optax's names
DTYPES = ("float32", "bfloat16", "float16", "float64")


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
    learning_rate = _check(optimizer, learning_rate, saves, keep, dtype, variety, axes=1)
    _check_key("key", key, 0)
    plan = _plan_of(optimizer, _weights_of(task.init, key, variety))
    _warn_of(plan, keep)
    weights, draws = _start(key, task, learning_rate.shape[-1], variety)

    def train(weights, draws, rates):
        return _train(weights, draws, task.loss, task.data, optimizer, plan, rates, saves, keep, dtype)

    return fast_in_loops(train)(weights, draws, learning_rate)


def _start(key, task, num_steps, variety):
    key_init, key_draws = jax.random.split(key)
    return task.init(key_init, variety), task.draws(key_draws, num_steps, variety)


def _train(weights, draws, loss, data, optimizer, plan, learning_rate, saves, keep, dtype):
    init, update = _functions_of(optimizer(lambda count: learning_rate[_index(count)]))
    value_and_gradient = jax.value_and_grad(loss)
    want_mean, want_gradient = "mean_weights" in keep, "gradient" in keep

    def step(k, carry):
        weights, state, tally, sums = carry
        draw = jax.tree.map(lambda leaf: leaf[k], draws)
        value, gradient = value_and_gradient(weights, data, draw)
        extra = {
            "value": value,
            "grad": gradient,
            # Elsewhere, on the same minibatch: for line searches, and for methods with several stages.
            "value_fn": lambda at, grad_fn=None: loss(whole_params(at, weights), data, draw),
            "grad_fn": WholeGradient(lambda at, *_: value_and_gradient(at, data, draw)[1], weights),
        }
        updates, new_state = update(gradient, state, weights, **{name: extra[name] for name in plan.extra})
        new_state = _as_dtypes(new_state, plan.dtypes)
        tally = tallied(k, tally, state, new_state, updates)
        weights = optax.apply_updates(weights, updates)
        return weights, new_state, tally, jax.tree.map(jnp.add, sums, summed(value, gradient, weights))

    def summed(loss, gradient, weights):
        return jax.tree.map(as_accumulator, (loss, gradient if want_gradient else (), weights if want_mean else ()))

    def tallied(k, tally, state, new_state, updates):
        """(sum of the rates used, rate used last) after a step, where the counters at a save do not tell them."""
        if not plan.clock.by_step:
            return ()
        old, new = jax.tree.leaves(state), jax.tree.leaves(new_state)
        if plan.clock.own is not None:
            rate = (new[plan.clock.own] - old[plan.clock.own]).astype(learning_rate.dtype)
            taken = rate > 0
        else:
            counts = [(_index(old[i] - start[i]), new[i] != old[i]) for i in plan.clock.counters]
            # Where parts of the weights have counters of their own, the one that has taken most steps.
            last = functools.reduce(jnp.maximum, [jnp.where(moved, n, -1) for n, moved in counts]) if counts else k
            moves = functools.reduce(jnp.logical_or, [jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates)])
            # A step of rate 0 moves nothing, and adds nothing.
            taken = (last >= 0) & (moves | (learning_rate[last] == 0))
            rate = learning_rate[last]
        total, before = tally
        return jnp.where(taken, total + rate, total), jnp.where(taken, rate, before)

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
        begin, end = bounds
        look = end == 0  # save 0 looks at the first minibatch without taking the step
        sums = optax.tree.zeros_like(summed(learning_rate[0].astype(loss_dtype), carry[0], carry[0]))
        *moved, sums = jax.lax.fori_loop(begin, jnp.maximum(end, 1), step, (*carry, sums))
        weights, state, tally = jax.tree.map(lambda old, new: jnp.where(look, old, new), carry, tuple(moved))
        value, gradient, mean = jax.tree.map(
            lambda total: total / jnp.maximum(end - begin, 1).astype(total.dtype), sums
        )
        mean = jax.tree.map(lambda mean, w: jnp.where(look, w, mean), mean, weights if want_mean else ())
        finite = optax.tree.norm(jax.tree.map(as_accumulator, weights), squared=True) < jnp.inf
        saved = snapshot(weights, state, value, gradient, mean)
        if dtype == jnp.float16 and "weights" in saved:  # what is too large for it
            finite &= jnp.isfinite(saved["weights"]).all()
        counts = [jax.tree.leaves(state)[i] for i in plan.clock.counters]
        return (weights, state, tally), (saved, finite, tally if plan.clock.by_step else counts)

    first_draw = jax.tree.map(lambda leaf: leaf[0], draws)
    loss_dtype = jax.eval_shape(loss, weights, data, first_draw).dtype
    state = _as_dtypes(init(weights), plan.dtypes)
    start = dict(enumerate(jax.tree.leaves(state)))
    tally = (jnp.zeros((), learning_rate.dtype), learning_rate[0]) if plan.clock.by_step else ()
    bounds = jnp.asarray([0, *saves[:-1]]), jnp.asarray(saves)
    _, (arrays, finite, clocks) = jax.lax.scan(segment, (weights, state, tally), bounds)
    saves = jnp.asarray(saves, jnp.int32)
    if plan.clock.by_step:
        time, rate = clocks
    else:
        taken = [count - start[i] for i, count in zip(plan.clock.counters, clocks, strict=True)]
        time, rate = _read(learning_rate, functools.reduce(jnp.maximum, taken) if taken else saves)
    return Trajectory(
        step=saves,
        time=time,
        learning_rate=rate if "learning_rate" in keep else None,
        finite=finite.all(),
        layout=layout_of(weights),
        **arrays,
    )


def _index(count):
    """A counter as an index: those of `joint_runge_kutta` with another `step` than 1 are floating-point numbers."""
    if jnp.issubdtype(jnp.result_type(count), jnp.floating):
        return jnp.floor(count + 1e-3).astype(jnp.int32)
    return count


def _read(learning_rate, taken):
    """The sum of the rates of the first `taken` steps, and the last of them."""
    clock = jnp.concatenate([jnp.zeros(1, learning_rate.dtype), jnp.cumsum(learning_rate)])
    if jnp.issubdtype(taken.dtype, jnp.floating):
        time = jnp.interp(taken.astype(clock.dtype), jnp.arange(len(clock), dtype=clock.dtype), clock)
        return time, learning_rate[jnp.maximum(jnp.ceil(taken - 1e-3).astype(jnp.int32) - 1, 0)]
    return clock[taken], learning_rate[jnp.maximum(taken - 1, 0)]


# --- what an optimizer asks for, and what its state is ------------------------------------------------------------------


class _Plan(NamedTuple):
    """What is known of an optimizer before it runs: the extra arguments that it takes, its clock, the dtypes of its state, and
    what of its state is shaped like weights but is no slot."""

    extra: tuple[str, ...]
    clock: Clock
    dtypes: tuple
    left_out: tuple[str, ...]


def _functions_of(transform):
    """`init` and `update`, which takes extra arguments (a GradientTransformation made of a `MultiSteps` takes them too)."""
    takes_more = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(transform.update).parameters.values())
    if takes_more or isinstance(transform, optax.GradientTransformationExtraArgs):
        return transform.init, transform.update
    return transform.init, optax.with_extra_args_support(transform).update


def _plan_of(optimizer, weights):
    """Traces one update, in shapes and dtypes alone; refuses an optimizer that cannot be recorded."""
    try:
        transform = optimizer(schedule)
        init, update = _functions_of(transform)
        state = jax.eval_shape(init, weights)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"optimizer: expected a function of the learning rate, a schedule; {_said(error)}") from error
    if any(type(node).__name__ == "LookaheadState" for node in _nodes_of(state)):
        raise ValueError(
            "optimizer: expected one that updates the task's weights, got optax.lookahead, whose parameters are a pair of fast "
            "and slow weights: record its fast optimizer, and average the saves"
        )
    dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(weights)))

    def updated(extra, state, gradient, weights, value):
        given = {
            "value": value,
            "grad": gradient,
            "value_fn": lambda at, grad_fn=None: sum(
                (jnp.sum(leaf).astype(value.dtype) for leaf in jax.tree.leaves(whole_params(at, weights))), value
            ),
            "grad_fn": WholeGradient(lambda at, *_: at, weights),
        }
        return update(gradient, state, weights, **{name: given[name] for name in extra})

    failure = None
    for extra in _extra_arguments(update):
        try:
            value = jax.ShapeDtypeStruct((), dtype)
            clock, updates, new_state = clock_of(functools.partial(updated, extra), state, weights, weights, value)
            break
        except (TypeError, ValueError, AttributeError) as error:
            failure = failure or error
    else:
        raise ValueError(
            f"optimizer: expected one that updates the task's weights from {', '.join(EXTRA)}; {_said(failure)}"
        ) from failure
    for name, old, new in (
        ("updates like the weights", weights, updates),
        ("a state that keeps its form", state, new_state),
    ):
        if jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, new):
            raise ValueError(f"optimizer: expected {name}, got {_differing(old, new)}")
    dtypes = tuple(
        a.dtype if a.dtype == b.dtype else jnp.promote_types(a.dtype, b.dtype)  # equal ones may be those of random keys
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
    )
    return _Plan(extra, clock, dtypes, unrecorded_state(state, weights))


def _extra_arguments(update):
    """The extra arguments to try: those that it names, or all; then `grad_fn` alone, as SAM wants it inside a chain."""
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return [EXTRA, ("grad_fn",)]
    return [tuple(name for name in EXTRA if name in {p.name for p in parameters})]


def _weights_of(init, key, variety):
    """The shapes and dtypes of the weights of one run, refused where they cannot be trained."""
    weights = jax.eval_shape(init, key, variety)
    _check_weights(weights)
    return weights


def _check_weights(weights):
    """Refuses weights that are no parameters, by their shapes and dtypes."""
    layout_of(weights)


@functools.lru_cache(maxsize=64)
def _plan_of_many(optimizer, init, key, structure, variety, x64):
    """`_plan_of` for one of many runs, once for all calls of a kind."""
    del x64
    held = functools.partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)  # int64 is int32 without x64
    one = lambda leaf: jax.ShapeDtypeStruct(leaf[0], held(leaf[1]))
    weights = _weights_of(init, one(key), jax.tree.unflatten(structure, map(one, variety)))
    return _plan_of(optimizer, weights)


def _warn_of(plan, keep):
    if plan.left_out and "state" in keep:
        warnings.warn(
            f"optimizer: {', '.join(plan.left_out)} of its state is shaped like some of the weights, but is no slot of all of "
            "them, and is not recorded",
            stacklevel=3,
        )


def _as_dtypes(state, dtypes):
    leaves, treedef = jax.tree.flatten(state)
    of = lambda leaf, dtype: leaf if leaf.dtype == dtype else leaf.astype(dtype)
    return treedef.unflatten([of(jnp.asarray(leaf), dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)])


def _nodes_of(state):
    """The state, and all NamedTuples, tuples, lists and dicts inside of it."""
    children = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return [state, *(node for child in children for node in _nodes_of(child))]


def _said(error):
    return f"got {type(error).__name__}: {error}"


def _differing(old, new):
    if jax.tree.structure(old) != jax.tree.structure(new):
        return f"{jax.tree.structure(new)} for {jax.tree.structure(old)}"
    pairs = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
    differ = [(path, a.shape, b.shape) for (path, a), b in pairs if a.shape != b.shape]
    return ", ".join(f"{jax.tree_util.keystr(path)} {new} for {old}" for path, old, new in differ)


# --- bad input ----------------------------------------------------------------------------------------------------------


def _check(optimizer, learning_rate, saves, keep, dtype, variety, axes):
    """Refuses what cannot be recorded; the table of rates in float32 or better, of `axes` axes at most."""
    if isinstance(optimizer, optax.GradientTransformation | optax.MultiSteps) or not callable(optimizer):
        raise ValueError(
            "optimizer: expected a function of the learning rate, such as optax.adam or "
            f"functools.partial(optax.sgd, momentum=0.9), got {type(optimizer).__name__}"
        )
    learning_rate = _check_rates(learning_rate, axes)
    _check_saves(saves, learning_rate.shape[-1])
    if isinstance(keep, str):
        raise ValueError(f"keep: expected a sequence of parts, such as ({keep!r},), got the string {keep!r}")
    if unknown := [str(part) for part in keep if part not in PARTS]:
        raise ValueError(f"keep: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if not any(_same_dtype(dtype, known) for known in DTYPES):
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if _same_dtype(dtype, "float64") and not _x64():
        raise ValueError("dtype: float64 needs jax.config.update('jax_enable_x64', True)")
    if variety is not None and not isinstance(variety, dict):
        raise ValueError(f"variety: expected a dict of scalars or arrays, got {type(variety).__name__}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(variety or {}):
        if not is_traced(leaf) and not np.isfinite(np.asarray(leaf, float)).all():
            raise ValueError(f"variety{jax.tree_util.keystr(path)}: expected finite numbers, got {leaf}")
    return learning_rate


def _check_rates(learning_rate, axes):
    if not isinstance(learning_rate, jax.Array):  # of numbers, whatever holds them
        try:
            learning_rate = np.asarray(learning_rate)
        except ValueError as error:
            raise ValueError(f"learning_rate: expected a table of numbers, {_said(error)}") from error
    kinds = (jnp.floating, jnp.integer)
    if learning_rate.dtype == object or not any(jnp.issubdtype(learning_rate.dtype, kind) for kind in kinds):
        raise ValueError(f"learning_rate: expected a table of real numbers, got dtype {learning_rate.dtype}")
    if learning_rate.ndim == 0:
        raise ValueError("learning_rate: expected that of every step, such as jnp.full(num_steps, 1e-3), got a scalar")
    if learning_rate.ndim > axes:
        wanted = (
            "[num_steps]: for many runs there is `record_many`" if axes == 1 else "[num_steps] or [runs, num_steps]"
        )
        raise ValueError(f"learning_rate: expected {wanted}, got shape {learning_rate.shape}")
    if not is_traced(learning_rate):
        known = np.asarray(learning_rate).astype(np.float64)
        bad = np.argwhere(~(np.isfinite(known) & (known >= 0)))
        if len(bad):
            at = tuple(bad[0].tolist())
            where = ", ".join(map(str, at))
            raise ValueError(f"learning_rate[{where}]: expected a finite number from 0 on, got {known[at]}")
    return jnp.asarray(learning_rate).astype(jnp.promote_types(jnp.asarray(learning_rate).dtype, jnp.float32))


def _check_saves(saves, num_steps):
    if is_traced(saves):
        raise ValueError(
            "saves: expected steps that are known before anything is traced, such as a tuple, got a tracer"
        )
    steps = np.asarray(saves)
    if steps.size and steps.dtype.kind not in "iu":
        raise ValueError(f"saves: expected integers, the numbers of steps, got dtype {steps.dtype}")
    steps = steps.astype(np.int64)
    if steps.ndim != 1 or len(steps) < 2 or steps[0] != 0 or (np.diff(steps) <= 0).any() or steps[-1] > num_steps:
        raise ValueError(f"saves: expected steps increasing from 0 to at most {num_steps}, got {steps.tolist()}")


def _x64():
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  options are made at run time


def _same_dtype(dtype, name):
    try:
        return jnp.dtype(dtype) == jnp.dtype(name)
    except TypeError:
        return False


def _check_key(name, key, axes):
    """One key, or an axis of keys, typed or as unsigned integers."""
    typed = jnp.issubdtype(getattr(key, "dtype", np.dtype(object)), jax.dtypes.prng_key)
    ndim = jnp.ndim(key) - (0 if typed else 1)
    if ndim != axes:
        wanted = (
            "one key: for many runs there is `record_many`"
            if axes == 0
            else "an axis of keys, such as jax.random.split(key, runs)"
        )
        raise ValueError(f"{name}: expected {wanted}, got shape {jnp.shape(key)} of {getattr(key, 'dtype', type(key))}")


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
    _check_key("keys", keys, 1)
    num_runs = len(keys)
    rates = _check(optimizer, learning_rate, saves, keep, dtype, variety, axes=2)
    if num_runs == 0:
        raise ValueError("keys: expected one for each run, got none")
    if chunk is not None and not chunk >= 1:
        raise ValueError(f"chunk: expected a number of runs from 1 on, or None for all, got {chunk}")
    if rates.ndim == 1:
        rates = jnp.broadcast_to(rates, (num_runs, *rates.shape))
    leaves = jax.tree_util.tree_leaves_with_path(variety or {})
    names = [
        ("learning_rate", rates),
        *((f"variety{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves),
    ]
    for name, leaf in names:
        if jnp.shape(leaf)[:1] != (num_runs,):
            raise ValueError(f"{name}: expected a leading axis of {num_runs} runs, one a key, got {jnp.shape(leaf)}")
    if mesh is not None and num_runs % mesh.devices.size:
        raise ValueError(f"mesh: its {mesh.devices.size} devices must divide the number of runs, {num_runs}")
    of_one = lambda leaf: (jnp.shape(leaf)[1:], getattr(leaf, "dtype", jnp.result_type(leaf)))
    kinds, structure = jax.tree.flatten(variety)
    plan = _plan_of_many(optimizer, task.init, of_one(keys), structure, tuple(map(of_one, kinds)), _x64())
    _warn_of(plan, keep)
    functions, saves, keep = task._replace(data=None), tuple(int(step) for step in saves), tuple(keep)
    if mesh is not None:
        over_runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        keys, rates, variety = place((keys, rates, variety), over_runs)
    weights, draws = _start_many(functions, rates.shape[-1], mesh, keys, variety)
    static = (task.loss, optimizer, plan, saves, keep, jnp.dtype(dtype), chunk, mesh)
    return _train_many(static, task.data, weights, draws, rates)


# Two compiled calls, so that all optimizers of one task share the first. It runs once a recording, and optimising it
# would take longer than running it: with random numbers to draw, compilers spend seconds on it.


@functools.partial(quick_jit, static_argnums=(0, 1, 2), level=1)
def _start_many(task, num_steps, mesh, keys, variety):
    start = lambda runs: jax.lax.map(lambda run: _start(run[0], task, num_steps, run[1]), runs)
    return _over_runs(start, mesh)((keys, variety))


@functools.partial(jax.jit, static_argnums=0)
def _train_many(static, data, weights, draws, learning_rate):
    loss, optimizer, plan, saves, keep, dtype, chunk, mesh = static

    def train(data, runs):
        one = lambda run: _train(run[0], run[1], loss, data, optimizer, plan, run[2], saves, keep, dtype)
        num_runs = runs[2].shape[0]
        return jax.vmap(one)(runs) if chunk is None or chunk >= num_runs else jax.lax.map(one, runs, batch_size=chunk)

    return _over_runs(fast_in_loops(train), mesh, data)((weights, draws, learning_rate))


def _over_runs(function, mesh, *shared):
    """`function(*shared, runs)` as a function of `runs`, which the devices of a mesh divide among themselves."""
    if mesh is None:
        return functools.partial(function, *shared)
    runs, whole = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()
    specs = (*[whole] * len(shared), runs)
    return functools.partial(
        jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=runs, check_vma=False), *shared
    )
