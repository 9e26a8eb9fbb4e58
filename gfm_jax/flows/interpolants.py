"""Paths between two points."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from gfm_jax.base import Interpolant, PathSample
from gfm_jax.checks import as_float

__all__ = ["interpolate", "linear", "trigonometric", "variance_preserving"]

linear = Interpolant(alpha=lambda t: 1 - t, beta=lambda t: t)

# alpha^2 + beta^2 = 1 in both: two clocks on one path. The second counts signal, and leaves the noise infinitely fast.
trigonometric = Interpolant(alpha=lambda t: jnp.cos(jnp.pi / 2 * t), beta=lambda t: jnp.sin(jnp.pi / 2 * t))
variance_preserving = Interpolant(alpha=lambda t: jnp.sqrt((1 - t) * (1 + t)), beta=lambda t: t)


def interpolate(
    interpolant: Interpolant, t: Shaped[Array, ""] | float, x_0: Shaped[Array, "*dim"], x_1: Shaped[Array, "*dim"]
) -> PathSample:
    r"""The point at flow time t of a path, and its velocity by forward-mode differentiation.

    .. math:: x_t = \alpha(t) x_0 + \beta(t) x_1, \qquad \dot x_t = \dot\alpha(t) x_0 + \dot\beta(t) x_1

    Args:
      interpolant: the pair (alpha, beta).
      t: flow time in [0, 1].
      x_0, x_1: source and target, of one shape; computed with in float32 or better.

    Returns:
      The sample of the path: t, x_t, its velocity dx_t, x_0 and x_1.

    Raises:
      ValueError: for points of different shapes, or more than one time.

    >>> path = interpolate(linear, 0.25, jnp.array([0.0]), jnp.array([4.0]))
    >>> path.x_t.tolist(), path.dx_t.tolist()
    ([1.0], [4.0])
    """
    x_0, x_1 = as_float("x_0", x_0), as_float("x_1", x_1)
    t = as_float("t", t).astype(jnp.result_type(x_0, x_1))
    if x_0.shape != x_1.shape:
        raise ValueError(f"x_0, x_1: expected points of one shape, got {x_0.shape} and {x_1.shape}")
    if t.ndim:
        raise ValueError(f"t: expected one time, got shape {t.shape}; map with jax.vmap")
    path = lambda t: interpolant.alpha(t) * x_0 + interpolant.beta(t) * x_1
    x_t, dx_t = jax.jvp(path, (t,), (jnp.ones_like(t),))
    return PathSample(t, x_t, dx_t, x_0, x_1)
