"""LFD-2: one linear map from the first and the last observed weights, fitted to whole runs."""

import functools

import jax
import jax.numpy as jnp
import optax

from gfm_jax.base import Forecast, Forecaster, Procedure, config_of
from gfm_jax.forecasting.displacement import relative_l1
from gfm_jax.forecasting.forecaster import forecaster_of
from gfm_jax.forecasting.windows import cut_all
from gfm_jax.minimize import minimize

__all__ = ["lfd2"]


def lfd2(fractions: tuple[float, ...] = (0.2, 0.5), every: int = 16) -> Forecaster:
    r"""One linear map, shared by all weights, from the first and the last observed one, by L1 regression.

    .. math:: \hat w_m = w_n + a\,(w_n - w_0) + b\,w_n

    fitted for each of `fractions` of a run that are observed; a forecast takes the nearest (LFD-2, arXiv
    2505.02714; the errors of each run are relative to how far it moved).

    Args:
      fractions: fractions of a run that are observed, each in (0, 1).
      every: one weight in so many is used in the regression, at least 1.

    Returns:
      A forecaster, fitted by `fit(key, forecaster, runs)`; its parameters are (a, b) of each fraction.

    Raises:
      ValueError: for `every` below 1.

    >>> from gfm_jax import Trajectory, forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(lfd2((0.5,)), jnp.array([[1.0, 0.0]]), run, until=8).weights.round().tolist()
    [8.0, 16.0]
    """
    fractions = tuple(fractions)
    if every < 1:
        raise ValueError(f"every: expected one weight in 1 or more, got {every}")

    def fit_pairs(key, runs, *, folder, progress):
        parts = [_examples(fractions, every, windows) for windows in cut_all(runs, fractions)]
        since, origin, moved, nearest = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        return jnp.stack([_l1_regression(since, origin, moved, (nearest == i) * 1.0) for i in range(len(fractions))])

    @jax.default_matmul_precision("highest")
    def forecast(params, prefix, horizon):
        nearest = jnp.argmin(jnp.abs(prefix.step[-1] / horizon.step - jnp.array(fractions)))
        first, last = prefix.weights[0].astype(jnp.float32), prefix.weights[-1].astype(jnp.float32)
        a, b = params[nearest]
        return Forecast(last + a * (last - first) + b * last)

    learner = Procedure(fit_pairs, config_of("forecasting.baselines.lfd2", fractions=fractions, every=every))
    return forecaster_of(learner, forecast)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _examples(fractions, every, windows):
    """(since the start, origin, moved, index of the fraction) of weights of all windows, in units of how far each run moved."""
    observed = windows.clock.step[windows.run, windows.last] / windows.clock.step[windows.run, -1]
    nearest = jnp.argmin(jnp.abs(observed[:, None] - jnp.array(fractions)[None]), axis=1)
    part = slice(None, None, every)
    origin, first = windows.features.origin[:, part], windows.weights[windows.run, 0, part]
    moved = windows.weights[windows.run, -1, part] - origin
    size = jnp.sqrt(jnp.mean(moved**2, -1, keepdims=True))
    rows = [
        jnp.where(size > 0, row / jnp.where(size > 0, size, 1), 0).ravel() for row in (origin - first, origin, moved)
    ]
    return *rows, jnp.broadcast_to(nearest[:, None], moved.shape).ravel()


@jax.jit
def _l1_regression(x, y, target, wanted):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))
    return minimize(lambda c: relative_l1(c[0] * x + c[1] * y, target, wanted), jnp.zeros(2), optimizer, 300)
