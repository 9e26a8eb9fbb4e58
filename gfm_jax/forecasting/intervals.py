"""Intervals of a forecast: split-conformal calibration of the error that a field expects of itself."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Forecast

__all__ = ["HalfWidth", "conformal", "half_width_at", "widen"]


class HalfWidth(NamedTuple):
    """Half the width of the intervals in units of the expected error, at horizons log(m/n) in increasing order."""

    ahead: Float[Array | np.ndarray, " horizons"]
    value: Float[Array | np.ndarray, " horizons"]


UNIT = HalfWidth(np.zeros(1, np.float32), np.ones(1, np.float32))  # one expected error, at any horizon


def conformal(
    ratios: Sequence[np.ndarray], ahead: Sequence[float], groups: Sequence | None = None, coverage: float = 0.9
) -> HalfWidth:
    r"""Half widths that cover a share of the weights of runs that were held out, at every horizon that these have.

    .. math:: q(m/n) = \max_g \mathrm{quantile}_{\text{coverage}} \left( |w_m - \hat w_m| / \hat\sigma \mid g, m/n \right)

    Args:
      ratios: for each forecast, the errors of all weights in units of the expected ones.
      ahead: for each forecast, log(m/n) of its horizon m and the last observed step n; told apart to one decimal.
      groups: for each forecast, a label; the worst group decides. By default all are one group.
      coverage: the share to be covered, in (0, 1).

    Raises:
      ValueError: for a coverage outside (0, 1), without any forecast, or for errors that are not finite.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: expected a share in (0, 1), got {coverage}")
    if not len(ratios):
        raise ValueError("ratios: expected those of at least one forecast to calibrate on, got none")
    if bad := [i for i, ratio in enumerate(ratios) if not np.isfinite(ratio).all()]:
        raise ValueError(f"ratios: expected finite errors, got others of the forecasts {', '.join(map(str, bad[:8]))}")
    groups = [None] * len(ratios) if groups is None else groups
    cells = {}
    for ratio, distance, group in zip(ratios, ahead, groups, strict=True):
        cells.setdefault(round(float(distance), 1), {}).setdefault(group, []).append(ratio)
    horizons = sorted(cells)
    worst = [max(np.quantile(np.concatenate(part), coverage) for part in cells[h].values()) for h in horizons]
    return HalfWidth(jnp.array(horizons), jnp.array(worst, jnp.float32))


def half_width_at(half_width: HalfWidth, ahead: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """q at any horizon: on lines between those of the calibration, constant beyond them."""
    return jnp.interp(ahead, half_width.ahead, half_width.value)


def widen(half_width: HalfWidth, ahead: Float[Array, " n"], forecast: Forecast) -> Forecast:
    """Forecasts [n, dim] with intervals of one expected error, as forecasts with calibrated intervals."""
    q = half_width_at(half_width, ahead)[:, None]
    mean, lower, upper = forecast
    assert lower is not None
    assert upper is not None
    return Forecast(mean, mean + q * (lower - mean), mean + q * (upper - mean))
