"""What has to hold of the values of runs, prefixes and horizons before a forecaster uses them, in one place.

Shapes and dtypes are always checked, by `inputs`. Values are checked where they are known, before anything compiles; a
forecast inside a trace, where no value is known, is NaN for a prefix or a horizon that would have been refused. One rule says
what becomes of the bad members of a batch: a forecast refuses them, a fit leaves them out, and both name them by their index.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from gfm_jax.base import Curvature, Horizon, Layout, Trajectory
from gfm_jax.checks import is_traced, on_host
from gfm_jax.forecasting.inputs import BY_SAVE, BY_WEIGHT, as_horizon, as_run

__all__ = ["check_forecast", "good_runs", "is_forecastable", "sound_runs"]

LARGEST, SMALLEST = 1e15, 1e-8  # size of the largest weight: float32 holds its square, and the features resolve it
MOST_RATE = 100.0  # a mean rate ahead of 1 or more that is this many times the largest one known is a clock in steps


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
    horizon = as_horizon(horizon, tuple(runs))
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
