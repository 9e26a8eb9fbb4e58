"""Forecasts that are weights on the observed saves, which sum to one: w(m) = sum_k a_k w_k."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Forecast, Forecaster, Horizon, Trajectory
from gfm_jax.forecasting.features import from_first_motion, line_weights
from gfm_jax.forecasting.forecaster import forecaster_of, unfitted

__all__ = ["lawa", "lawa_half_log", "linear", "log_time", "persistence", "sqrt_time"]


def _combination(
    name: str, weights_of_saves: Callable[[Trajectory, Horizon], Float[Array, " saves"]], **config
) -> Forecaster:
    """A forecaster that is a row of weights on the saves, which sum to one."""

    @jax.default_matmul_precision("highest")
    def forecast(params, prefix, horizon):
        del params
        # Relative to the last save, so that float32 keeps the digits of small differences.
        origin = prefix.weights[-1].astype(jnp.float32)
        moved = weights_of_saves(prefix, horizon) @ (prefix.weights.astype(jnp.float32) - origin[None])
        return Forecast(origin + moved)

    return forecaster_of(unfitted(f"forecasting.baselines.{name}", **config), forecast)


def persistence() -> Forecaster:
    """The last observed weights, w_n: hard to beat, and what every relative error is relative to.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(persistence(), (), run, until=8).weights.round().tolist()
    [4.0, 8.0]
    """
    return _combination("persistence", lambda prefix, horizon: jnp.zeros(len(prefix.step)).at[-1].set(1.0))


def lawa(num_last: int | float = 5) -> Forecaster:
    """The mean of the last `num_last` saves (latest weight averaging); below 1 it is a fraction of the prefix.

    Args:
      num_last: how many saves, or which fraction of them, above 0.

    Raises:
      ValueError: for 0 or less.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(lawa(3), (), run, until=8).weights.round().tolist()
    [3.0, 6.0]
    """
    _check_last(num_last)
    return _combination("lawa", lambda prefix, horizon: _last(prefix, num_last), num_last=num_last)


def _check_last(num_last):
    if num_last <= 0:
        raise ValueError(f"num_last: expected a number of saves, or a fraction of them below 1, got {num_last}")


def lawa_half_log(num_last: int | float = 5) -> Forecaster:
    """The mean of the last saves, moved by half of what a line in log time predicts.

    Args:
      num_last: how many saves, or which fraction of them, above 0.

    Raises:
      ValueError: for 0 or less.

    >>> from gfm_jax import forecast
    >>> step = 2 ** jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(jnp.log2(step), jnp.array([1.0, 2.0])))
    >>> forecast(lawa_half_log(3), (), run, until=64).weights.round().tolist()
    [4.0, 8.0]
    """

    _check_last(num_last)

    def weights_of_saves(prefix, horizon):
        return _last(prefix, num_last) + 0.5 * _line(prefix, horizon, jnp.log, "time", start=1 / 4)

    return _combination("lawa_half_log", weights_of_saves, num_last=num_last)


def linear(clock: str = "time") -> Forecaster:
    """A least-squares line over the last half of the prefix, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(linear(), (), run, until=8).weights.round().tolist()
    [8.0, 16.0]
    """
    _check_clock(clock)
    line = lambda prefix, horizon: _line(prefix, horizon, lambda t: t, clock, start=1 / 2)
    return _combination("linear", line, clock=clock)


def log_time(clock: str = "time") -> Forecaster:
    """A least-squares line in the logarithm of the clock over the last three quarters, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".

    >>> from gfm_jax import forecast
    >>> step = 2 ** jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(jnp.log2(step), jnp.array([1.0, 2.0])))
    >>> forecast(log_time(), (), run, until=32).weights.round().tolist()
    [5.0, 10.0]
    """
    _check_clock(clock)
    line = lambda prefix, horizon: _line(prefix, horizon, jnp.log, clock, start=1 / 4)
    return _combination("log_time", line, clock=clock)


def sqrt_time(clock: str = "time") -> Forecaster:
    """A least-squares line in the square root of the clock over the last three quarters: diffusion, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5) ** 2
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(jnp.sqrt(step), jnp.array([1.0, 2.0])))
    >>> forecast(sqrt_time(), (), run, until=25).weights.round().tolist()
    [5.0, 10.0]
    """
    _check_clock(clock)
    line = lambda prefix, horizon: _line(prefix, horizon, jnp.sqrt, clock, start=1 / 4)
    return _combination("sqrt_time", line, clock=clock)


def _last(prefix, num_last):
    num_last = num_last if num_last >= 1 else max(round(num_last * len(prefix.step)), 1)
    recent = jnp.arange(len(prefix.step)) >= len(prefix.step) - num_last
    return recent / recent.sum()


def _check_clock(clock):
    if clock not in ("time", "step"):
        raise ValueError(f"clock: expected 'time' or 'step', got {clock!r}")


def _line(prefix, horizon, scale, clock, start):
    seen, then = getattr(prefix, clock).astype(jnp.float32), getattr(horizon, clock)
    seen = from_first_motion(seen, jnp.ones(len(seen), bool))  # the logarithm of time 0 is left out
    inside = (prefix.step >= start * prefix.step[-1]).astype(jnp.float32)
    return line_weights(scale(seen), inside) * (scale(jnp.maximum(then, seen[-1])) - scale(seen[-1]))
