"""Flow matching: regression of a velocity on the velocities of paths."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import PathSample

__all__ = ["flow_matching_loss"]


def flow_matching_loss(
    velocity: Float[Array, "*batch"], path: PathSample, weight: Float[Array, "*batch"] | float = 1.0
) -> Float[Array, ""]:
    r"""Conditional flow matching.

    .. math:: E \; \omega \, | v_\theta(x_t, t) - \dot x_t |^2

    Its minimiser is the conditional mean E[dx_t | x_t, t], the velocity of the marginals.

    Args:
      velocity: v_theta at (t, x_t).
      path: the samples.
      weight: omega, of each sample.
    """
    return jnp.mean(weight * (velocity - path.dx_t) ** 2)
