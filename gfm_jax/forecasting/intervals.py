"""Intervals of a forecast: split-conformal calibration of the error that a field expects of itself."""

import math
from collections.abc import Hashable, Sequence
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
    ratios: Sequence[np.ndarray],
    ahead: Sequence[float],
    runs: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    coverage: float = 0.9,
) -> HalfWidth:
    r"""Half widths that cover a fraction of the weights of a run that was not seen, at every horizon.

    The weights of one run are alike, so that the runs are what is counted: with K of them, exchangeable with the new one,

    .. math:: q(m/n) = \min \Big\{ q : \tfrac1{K+1} \sum_{k=1}^K F_k(q) \ge \text{coverage} \Big\}, \qquad
       F_k(q) = \text{fraction of run } k \text{ where } |w_m - \hat w_m| \le q \, \hat\sigma

    covers a weight of the new run, drawn at random, with at least the probability `coverage`. Neighbouring horizons are put
    together where one of them alone has too few runs.

    Args:
      ratios: for each forecast, the errors of all weights in units of the expected ones.
      ahead: for each forecast, log(m/n) of its horizon m and the last observed step n; told apart to one decimal.
      runs: for each forecast, a label of the run that it is of.
      groups: for each forecast, a label of what might matter, such as its optimizer. Intervals are widened until the mean of
        F_k is `coverage` in every group too; of that there is no guarantee for new runs, since groups may be small.
      coverage: the fraction to be covered, in (0, 1).

    Raises:
      ValueError: for a coverage outside (0, 1), fewer than coverage / (1 - coverage) runs, or errors that are not finite.

    >>> errors = list(np.abs(np.random.default_rng(0).normal(size=(20, 100))))
    >>> round(float(conformal(errors, [0.7] * 20, range(20)).value[0]), 1)  # the quantile .9 * 21/20 of |z|, not .9
    1.9

    Distribution-free inference with hierarchical data, arXiv 2306.06342, its method HCP.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: expected a fraction in (0, 1), got {coverage}")
    if bad := [i for i, ratio in enumerate(ratios) if not np.isfinite(ratio).all()]:
        raise ValueError(f"ratios: expected finite errors, got others of the forecasts {', '.join(map(str, bad[:8]))}")
    least = math.ceil(coverage / (1 - coverage) - 1e-9)  # K / (K + 1) is at least the coverage
    if (found := len(set(runs))) < least:
        most = f", or a coverage of at most {found / (found + 1):.3f}" if found else ""
        raise ValueError(f"runs: expected at least {least} to cover {coverage} of a new one{most}, got {found}")
    groups = [None] * len(ratios) if groups is None else groups

    def quantile(forecasts, level):
        of_runs = {}
        for i in forecasts:
            of_runs.setdefault(runs[i], []).append(ratios[i])
        errors = [np.concatenate(parts) for parts in of_runs.values()]
        mass = np.concatenate([np.full(len(part), 1 / (len(part) * len(errors))) for part in errors])
        errors = np.concatenate(errors)
        order = np.argsort(errors)
        first = np.searchsorted(np.cumsum(mass[order]), level - 1e-9)  # where the mean of F_k reaches the level
        return errors[order[min(first, len(order) - 1)]]

    distances, values = [], []
    for cell in _cells(ahead, runs, least):
        num_runs = len({runs[i] for i in cell})
        of_groups = [[i for i in cell if groups[i] == group] for group in {groups[i] for i in cell}]
        levels = [coverage * (num_runs + 1) / num_runs] + [coverage] * len(of_groups)
        values.append(max(map(quantile, [cell, *of_groups], levels)))
        distances.append(np.mean([ahead[i] for i in cell]))
    return HalfWidth(jnp.array(distances, jnp.float32), jnp.array(values, jnp.float32))


def _cells(ahead, runs, least) -> list[list[int]]:
    """The forecasts by horizon, from the nearest; each cell reaches on until it holds enough runs."""
    cells = [[]]
    for horizon in sorted({round(float(distance), 1) for distance in ahead}):
        if len({runs[i] for i in cells[-1]}) >= least:
            cells.append([])
        cells[-1] += [i for i, distance in enumerate(ahead) if round(float(distance), 1) == horizon]
    if len(cells) > 1 and len({runs[i] for i in cells[-1]}) < least:
        cells[-2:] = [cells[-2] + cells[-1]]
    return cells


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
