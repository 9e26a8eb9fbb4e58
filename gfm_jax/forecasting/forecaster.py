"""A forecaster from its forecast of one run: input is checked, batches are mapped, and the program is compiled once."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gfm_jax.base import Forecast, Forecaster, Horizon, Layout, Trajectory
from gfm_jax.checks import is_traced
from gfm_jax.forecasting.validation import check_forecast, is_forecastable
from gfm_jax.forecasting.windows import Windows
from gfm_jax.pytrees import map_rows

__all__ = ["forecaster_of", "nothing_to_fit"]


def forecaster_of(
    fit: Callable[..., PyTree],
    forecast_one: Callable[[PyTree, Trajectory, Horizon], Forecast],
    layouts: Callable[[PyTree], Sequence[Layout]] = lambda params: (),
) -> Forecaster:
    """The forecaster whose `forecast` takes one run or a batch of runs.

    Args:
      fit: as `Forecaster` has it.
      forecast_one: `(params, prefix, horizon) -> Forecast` of one run, whose parts are arrays.
      layouts: `(params) -> layouts` of the runs that the parameters were fitted to.

    Returns:
      The forecaster. Its `forecast(params, prefix, horizon)` checks shapes always and values where they are known, before
      anything compiles, and raises ValueError as `check_forecast`. Inside `jax.jit`, `jax.vmap` or `jax.grad` values are not
      known: there the forecast of what would have been refused is NaN.
    """

    def one(params, run):
        return forecast_one(params, *run)

    def many(params, runs):
        return map_rows(lambda run: forecast_one(params, *run), runs, batch_size=8)

    compiled = {2: jax.jit(one), 3: jax.jit(many)}

    def in_a_trace(params, run):
        forecast, holds = forecast_one(params, *run), is_forecastable(*run)
        return jax.tree.map(lambda leaf: jnp.where(holds, leaf, jnp.nan), forecast)

    def forecast(params: PyTree, prefix: Trajectory, horizon: Horizon) -> Forecast:
        """Forecasts the weights of one run, [dim], or of each of a batch, [runs, dim], at a horizon ahead of its prefix."""
        run = check_forecast(prefix, horizon, layouts(params))
        if not is_traced(params, run):
            return compiled[run[0].weights.ndim](params, run)
        if run[0].weights.ndim == 2:
            return in_a_trace(params, run)
        return jax.vmap(lambda run: in_a_trace(params, run))(run)

    return Forecaster(fit, forecast)


def nothing_to_fit(
    key: Array,
    runs: Sequence[Trajectory | Windows] | Trajectory,
    losses: Sequence[Callable] | None = None,
    *,
    folder: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: str | bool | None = None,
) -> tuple[()]:
    """The fit of a forecaster in closed form: it has no parameters, and takes what other fits take."""
    del key, runs, losses, folder, mesh, progress
    return ()
