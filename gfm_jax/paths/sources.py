"""Gaussian laws that paths start from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["GaussianSource", "draw_gaussian", "fit_gaussian", "unit_gaussian"]


class GaussianSource(NamedTuple):
    """N(mean, factor factor^T)."""

    mean: Float[Array, " dim"]
    factor: Float[Array, "dim dim"]


def unit_gaussian(like: Float[Array, " dim"]) -> GaussianSource:
    """N(0, I), in as many dimensions as the point has."""
    return GaussianSource(jnp.zeros_like(like), jnp.eye(len(like), dtype=like.dtype))


def fit_gaussian(points: Float[Array, "num dim"]) -> GaussianSource:
    """The Gaussian of the points' mean and covariance, which may be singular."""
    variance, directions = np.linalg.eigh(np.cov(np.asarray(points, np.float64).T).reshape(points.shape[1], -1))
    factor = directions * np.sqrt(np.maximum(variance, 0))
    return GaussianSource(points.mean(0), jnp.asarray(factor, points.dtype))


def draw_gaussian(
    key: Array, source: GaussianSource, num: int, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "num dim"]:
    r"""Points of it, of a deviation that the temperature scales.

    .. math:: x = \mu + T F n, \qquad n \sim N(0, I)
    """
    noise = jax.random.normal(key, (num, len(source.mean)), source.mean.dtype)
    return source.mean + temperature * noise @ source.factor.T
