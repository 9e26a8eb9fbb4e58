"""Losses of a forecast displacement: in weight space, as an interval, and in function space."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.forecasting.evidence import log_of_loss

__all__ = ["function_space_loss", "laplace_nll", "relative_huber", "relative_l1", "relative_squared_error"]


def relative_l1(forecast, target, weight: Float[Array, "*n"]) -> Float[Array, ""]:
    r"""Mean absolute error, each run at its own scale: mean sqrt(weight) |forecast - target|.

    Args:
      forecast, target: displacements, [*n].
      weight: of each squared error, from 0 on, such as 1 over the squared distance that the run moves.

    >>> float(relative_l1(jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.array([1.0, 4.0])))
    2.5
    """
    return jnp.mean(jnp.sqrt(weight) * jnp.abs(forecast - target))


def relative_huber(forecast, target, weight: Float[Array, "*n"]) -> Float[Array, ""]:
    r"""Mean of Huber's loss, u^2 / 2 for |u| < 1 and |u| - 1/2 beyond, of u = sqrt(weight) (forecast - target).

    A mean of squares for what is foretold well, it does not follow the weights that are not.

    Args: as `relative_l1`.

    >>> float(relative_huber(jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.ones(2)))
    1.0
    """
    return jnp.mean(optax.losses.huber_loss(jnp.sqrt(weight) * (forecast - target)))


def laplace_nll(log_scale, error) -> Float[Array, ""]:
    r"""Negative log-likelihood of errors under a Laplace law, up to a constant: |e| / b + log b, with b = exp(log_scale).

    Its minimiser is b = E|e|, so that exp(log_scale) learns the expected error.

    Args:
      log_scale: log b of each error, [*n].
      error: e, [*n].

    >>> float(laplace_nll(jnp.zeros(2), jnp.array([1.0, -2.0])))
    1.5
    """
    return jnp.mean(jnp.abs(error) * jnp.exp(-log_scale) + log_scale)


def relative_squared_error(forecast, origin, target) -> Float[Array, ""]:
    r"""Squared error in units of persistence's: |forecast - target|^2 / |origin - target|^2; 0 for a run at rest.

    Args:
      forecast, origin, target: forecast, last observed and true weights, [dim].

    >>> float(relative_squared_error(jnp.array([3.0, 4.0]), jnp.array([0.0, 4.0]), jnp.array([4.0, 4.0])))
    0.0625
    """
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

    >>> forecast, origin, target = jnp.ones(1), 2 * jnp.ones(1), jnp.zeros(1)
    >>> round(float(function_space_loss(lambda w: jnp.sum(w**2), forecast, origin, target, weight=1.0)), 1)  # 1/4 - log 4
    -1.1
    """
    ratio = log_of_loss(loss(forecast), 1e-3) - jax.lax.stop_gradient(log_of_loss(loss(origin), 1e-3))
    return ratio + weight * jnp.minimum(relative_squared_error(forecast, origin, target), ceiling)
