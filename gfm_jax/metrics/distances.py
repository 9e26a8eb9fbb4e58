"""Distances between two sets of samples."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["exact_wasserstein", "frechet", "mmd", "sliced_wasserstein"]


def sliced_wasserstein(
    key: Array, x: Float[Array, "num dim"], y: Float[Array, "num dim"], num_directions: int = 128
) -> Float[Array, ""]:
    r"""The 2-Wasserstein distance along random lines, where it only takes sorting.

    .. math:: \sqrt{E_\theta W_2^2(\langle\theta, x\rangle, \langle\theta, y\rangle)}

    Args:
      key: randomness of the directions, uniform on the sphere.
      x, y: as many samples of each.
      num_directions: lines.
    """
    if x.shape != y.shape:
        raise ValueError(f"x, y: expected as many samples of each, got {x.shape} and {y.shape}")
    directions = jax.random.normal(key, (num_directions, x.shape[1]))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    along = lambda points: jnp.sort(points @ directions.T, axis=0)
    return jnp.sqrt(jnp.mean((along(x) - along(y)) ** 2))


def exact_wasserstein(x, y) -> float:
    r"""The 2-Wasserstein distance of two empirical laws of equally many samples, by SciPy's assignment on the host.

    .. math:: \sqrt{\min_\pi \frac1n \sum_i | x^{(i)} - y^{(\pi(i))} |^2}

    Its cost grows with the cube of the number: some thousands of samples at most.
    """
    from scipy.optimize import linear_sum_assignment

    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape:
        raise ValueError(f"x, y: expected as many samples of each, got {x.shape} and {y.shape}")
    cost = ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T) / len(x)
    return float(np.sqrt(max(cost[linear_sum_assignment(cost)].sum(), 0)))


def mmd(
    x: Float[Array, "num dim"], y: Float[Array, "others dim"], bandwidth: Float[Array, ""] | float | None = None
) -> Float[Array, ""]:
    r"""The squared maximum mean discrepancy with a Gaussian kernel, without bias: it may fall below zero.

    .. math:: E k(x, x') + E k(y, y') - 2 E k(x, y), \qquad k(a, b) = \exp(-|a - b|^2 / 2 h^2)

    Args:
      x, y: samples, at least two of each.
      bandwidth: h; by default the root of half the mean squared distance between x and y.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"x, y: expected at least two samples of each, got {len(x)} and {len(y)}")
    square = lambda a, b: jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1) - 2 * a @ b.T
    between = square(x, y)
    h2 = jnp.mean(between) / 2 if bandwidth is None else bandwidth**2
    within = lambda a: (jnp.exp(-square(a, a) / (2 * h2)).sum() - len(a)) / (len(a) * (len(a) - 1))
    return within(x) + within(y) - 2 * jnp.exp(-between / (2 * h2)).mean()


def frechet(x: Float[Array, "num dim"], y: Float[Array, "others dim"]) -> Float[Array, ""]:
    r"""The squared Frechet distance between Gaussians fitted to two sets of features.

    .. math:: |\mu_x - \mu_y|^2 + \mathrm{tr}(\Sigma_x + \Sigma_y - 2 (\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2})

    With finitely many samples two sets of one law do not score zero: compare at equal numbers.
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    root_x = (x - mean_x) / jnp.sqrt(len(x) - 1)
    root_y = (y - mean_y) / jnp.sqrt(len(y) - 1)
    # tr (Sx^1/2 Sy Sx^1/2)^1/2 is the sum of the singular values of root_y root_x', in dim x dim by way of QR.
    cross = jnp.linalg.qr(root_y, mode="r") @ jnp.linalg.qr(root_x, mode="r").T
    overlap = jnp.linalg.svd(cross, compute_uv=False).sum()
    return jnp.sum((mean_x - mean_y) ** 2) + jnp.sum(root_x**2) + jnp.sum(root_y**2) - 2 * overlap
