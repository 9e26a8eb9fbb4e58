"""A quadratic loss, of which everything is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Task

__all__ = ["quadratic"]


def quadratic(curvature: Float[Array, " dim"], minimum: Float[Array, " dim"] | float = 0.0, noise: float = 0.0) -> Task:
    r"""A diagonal quadratic, with Gaussian noise on its gradient.

    .. math:: L(w) = \tfrac12 \sum_i h_i (w_i - w^*_i)^2 + \sigma \langle \xi_k, w \rangle

    Under gradient descent w_k - w^* = (1 - lr h)^k (w_0 - w^*), without noise.

    Args:
      curvature: h, the eigenvalues of the Hessian.
      minimum: w^*.
      noise: sigma, the standard deviation of each coordinate of the gradient's noise.

    Returns:
      The task; weights start from a standard normal law, times `init_scale` of the variety.

    Raises:
      ValueError: for curvatures that are no vector.

    >>> task = quadratic(jnp.array([1.0, 4.0]), minimum=1.0)
    >>> float(task.evaluate(jnp.array([3.0, 2.0]), task.data)["loss"])  # (1 * 2^2 + 4 * 1^2) / 2
    4.0
    """
    curvature = jnp.asarray(curvature)
    if curvature.ndim != 1:
        raise ValueError(f"curvature: expected one number a coordinate, [dim], got shape {curvature.shape}")
    if not jnp.issubdtype(curvature.dtype, jnp.floating):
        curvature = curvature.astype(jnp.float32)
    minimum = jnp.broadcast_to(minimum, curvature.shape)

    def init(key, variety=None):
        return (variety or {}).get("init_scale", 1.0) * jax.random.normal(key, curvature.shape, curvature.dtype)

    def draws(key, num_steps, variety=None):
        return jax.random.split(key, num_steps)

    @jax.default_matmul_precision("highest")
    def loss(weights, data, draw):
        value = evaluate(weights, data)["loss"]
        return value + noise * jax.random.normal(draw, weights.shape, weights.dtype) @ weights if noise else value

    def evaluate(weights, split):
        return {"loss": 0.5 * jnp.sum(split["curvature"] * (weights - split["minimum"]) ** 2)}

    return Task({"curvature": curvature, "minimum": minimum}, init, draws, loss, evaluate)
