"""Runs, prefixes and horizons as users hand them in: brought to one form, and checked in one place.

Shapes and dtypes are always checked. Values are checked where they are known, before anything compiles; a forecast inside a
trace, where no value is known, is NaN for a prefix or a horizon that would have been refused. One rule says what becomes of
the bad members of a batch: a forecast refuses them, a fit leaves them out, and both name them by their index.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from gfm_jax.base import Curvature, Horizon, Layout, Trajectory
from gfm_jax.checks import is_traced, on_host

__all__ = ["as_run", "check_forecast", "good_runs", "is_forecastable", "save_index", "sound_runs"]

LARGEST, SMALLEST = 1e15, 1e-8  # size of the largest weight: float32 holds its square, and the features resolve it
MOST_RATE = (
    100.0  # a mean learning rate ahead of 1 or more that is this many times the largest one known: a clock in steps
)
BY_SAVE = ("learning_rate", "loss")  # optional parts [saves], and those [saves, dim]
BY_WEIGHT = ("mean_weights", "gradient")


def save_index(saves: int, index: Int[Array, ""] | int, *, name: str = "last", least: int = 0) -> Int[Array, ""] | int:
    """The index of a save, counted from 0; a negative one counts from the end, as everywhere in Python.

    Args:
      saves: how many there are.
      index: from `least - saves` on, below `saves`; a traced index is returned as it is.
      name: of the argument, for messages.
      least: the first save that can be meant.

    Raises:
      ValueError: for an index out of range.
    """
    if isinstance(index, Tracer):
        return index
    found = int(index) + saves if index < 0 else int(index)
    if not least <= found < saves:
        raise ValueError(f"{name}: expected the index of one of {saves} saves, {least} at least, got {index}")
    return found


# --- one form ---------------------------------------------------------------------------------------------------------


def as_run(run: Trajectory, name: str = "run") -> Trajectory:
    """A run, or a batch of runs, in one form: arrays of matching shapes, a clock, a learning rate for every save.

    Lists and numbers become arrays. Where `time` was not recorded it is summed up from the learning rates, each taken to hold
    since the save before; without these either the clock is the number of steps, and a horizon has to be in steps as well.

    Args:
      run: [saves] and [saves, dim], or [runs, saves] and [runs, saves, dim].
      name: of the argument, for messages.

    Raises:
      ValueError: for anything but a trajectory, for a part of another shape than the weights ask for, or for weights that are
        no real numbers.

    >>> run = as_run(Trajectory(step=[0, 10, 20], time=None, weights=[[1.0], [2.0], [3.0]], learning_rate=0.1))
    >>> run.weights.shape, run.time.tolist(), run.learning_rate.tolist()
    ((3, 1), [0.0, 1.0, 2.0], [0.1, 0.1, 0.1])
    """
    if not isinstance(run, Trajectory):
        raise ValueError(f"{name}: expected a Trajectory, got {type(run).__name__}")
    if run.weights is None:
        raise ValueError(f"{name}: expected recorded weights, got none")
    weights = _array(f"{name}.weights", run.weights)
    if weights.ndim not in (2, 3):
        raise ValueError(f"{name}.weights: expected [saves, dim] or [runs, saves, dim], got shape {weights.shape}")
    by_save = weights.shape[:-1]
    step = _array(f"{name}.step", run.step)
    if step.ndim == 1 and weights.ndim == 3:  # the steps of all runs
        step = _broadcast(step, by_save)
    parts = {"step": step, "weights": weights}
    if run.time is not None:
        parts["time"] = _array(f"{name}.time", run.time)
    for part in (*BY_SAVE, *BY_WEIGHT):
        if getattr(run, part) is not None:
            parts[part] = _array(f"{name}.{part}", getattr(run, part))
    if "learning_rate" in parts and parts["learning_rate"].ndim == 0:  # one rate for all saves
        parts["learning_rate"] = _broadcast(parts["learning_rate"], by_save)
    if run.time is None:
        parts["time"] = _summed(step, parts["learning_rate"]) if "learning_rate" in parts else step
    for part, array in parts.items():
        expected = weights.shape if part in ("weights", *BY_WEIGHT) else by_save
        if array.shape != expected:
            raise ValueError(f"{name}.{part}: expected shape {expected}, as the weights have it, got {array.shape}")
    if run.state is not None:
        parts["state"] = _slots(name, run.state, weights.shape)
    if run.layout is not None and run.layout.dim != weights.shape[-1]:
        raise ValueError(f"{name}: its layout describes {run.layout.dim} weights, but it has {weights.shape[-1]}")
    return run._replace(**parts)


def _summed(step, learning_rate):
    """The sum of the learning rates at every save: that of a save is taken to hold since the save before."""
    xp = jnp if is_traced(step, learning_rate) or isinstance(learning_rate, jax.Array) else np
    since = xp.diff(step, axis=-1, prepend=0)
    return xp.cumsum(since * learning_rate, axis=-1).astype(xp.result_type(learning_rate))


def _array(name, values):
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected real numbers, got a masked array; fill it, or leave the masked saves out")
    try:
        array = values if hasattr(values, "dtype") and hasattr(values, "ndim") else np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: expected an array of real numbers, got rows of different lengths") from None
    if array.dtype == object or not (jnp.issubdtype(array.dtype, jnp.floating) or _is_integer(array)):
        hint = "; pytrees become rows by gfm_jax.ravel" if array.dtype == object and name.endswith("weights") else ""
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}{hint}")
    return array


def _is_integer(array):
    return jnp.issubdtype(array.dtype, jnp.integer)


def _broadcast(array, shape):
    return (jnp if isinstance(array, jax.Array) else np).broadcast_to(array, shape)


def _slots(name, state, shape):
    if not isinstance(state, dict):
        raise ValueError(
            f"{name}.state: expected a dict from the name of a slot to its array, got {type(state).__name__}"
        )
    slots = {slot: _array(f"{name}.state[{slot!r}]", array) for slot, array in state.items()}
    for slot, array in slots.items():
        if array.shape != shape:
            raise ValueError(
                f"{name}.state[{slot!r}]: expected shape {shape}, as the weights have it, got {array.shape}"
            )
    return slots


def _as_horizon(horizon, runs: tuple[int, ...]) -> Horizon:
    """Three float32 arrays, for one run or for each of a batch."""
    if not isinstance(horizon, Horizon):
        raise ValueError(f"horizon: expected a Horizon(step, time, learning_rate), got {type(horizon).__name__}")
    parts = {}
    for name, value in horizon._asdict().items():
        array = _array(f"horizon.{name}", value)
        if array.shape not in ((), runs):
            got = f"got shape {array.shape}"
            raise ValueError(f"horizon.{name}: expected {f'shape {runs} or ' if runs else ''}one number, {got}")
        array = jnp.asarray(array, jnp.float32) if isinstance(array, jax.Array) else np.asarray(array, np.float32)
        parts[name] = _broadcast(array, runs)
    return Horizon(**parts)


# --- values -----------------------------------------------------------------------------------------------------------


def _numbers(*trees):
    """NumPy where all arrays lie in the memory of the host, else jax.numpy."""
    return np if all(map(on_host, jax.tree.leaves(trees))) else jnp


def _sound(xp, run: Trajectory, name: str) -> dict[str, Any]:
    """What has to hold of every run, each a boolean for each run, [*runs]."""
    finite = functools.partial(_finite, xp)
    step, time = xp.asarray(run.step), xp.asarray(run.time, np.float32)
    size = abs(xp.asarray(run.weights, np.float32)).max(axis=(-2, -1))
    sound = {
        f"{name}.step: expected numbers from 0 on, each larger than the one before": (xp.diff(step) > 0).all(axis=-1)
        & (step[..., 0] >= 0)
        & (step < np.inf).all(axis=-1),
        f"{name}.time: expected finite times from 0 on that never fall": (xp.diff(time) >= 0).all(axis=-1)
        & (time[..., 0] >= 0)
        & (time < np.inf).all(axis=-1),
        f"{name}.weights: expected finite weights, got NaN or infinity: the run has diverged": xp.isfinite(size),
        f"{name}.weights: expected the largest between {SMALLEST:g} and {LARGEST:g} in size, or all zero": (size == 0)
        | ((size >= SMALLEST) & (size <= LARGEST)),
    }
    for part in BY_SAVE:
        if (array := getattr(run, part)) is not None:
            sound[f"{name}.{part}: expected finite numbers (None where it was not recorded)"] = finite(array, -1)
    if run.learning_rate is not None:
        not_negative = (xp.asarray(run.learning_rate, np.float32) >= 0).all(axis=-1)
        sound[f"{name}.learning_rate: expected numbers from 0 on"] = not_negative
    arrays = {part: getattr(run, part) for part in BY_WEIGHT} | (run.state or {})
    for part, array in arrays.items():
        if array is not None:
            sound[f"{name}: expected finite numbers in {part!r} (leave it out where it was not recorded)"] = finite(
                array, (-2, -1)
            )
    if run.curvature is not None:
        around = [finite(leaf, tuple(range(step.ndim - 1, np.ndim(leaf)))) for leaf in run.curvature]
        sound[f"{name}.curvature: expected finite numbers: the loss has none around the last weights"] = (
            around[0] & around[1] & around[2] & around[3]
        )
    return sound


def _finite(xp, array, axes):
    array = xp.asarray(array, np.float32)
    if xp is jnp and axes == (-2, -1):  # 0 times what is not finite is NaN: a product reads memory three times as fast
        array = jnp.matmul(array, jnp.zeros(array.shape[-1]), precision=jax.lax.Precision.HIGHEST)
        axes = -1
    return xp.isfinite(array).all(axis=axes)


def _ahead(xp, prefix: Trajectory, horizon: Horizon) -> dict[str, Any]:
    """What has to hold of every horizon."""
    step, time = xp.asarray(prefix.step), xp.asarray(prefix.time, np.float32)
    then, end, rate = (xp.asarray(part) for part in horizon)
    gaps = xp.diff(step)
    known = xp.maximum(
        (xp.diff(time) / xp.where(gaps > 0, gaps, 1)).max(axis=-1), rate
    )  # the largest rate that is known
    if prefix.learning_rate is not None:
        known = xp.maximum(known, xp.asarray(prefix.learning_rate, np.float32).max(axis=-1))
    mean_ahead = (end - time[..., -1]) / xp.maximum(then - step[..., -1], 1)
    return {
        "horizon: expected a step beyond the last observed one": (then > step[..., -1]) & (then < np.inf),
        "horizon: expected a time that does not lie before the last observed one, in the same clock": (
            end >= time[..., -1] * (1 - 1e-6)
        )
        & (end < np.inf),
        "horizon: expected a learning rate from 0 on": (rate >= 0) & (rate < np.inf),
        "horizon: expected its time as the sum of learning rates, as the prefix has it; its mean rate ahead looks like a time "
        "in steps": (mean_ahead < 0.99) | (mean_ahead <= MOST_RATE * known),
    }


def is_forecastable(prefix: Trajectory, horizon: Horizon) -> Bool[Array, "*runs"]:
    """Whether values are such that a forecast means anything: for each run, also where they are traced.

    Args:
      prefix, horizon: in one form, as `check_forecast` returns them.

    >>> step, weights = jnp.array([[0, 1], [0, 1]]), jnp.array([[[1.0], [2.0]], [[1.0], [jnp.nan]]])
    >>> prefix = Trajectory(step=step, time=0.1 * step, weights=weights)
    >>> jax.jit(is_forecastable)(prefix, Horizon(jnp.full(2, 9.0), jnp.full(2, 0.9), jnp.full(2, 0.1))).tolist()
    [True, False]
    """
    held = _sound(jnp, prefix, "prefix") | _ahead(jnp, prefix, horizon)
    return jnp.stack(list(held.values())).all(axis=0)


def _refuse(held: dict[str, Any], got: dict[str, Any]) -> None:
    """Raises ValueError for the first condition that does not hold, with the runs of a batch for which it does not."""
    for condition, holds in held.items():
        holds = np.asarray(holds)
        if not holds.all():
            which = "" if holds.ndim == 0 else f"; runs of the batch: {_some(np.flatnonzero(~holds))}"
            name = condition.split(":")[0]
            came = f", got {got[name]()}" if name in got else ""
            raise ValueError(condition + came + which)


def _some(indices) -> str:
    shown = ", ".join(str(i) for i in indices[:8])
    return shown if len(indices) <= 8 else f"{shown} and {len(indices) - 8} more"


# --- a forecast refuses -----------------------------------------------------------------------------------------------


def check_forecast(prefix: Trajectory, horizon: Horizon, layouts: Sequence[Layout] = ()) -> tuple[Trajectory, Horizon]:
    """A prefix and a horizon that can be forecast from, or those of a batch of runs.

    Args:
      prefix: what was observed, [saves, ...] of one run or [runs, saves, ...] of a batch; in one form already, lists and a
        scalar learning rate are made arrays.
      horizon: the moment to forecast: numbers for all runs, or [runs].
      layouts: of the runs that the forecaster was fitted to: fills in the layout of a prefix where only one can be meant.
        Without any, the weights of a prefix without a layout are one tensor.

    Returns:
      Both, with every part an array, and the prefix with a layout.

    Raises:
      ValueError: for a single snapshot, values that are not finite, steps that do not rise, times that fall, a horizon that
        does not lie ahead or is in another clock; of a batch the message names the runs. For a prefix without layout whose
        size fits none, or several, of `layouts`.

    >>> prefix = Trajectory(step=[0, 10], time=[0, 1], weights=[[1.0], [2.0]], layout=Layout(("bias",), ((1,),)))
    >>> check_forecast(prefix, Horizon(step=5, time=0.5, learning_rate=0.1))
    Traceback (most recent call last):
    ValueError: horizon: expected a step beyond the last observed one, got step 5, time 0.5, learning_rate 0.1
    """
    prefix = as_run(prefix, "prefix")
    assert prefix.weights is not None
    *runs, saves, dim = prefix.weights.shape
    if saves < 2:
        raise ValueError(f"prefix: expected at least two saves, got {saves}: one snapshot has no direction")
    if prefix.layout is None and not layouts:
        prefix = prefix._replace(layout=Layout(("weights",), ((dim,),)))
    if prefix.layout is None:
        fitting = {layout for layout in layouts if layout.dim == dim}
        if len(fitting) != 1:
            known = ", ".join(str(layout.dim) for layout in layouts)
            raise ValueError(
                f"prefix: it has {dim} weights and no layout, and the forecaster was fitted to runs of {known} weights; set "
                "`layout` to gfm_jax.pytrees.layout_of(weights)"
            )
        prefix = prefix._replace(layout=fitting.pop())
    _check_curvature(prefix, dim)
    horizon = _as_horizon(horizon, tuple(runs))
    if not is_traced(prefix, horizon):
        xp = _numbers(prefix, horizon)
        got = {"horizon": lambda: ", ".join(f"{name} {np.min(part):g}" for name, part in horizon._asdict().items())}
        _refuse(_sound(xp, prefix, "prefix"), {})
        _refuse(_ahead(xp, prefix, horizon), got)
    return prefix, horizon


def _check_curvature(prefix, dim):
    if prefix.curvature is None:
        return
    if not isinstance(prefix.curvature, Curvature) or np.shape(prefix.curvature.gradient)[-1:] != (dim,):
        raise ValueError("prefix.curvature: expected that of the same weights, as gfm_jax.measure_curvature finds it")


# --- a fit leaves out -------------------------------------------------------------------------------------------------


def good_runs(runs: Trajectory, name: str = "runs") -> np.ndarray:
    """For each run of a batch, whether all its values are sound: finite, steps that rise, times that do not fall."""
    held = _sound(_numbers(runs), runs, name)
    return np.asarray(np.stack([np.asarray(holds) for holds in held.values()]).all(axis=0))


def sound_runs(runs: Trajectory, name: str = "runs") -> Trajectory:
    """A batch of runs to fit to, in one form; runs that are not sound are left out, and a warning names them.

    How many are left depends on their values: not for use inside `jax.jit`.

    Args:
      runs: led by [runs, saves].
      name: of the argument, for messages.

    Raises:
      ValueError: for a single run, runs without layout, fewer than three saves, or where no run is left.

    >>> step, weights = jnp.tile(jnp.arange(4), (3, 1)), jnp.ones((3, 4, 2)).at[1, 2].set(jnp.nan)
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=weights, layout=Layout(("bias",), ((2,),)))
    >>> with warnings.catch_warnings(action="ignore"):
    ...     sound_runs(runs).weights.shape
    (2, 4, 2)
    """
    runs = as_run(runs, name)
    assert runs.weights is not None
    if runs.weights.ndim != 3:
        raise ValueError(
            f"{name}: expected a batch of runs, weights [runs, saves, dim], got one run with {runs.weights.shape}"
        )
    if runs.layout is None:
        raise ValueError(f"{name}: expected runs with a layout; set it to gfm_jax.pytrees.layout_of(weights)")
    if runs.weights.shape[1] < 3:
        raise ValueError(f"{name}: expected at least three saves a run, got {runs.weights.shape[1]}")
    good = good_runs(runs, name)
    if good.all():
        return runs
    bad = f"{(~good).sum()} of {len(good)} runs are not sound ({_some(np.flatnonzero(~good))})"
    if not good.any():
        _refuse(_sound(_numbers(runs), runs, name), {})
    warnings.warn(f"{name}: {bad}: NaN, infinity, or steps or times out of order; left out", stacklevel=4)
    kept = np.flatnonzero(good)
    chosen = jax.tree.map(lambda leaf: leaf[kept], runs._replace(layout=None))
    return chosen._replace(layout=runs.layout)
