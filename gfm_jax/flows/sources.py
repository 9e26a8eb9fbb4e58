"""Gaussian laws that paths start from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gfm_jax.checks import as_points, check_count, check_finite, is_traced

__all__ = ["GaussianSource", "draw_gaussian", "fit_gaussian", "unit_gaussian"]


class GaussianSource(NamedTuple):
    """N(mean, factor factor^T)."""

    mean: Float[Array, " dim"]
    factor: Float[Array, "dim dim"]


def unit_gaussian(like: Float[Array, " dim"]) -> GaussianSource:
    """N(0, I), in as many dimensions as the point has.

    >>> unit_gaussian(jnp.ones(2)).factor.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return GaussianSource(jnp.zeros_like(like), jnp.eye(len(like), dtype=like.dtype))


def fit_gaussian(points: Shaped[Array | np.ndarray, "num dim"]) -> GaussianSource:
    """The Gaussian of the points' mean and covariance, which may be singular; on the host, in double precision.

    Args:
      points: at least two, of any real dtype.

    Returns:
      The Gaussian; its covariance is that of numpy.cov, over num - 1.

    Raises:
      ValueError: for fewer points, or some that are not finite.

    >>> source = fit_gaussian(jnp.array([[1.0], [3.0]]))
    >>> float(source.mean[0]), round(float(source.factor[0, 0] ** 2), 3)  # mean and variance
    (2.0, 2.0)
    """
    points = as_points("points", points, least=2)
    check_finite("points", points)
    values = np.asarray(points, np.float64)
    variance, directions = np.linalg.eigh(np.cov(values.T).reshape(points.shape[1], -1))
    factor = directions * np.sqrt(np.maximum(variance, 0))[None]
    return GaussianSource(jnp.asarray(values.mean(0), points.dtype), jnp.asarray(factor, points.dtype))


@jax.default_matmul_precision("highest")
def draw_gaussian(
    key: Array, source: GaussianSource, num: int, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "num dim"]:
    r"""Points of it, of a deviation that the temperature scales.

    .. math:: x = \mu + T F n, \qquad n \sim N(0, I)

    Args:
      key: randomness.
      source: the Gaussian.
      num: how many points, at least 1.
      temperature: T, at least 0.

    Returns:
      The points, [num, dim].

    Raises:
      ValueError: for a number below 1 or a negative temperature.

    >>> source = GaussianSource(jnp.array([1.0, 2.0]), jnp.eye(2))
    >>> draw_gaussian(jax.random.key(0), source, 5).shape
    (5, 2)
    >>> draw_gaussian(jax.random.key(0), source, 1, temperature=0.0).tolist()
    [[1.0, 2.0]]
    """
    num = check_count("num", num)
    if not is_traced(temperature) and not 0 <= temperature < np.inf:
        raise ValueError(f"temperature: expected a number of at least 0, got {temperature}")
    noise = jax.random.normal(key, (num, len(source.mean)), source.mean.dtype)
    return source.mean[None] + temperature * noise @ source.factor.T
