"""An optimizer's own field around a gradient that is learned from one run: no training runs are needed."""

import jax
import jax.numpy as jnp

from gfm_jax.base import Forecast, Forecaster, OptimizerField
from gfm_jax.forecasting.forecaster import forecaster_of, unfitted
from gfm_jax.solve import solve_flow

__all__ = ["optimizer_flow"]


def optimizer_flow(field: OptimizerField, num_steps: int = 200) -> Forecaster:
    r"""Forecasts by the field of a known optimizer, around a gradient that is linear in the weights.

    .. math:: \min_{A, b} \sum_k |A \bar w_k + b - \bar g_k|^2, \qquad (w, s)' = F(w, s, A w + b)

    with the mean gradient of every observed segment, and the mean of the weights at which it was taken. Along directions
    in which the run has not moved the curvature is taken to be its mean along the others. For problems of up to some
    hundred weights near a minimum, where the loss is nearly quadratic.

    Args:
      field: of the optimizer, from `gfm_jax.optimizers.fields`, with the decays that the run was trained with.
      num_steps: steps of Heun's method from the last observed save to the horizon.

    Returns:
      A forecaster with nothing to fit. Its prefix must hold mean weights, gradients, the learning rate (taken to stay what
      it is; where it is 0, to be the mean rate until the horizon) and the optimizer's slots.

    Raises:
      ValueError: where the prefix lacks one of these.

    >>> from gfm_jax import Trajectory, forecast, layout_of, optimizers
    >>> step, weights = jnp.arange(5), jnp.outer(jnp.arange(5), jnp.array([1.0, 2.0]))
    >>> known = {"mean_weights": weights, "gradient": jnp.tile(jnp.array([-10.0, -20.0]), (5, 1)), "learning_rate": 0.1}
    >>> run = Trajectory(step=step, time=0.1 * step, weights=weights, layout=layout_of(weights[0]), **known)
    >>> forecast(optimizer_flow(optimizers.fields.sgd(), num_steps=4), (), run, until=8).weights.round().tolist()
    [8.0, 16.0]
    """

    @jax.default_matmul_precision("highest")
    def forecast(params, prefix, horizon):
        import diffrax  # on first use: it takes half a second

        del params
        parts = {
            "mean_weights": prefix.mean_weights,
            "gradient": prefix.gradient,
            "learning_rate": prefix.learning_rate,
        }
        slots = {name: (prefix.state or {}).get(name) for name in field.init(prefix.weights[-1])}
        if missing := [name for name, part in (parts | slots).items() if part is None]:
            raise ValueError(f"prefix: expected recorded {', '.join(parts | slots)}, got none of {', '.join(missing)}")

        steps = jnp.diff(prefix.step)[:, None]
        points = prefix.mean_weights[1:] - jnp.diff(prefix.weights, axis=0) / steps  # means before the updates
        center, mean = points.mean(0), prefix.gradient[1:].mean(0)
        moved, changed = points - center[None], prefix.gradient[1:] - mean[None]
        curvature = (moved * changed).sum() / jnp.maximum((moved**2).sum(), 1e-30)
        correction, *_ = jnp.linalg.lstsq(moved, changed - curvature * moved, rcond=1e-4)
        gradient = lambda w: mean + curvature * (w - center) + (w - center) @ correction

        ahead = (horizon.time - prefix.time[-1]) / jnp.maximum(horizon.step - prefix.step[-1], 1)
        rate = jnp.where(prefix.learning_rate[-1] > 0, prefix.learning_rate[-1], jnp.maximum(ahead, 1e-12))

        def velocity(time, point):
            weights, state = point
            return field.velocity(time, weights, state, gradient(weights), rate)

        start = (prefix.weights[-1], {name: prefix.state[name][-1] for name in slots})
        options = {"num_steps": num_steps, "solver": diffrax.Heun()}
        (weights, _), _ = solve_flow(velocity, start, prefix.time[-1], horizon.time, **options)
        return Forecast(weights)

    return forecaster_of(unfitted("forecasting.optimizer_flow", field=field, num_steps=num_steps), forecast)
