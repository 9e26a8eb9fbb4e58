"""Losses of a forecast displacement: in weight space, as an interval, and in function space."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.forecasting.evidence import log_of_loss

__all__ = ["function_space_loss", "laplace_nll", "relative_huber", "relative_l1", "relative_squared_error"]


def relative_l1(forecast, target, weight: Float[Array, "*n"]) -> Float[Array, ""]:
    r"""Mean absolute error, each run at its own scale: mean sqrt(weight) |forecast - target|."""
    return jnp.mean(jnp.sqrt(weight) * jnp.abs(forecast - target))


def relative_huber(forecast, target, weight: Float[Array, "*n"]) -> Float[Array, ""]:
    r"""Mean of Huber's loss, u^2 / 2 for |u| < 1 and |u| - 1/2 beyond, of u = sqrt(weight) (forecast - target).

    A mean of squares for what is foretold well, it does not follow the weights that are not.
    """
    return jnp.mean(optax.losses.huber_loss(jnp.sqrt(weight) * (forecast - target)))


def laplace_nll(log_scale, error) -> Float[Array, ""]:
    r"""Negative log-likelihood of errors under a Laplace law, up to a constant: |e| / b + log b, with b = exp(log_scale).

    Its minimiser is b = E|e|, so that exp(log_scale) learns the expected error.
    """
    return jnp.mean(jnp.abs(error) * jnp.exp(-log_scale) + log_scale)


def relative_squared_error(forecast, origin, target) -> Float[Array, ""]:
    r"""Squared error in units of persistence's: |forecast - target|^2 / |origin - target|^2; 0 for a run at rest."""
    moved = jnp.sum((origin - target) ** 2)
    return jnp.where(moved > 0, jnp.sum((forecast - target) ** 2) / jnp.where(moved > 0, moved, 1), 0)


def function_space_loss(
    loss: Callable[[Array], Array], forecast, origin, target, weight: float, ceiling: float = 3.0
) -> Float[Array, ""]:
    r"""How good a network the forecast is, and how near to the true one.

    .. math:: \log \frac{L(\hat w) + \epsilon}{L(w_n) + \epsilon} + \lambda \min(e, c), \qquad
       e = \frac{|\hat w - w_m|^2}{|w_n - w_m|^2}, \quad \epsilon = 10^{-3}

    with the logarithm continued to losses below zero, as `log_of_loss` has it; a run at rest, w_n = w_m, has no e.

    Args:
      loss: `weights [dim] -> scalar`, on data that the run was not trained on.
      forecast, origin, target: forecast, last observed and true weights, [dim].
      weight: lambda; 0 trusts the loss alone, and gives up the weights.
      ceiling: c, beyond which a run no longer pulls on the weights.
    """
    ratio = log_of_loss(loss(forecast), 1e-3) - jax.lax.stop_gradient(log_of_loss(loss(origin), 1e-3))
    return ratio + weight * jnp.minimum(relative_squared_error(forecast, origin, target), ceiling)
