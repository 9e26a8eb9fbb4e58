"""Intervals of a fitted field, from runs that it was not fitted to."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from gfm_jax.base import Forecast, Trajectory
from gfm_jax.forecasting.field_forecaster import FRACTIONS, Params, forecast_windows
from gfm_jax.forecasting.intervals import UNIT, conformal, widen
from gfm_jax.forecasting.windows import Windows, cut_all

__all__ = ["calibrate", "calibrate_windows"]


def calibrate(
    params: Params,
    runs: Sequence[Trajectory | Windows] | Trajectory | Windows,
    *,
    losses: Sequence[Callable] | Callable | None = None,
    fractions: Sequence[float] = FRACTIONS,
    coverage: float = 0.9,
) -> Params:
    """Gives a fitted field intervals, forecast +- q(m/n) * expected error, from runs that it was not fitted to.

    Args:
      params: as `fit` returns them.
      runs: held out from the fit: a batch of runs, or several of one layout each; at least 9 for a coverage of .9.
      losses: for each batch, `weights [dim] -> scalar`, where the field was fitted with losses.
      fractions: fractions of a run that are observed, each in (0, 1).
      coverage: the probability with which a weight of a new run, such as these, is covered, in (0, 1).

    Returns:
      The parameters, whose forecasts have `lower` and `upper`.

    Raises:
      ValueError: for runs of which none is sound, fewer runs than the coverage needs, or a coverage outside (0, 1).

    >>> import jax
    >>> from gfm_jax.base import Layout
    >>> from gfm_jax.forecasting import flow_map
    >>> step, layout = jnp.tile(jnp.arange(21), (8, 1)), Layout(("",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=step[..., None] * jnp.ones(3), layout=layout)
    >>> windows = cut_all(runs, (0.5,))
    >>> params = flow_map(widths=(8,)).learner.init(jax.random.key(0), windows)  # not fitted, a field stands still
    >>> calibrate(params, windows, coverage=0.5).half_width.value.round().tolist()  # off by 10, in units of 5
    [2.0]
    """
    windows = cut_all(runs, fractions, losses=losses)
    return calibrate_windows(params, windows, [np.arange(len(part.run)) for part in windows], coverage=coverage)[0]


def calibrate_windows(
    params: Params,
    windows: Sequence[Windows],
    held_out: Sequence[np.ndarray],
    groups: Sequence[Sequence] | None = None,
    coverage: float = 0.9,
) -> tuple[Params, list[Forecast]]:
    """Gives a field its intervals, forecast +- q(m/n) * expected error, by `conformal` calibration.

    Args:
      params: the field.
      windows: of runs that it was not fitted to.
      held_out: for each of them, indices of the windows to calibrate on.
      groups: for each of them, a label of each of these windows; the intervals are then widened until they cover the given
        fraction of the weights of these windows in the worst group, not only in the mean.
      coverage: as in `calibrate`.

    Returns:
      The field with its intervals, and its forecasts of the ends of all windows.
    """
    forecasts = [forecast_windows(params._replace(half_width=UNIT), part) for part in windows]
    aheads = [jnp.log(part.moment(part.run, -1).step / part.moment(part.run, part.last).step) for part in windows]
    ratios, horizons, runs = [], [], []
    for i, (part, forecast, ahead, rows) in enumerate(zip(windows, forecasts, aheads, held_out, strict=True)):
        error = np.abs(np.asarray(part.weights)[np.asarray(part.run), -1] - np.asarray(forecast.weights))
        assert forecast.upper is not None
        ratios += list((error / np.asarray(forecast.upper - forecast.weights))[rows])
        horizons += np.asarray(ahead)[rows].tolist()
        runs += [(i, run) for run in np.asarray(part.run)[rows].tolist()]
    labels = None if groups is None else [label for part in groups for label in part]
    half_width = conformal(ratios, horizons, runs, labels, coverage)
    widened = [widen(half_width, ahead, forecast) for ahead, forecast in zip(aheads, forecasts, strict=True)]
    return params._replace(half_width=half_width), widened
