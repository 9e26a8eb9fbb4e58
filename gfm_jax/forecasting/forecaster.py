"""Forecasts of a run or of a batch: input is checked, batches are mapped, and the program is compiled once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gfm_jax.base import Forecast, Forecaster, Horizon, Layout, Learner, Procedure, Trajectory, config_of
from gfm_jax.checks import is_traced
from gfm_jax.forecasting.inputs import as_run
from gfm_jax.forecasting.prefix import horizon_at, horizon_at_step, prefix_of, save_at
from gfm_jax.forecasting.validation import check_forecast, is_forecastable
from gfm_jax.pytrees import map_rows

__all__ = ["forecast", "forecaster_of", "unfitted"]


def forecaster_of(
    learner: Learner | Procedure,
    forecast_one: Callable[[PyTree, Trajectory, Horizon], Forecast],
    layouts: Callable[[PyTree], Sequence[Layout]] = lambda params: (),
) -> Forecaster:
    """The forecaster whose `forecast` takes one run or a batch of runs.

    Args:
      learner: as `Forecaster` has it.
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

    compiled = {1: jax.jit(one), 2: jax.jit(many)}

    def in_a_trace(params, run):
        forecast, holds = forecast_one(params, *run), is_forecastable(*run)
        return jax.tree.map(lambda leaf: jnp.where(holds, leaf, jnp.nan), forecast)

    def forecast(params: PyTree, prefix: Trajectory, horizon: Horizon) -> Forecast:
        """Forecasts the weights of one run, [dim], or of each of a batch, [runs, dim], at a horizon ahead of its prefix."""
        run = check_forecast(prefix, horizon, layouts(params))
        if not is_traced(params, run):
            return compiled[run[0].step.ndim](params, run)
        if run[0].step.ndim == 1:
            return in_a_trace(params, run)
        return jax.vmap(lambda run: in_a_trace(params, run))(run)

    return Forecaster(learner, forecast)


def unfitted(method: str, **arguments: Any) -> Procedure:
    """The learner of a forecaster in closed form, which has no parameters."""
    return Procedure(lambda key, data, *, folder, progress: (), config_of(method, **arguments))


def forecast(
    forecaster: Forecaster,
    params: PyTree,
    run: Trajectory,
    *,
    observed: float | None = None,
    until: int | float | Array | None = None,
    learning_rate: Callable | float | None = None,
) -> Forecast:
    r"""The weights of a run, or of each of a batch of runs, at a step ahead of what was observed of it.

    Use it on recorded runs and on your own; `prefix_of` and `horizon_at` say the same save by save. Ahead of the last recorded
    save the learning rate is taken to stay what it is, where no other is given, and the clock is

    .. math:: t(m) = t_n + \sum_{k=n}^{m-1} \eta_k

    Args:
      forecaster, params: as fitted; `()` of a forecaster in closed form.
      run: one run [saves, ...], or a batch [runs, saves, ...] with the same steps.
      observed: the fraction of its steps that the forecast may look at, in (0, 1); None for all of them.
      until: the step to forecast; None for the last that was recorded, where `observed` is given.
      learning_rate: ahead of the last save, a number, or a schedule of the step as optax has it, with `until`.

    Returns:
      Weights [dim], or [runs, dim]; with an interval where the forecaster was calibrated.

    Raises:
      ValueError: for a fraction or a step that leaves nothing ahead, steps that are traced, and as `check_forecast`.

    >>> import jax, jax.numpy as jnp, optax
    >>> from gfm_jax.forecasting import baselines
    >>> from gfm_jax.runs import linear_regression, record, save_steps
    >>> task = linear_regression(jax.random.key(0), 20, 3)
    >>> run = record(jax.random.key(1), task, optax.sgd, jnp.full(40, 0.1), save_steps(40, 8))
    >>> forecast(baselines.linear(), (), run, observed=0.5).weights.shape
    (3,)
    >>> bool(jnp.isfinite(forecast(baselines.linear(), (), run, until=80).weights).all())
    True
    """
    if not isinstance(forecaster, Forecaster):
        got = "a function; call it, as in baselines.lawa()" if callable(forecaster) else type(forecaster).__name__
        raise ValueError(f"forecaster: expected a Forecaster, got {got}")
    run = as_run(run, "run")
    if is_traced(run.step):
        raise ValueError(
            "run.step: expected known steps, got traced ones; cut by prefix_of and horizon_at inside a trace"
        )
    if observed is None and until is None:
        raise ValueError(
            "until: expected a step beyond the last save, or a fraction `observed` below 1, got None for both"
        )
    if learning_rate is not None and (until is None or observed is not None):
        raise ValueError("learning_rate: expected with `until` and without `observed`, whose rates are recorded")
    if observed is not None and not 0 < observed < 1:
        raise ValueError(f"observed: expected a fraction of the run in (0, 1), got {observed}")
    prefix = run if observed is None else prefix_of(run, save_at(run, observed))
    horizon = horizon_at(run, -1) if until is None else horizon_at_step(run, until, learning_rate)
    return forecaster.forecast(params, prefix, horizon)
