"""Samples in the plane against a law that is known, on a grid."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gfm_jax.checks import as_float, as_points, check_count, check_finite, is_traced

__all__ = ["histogram", "kl_floor", "kl_on_grid", "off_support"]


def histogram(
    samples: Shaped[Array | np.ndarray, "num 2"], bins: int, half_width: float = 1.0
) -> Float[Array, "bins bins"]:
    """Shares of the samples in the bins of [-half_width, half_width]^2; what lies outside is in none.

    Args:
      samples: at least one point.
      bins: along each axis.
      half_width: of the square that the bins cover, above 0.

    Returns:
      The shares, [bins, bins], the first axis along the first coordinate.

    Raises:
      ValueError: for samples that are not in the plane or not finite, fewer than one bin, or a width that is not positive.

    >>> histogram(jnp.array([[-0.5, -0.5], [0.5, 0.5]]), bins=2).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    samples, bins = as_points("samples", samples), check_count("bins", bins)
    if samples.shape[1] != 2:
        raise ValueError(f"samples: expected points in the plane [num, 2], got shape {samples.shape}")
    check_finite("samples", samples)
    if not half_width > 0:
        raise ValueError(f"half_width: expected more than 0, got {half_width}")
    edges = jnp.linspace(-half_width, half_width, bins + 1)
    counts, _, _ = jnp.histogram2d(samples[:, 0], samples[:, 1], bins=(edges, edges))
    return counts / len(samples)


def kl_on_grid(
    mass: Shaped[Array | np.ndarray, "bins bins"],
    samples: Shaped[Array | np.ndarray, "num 2"],
    half_width: float = 1.0,
) -> Float[Array, ""]:
    r"""KL(p || q) of a law from the histogram q of samples.

    .. math:: \sum_b p_b \log \frac{p_b}{\max(q_b, 1 / 2n)}

    A bin that no sample hit counts as half a hit. With finitely many samples exact ones do not score zero: see `kl_floor`.

    Args:
      mass: p, of each bin; its sum is 1.
      samples: n points.
      half_width: of the square that the bins cover.

    Returns:
      The divergence, in nats.

    Raises:
      ValueError: as `histogram`, and for a mass that is no law on a square grid.

    >>> mass = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    >>> round(float(kl_on_grid(mass, jnp.array([[-0.5, -0.5], [0.5, 0.5]]))), 3)  # log 2
    0.693
    """
    mass = as_float("mass", mass)
    if mass.ndim != 2 or mass.shape[0] != mass.shape[1]:
        raise ValueError(f"mass: expected that of each bin [bins, bins], got shape {mass.shape}")
    if not is_traced(mass):
        values = np.asarray(mass)
        if not ((values >= 0).all() and abs(values.sum() - 1) < 0.01):
            raise ValueError(f"mass: expected numbers of at least 0 whose sum is 1, got a sum of {values.sum():.4g}")
    found = jnp.maximum(histogram(samples, mass.shape[0], half_width), 0.5 / len(samples))
    return jnp.sum(jax.scipy.special.rel_entr(mass, found))


def kl_floor(
    key: Array,
    mass: Shaped[Array | np.ndarray, "bins bins"],
    draw: Callable[[Array, int], Array],
    num: int,
    repeats: int = 6,
    half_width: float = 1.0,
) -> Float[Array, " repeats"]:
    """What exact samples score in `kl_on_grid`, `repeats` times: `draw(key, num)` draws them. No model can do better.

    Args:
      key: randomness.
      mass, half_width: as in `kl_on_grid`.
      draw: exact samples in the plane, [num, 2].
      num: how many samples each time, as many as the model is judged by.
      repeats: how often.

    Returns:
      The divergences, in nats.

    >>> draw = lambda key, num: jax.random.uniform(key, (num, 2), minval=-1.0, maxval=1.0)
    >>> kl_floor(jax.random.key(0), jnp.full((2, 2), 0.25), draw, 1000, repeats=3).round(1).tolist()
    [0.0, 0.0, 0.0]
    """
    return jax.lax.map(lambda key: kl_on_grid(mass, draw(key, num), half_width), jax.random.split(key, repeats))


def off_support(
    lower: Shaped[Array | np.ndarray, "boxes dim"],
    upper: Shaped[Array | np.ndarray, "boxes dim"],
    samples: Shaped[Array | np.ndarray, "num dim"],
) -> Float[Array, ""]:
    """Share of the samples that lie in none of the boxes.

    Args:
      lower, upper: corners of the boxes.
      samples: at least one point.

    Returns:
      The share, 0 to 1.

    Raises:
      ValueError: for corners or samples of other shapes, or samples that are not finite.

    >>> float(off_support(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([[0.5, 0.5], [2.0, 2.0]])))
    0.5
    """
    lower, upper, samples = as_points("lower", lower), as_points("upper", upper), as_points("samples", samples)
    if lower.shape != upper.shape or lower.shape[1] != samples.shape[1]:
        shapes = f"{lower.shape}, {upper.shape} and {samples.shape}"
        raise ValueError(f"lower, upper, samples: expected two corners of each box, as wide as samples, got {shapes}")
    check_finite("samples", samples)
    points = samples[:, None]
    inside = ((points >= lower[None]) & (points <= upper[None])).all(-1).any(-1)
    return (~inside).mean()
