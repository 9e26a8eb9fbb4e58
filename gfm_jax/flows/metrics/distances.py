"""Distances between two sets of samples.

Samples may be of any real dtype; all is computed in float32 or better, about the mean of both sets, on
which no distance depends.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from gfm_jax.checks import as_points, check_count, check_finite, is_traced

__all__ = ["exact_wasserstein", "frechet", "mmd", "sliced_wasserstein"]

HIGHEST = jax.lax.Precision.HIGHEST


def sliced_wasserstein(
    key: Array,
    x: Shaped[Array | np.ndarray, "num dim"],
    y: Shaped[Array | np.ndarray, "num dim"],
    num_directions: int = 128,
) -> Float[Array, ""]:
    r"""The 2-Wasserstein distance along random lines, where it only takes sorting.

    .. math:: \sqrt{E_\theta W_2^2(\langle\theta, x\rangle, \langle\theta, y\rangle)}

    Args:
      key: randomness of the directions, uniform on the sphere.
      x, y: as many samples of each.
      num_directions: lines, at least 1.

    Returns:
      The distance, in the units of the samples.

    Raises:
      ValueError: for other numbers of samples, or some that are not finite.

    >>> x = jnp.array([[0.0], [1.0]])
    >>> round(float(jax.jit(sliced_wasserstein)(jax.random.key(0), x, x + 3)), 3)
    3.0
    """
    x, y = _both(x, y, same_number=True)
    x, y, scale = _centred(x, y)
    directions = jax.random.normal(key, (check_count("num_directions", num_directions), x.shape[1]))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    along = lambda points: jnp.sort(jnp.matmul(points, directions.T, precision=HIGHEST), axis=0)
    apart = (along(x) - along(y)).ravel()
    return scale * optax.safe_norm(apart, 0.0) / jnp.sqrt(apart.size)  # its derivative is 0 where it is 0


def exact_wasserstein(x, y) -> float:
    r"""The 2-Wasserstein distance of two empirical laws of equally many samples, by SciPy's assignment on the host.

    .. math:: \sqrt{\min_\pi \frac1n \sum_i | x^{(i)} - y^{(\pi(i))} |^2}

    Its cost grows with the cube of the number: some thousands of samples at most.

    Args:
      x, y: as many samples of each, [num, dim].

    Returns:
      The distance, in the units of the samples.

    Raises:
      ValueError: for other numbers of samples, or some that are not finite.

    >>> round(exact_wasserstein(jnp.array([[0.0], [1.0]]), jnp.array([[4.0], [3.0]])), 3)
    3.0
    """
    from scipy.optimize import linear_sum_assignment

    for name, points in (("x", x), ("y", y)):
        check_finite(name, as_points(name, points))
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape:
        raise ValueError(f"x, y: expected as many samples of each, got {x.shape} and {y.shape}")
    centre = (x.mean(0) + y.mean(0)) / 2
    x, y = x - centre, y - centre
    cost = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    _, assigned = linear_sum_assignment(cost)
    return float(np.sqrt(((x - y[assigned]) ** 2).sum() / len(x)))


def mmd(
    x: Shaped[Array | np.ndarray, "num dim"],
    y: Shaped[Array | np.ndarray, "others dim"],
    bandwidth: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
    r"""The squared maximum mean discrepancy with a Gaussian kernel, without bias: it may fall below zero.

    .. math:: E k(x, x') + E k(y, y') - 2 E k(x, y), \qquad k(a, b) = \exp(-|a - b|^2 / 2 h^2)

    Args:
      x, y: samples, at least two of each.
      bandwidth: h > 0; by default the root of half the mean squared distance between x and y.

    Returns:
      The discrepancy; 0 where all samples are one point.

    Raises:
      ValueError: for fewer samples, samples of different dimensions or not finite, or a bandwidth that is not positive.

    >>> round(float(jax.jit(mmd)(jnp.zeros((5, 2)), jnp.full((4, 2), 9.0), 1.0)), 3)  # 1 + 1 - 2 exp(-81)
    2.0
    """
    x, y = _both(x, y, least=2)
    if bandwidth is not None and not is_traced(bandwidth) and not 0 < bandwidth < np.inf:
        raise ValueError(f"bandwidth: expected a positive number, got {bandwidth}")
    x, y, scale = _centred(x, y)

    def square(a, b):
        squares = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * jnp.matmul(a, b.T, precision=HIGHEST)
        return jnp.maximum(squares, 0)

    between = square(x, y)
    h2 = jnp.mean(between) / 2 if bandwidth is None else jnp.square(bandwidth / scale)
    h2 = jnp.where(h2 > 0, h2, 1)

    def within(a):
        kernel = jnp.exp(-square(a, a) / (2 * h2))
        return (kernel.sum() - jnp.trace(kernel)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * jnp.exp(-between / (2 * h2)).mean()


@jax.default_matmul_precision("highest")
def frechet(x: Shaped[Array | np.ndarray, "num dim"], y: Shaped[Array | np.ndarray, "others dim"]) -> Float[Array, ""]:
    r"""The squared Frechet distance between Gaussians fitted to two sets of features.

    .. math:: |\mu_x - \mu_y|^2 + \mathrm{tr}(\Sigma_x + \Sigma_y - 2 (\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2})

    With finitely many samples two sets of one law do not score zero: compare at equal numbers.

    Args:
      x, y: features, at least two samples of each.

    Returns:
      The squared distance.

    Raises:
      ValueError: for fewer samples, samples of different dimensions or not finite.

    >>> x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> round(float(jax.jit(frechet)(x, x + jnp.array([3.0, 0.0]))), 3)
    9.0
    """
    x, y = _both(x, y, least=2)
    x, y, scale = _centred(x, y)
    mean_x, mean_y = x.mean(0), y.mean(0)
    root_x = (x - mean_x[None]) / jnp.sqrt(len(x) - 1)
    root_y = (y - mean_y[None]) / jnp.sqrt(len(y) - 1)
    # tr (Sx^1/2 Sy Sx^1/2)^1/2 is the sum of the singular values of root_y root_x', in dim x dim by way of QR.
    cross = jnp.linalg.qr(root_y, mode="r") @ jnp.linalg.qr(root_x, mode="r").T
    overlap = jnp.linalg.svd(cross, compute_uv=False).sum()
    return scale**2 * (jnp.sum((mean_x - mean_y) ** 2) + jnp.sum(root_x**2) + jnp.sum(root_y**2) - 2 * overlap)


def _both(x, y, *, least=1, same_number=False):
    x, y = as_points("x", x), as_points("y", y)
    check_finite("x", x)
    check_finite("y", y)
    if same_number and x.shape != y.shape:
        raise ValueError(f"x, y: expected as many samples of each, got {x.shape} and {y.shape}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x, y: expected samples of one dimension, got {x.shape} and {y.shape}")
    if len(x) < least or len(y) < least:
        raise ValueError(f"x, y: expected at least two samples of each, got {len(x)} and {len(y)}")
    return x, y


def _centred(x, y):
    """Both about the middle of their means, in units of the largest coordinate, and that unit."""
    centre = (x.mean(0) + y.mean(0)) / 2
    x, y = x - centre[None], y - centre[None]
    largest = jnp.maximum(jnp.abs(x).max(), jnp.abs(y).max())
    scale = jnp.where(largest > 0, largest, 1)
    return x / scale, y / scale, scale
