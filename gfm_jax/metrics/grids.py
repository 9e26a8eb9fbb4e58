"""Samples in the plane against a law that is known, on a grid."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["histogram", "kl_floor", "kl_on_grid", "off_support"]


def histogram(samples: Float[Array, "num 2"], bins: int, half_width: float = 1.0) -> Float[Array, "bins bins"]:
    """Shares of the samples in the bins of [-half_width, half_width]^2; what lies outside is in none."""
    edges = jnp.linspace(-half_width, half_width, bins + 1)
    counts, _, _ = jnp.histogram2d(samples[:, 0], samples[:, 1], bins=(edges, edges))
    return counts / len(samples)


def kl_on_grid(
    mass: Float[Array, "bins bins"], samples: Float[Array, "num 2"], half_width: float = 1.0
) -> Float[Array, ""]:
    r"""KL(p || q) of a law from the histogram q of samples.

    .. math:: \sum_b p_b \log \frac{p_b}{\max(q_b, 1 / 2n)}

    A bin that no sample hit counts as half a hit. With finitely many samples exact ones do not score zero: see `kl_floor`.

    Args:
      mass: p, of each bin; its sum is 1.
      samples: n points.
      half_width: of the square that the bins cover.
    """
    found = jnp.maximum(histogram(samples, mass.shape[0], half_width), 0.5 / len(samples))
    return jnp.sum(jax.scipy.special.rel_entr(mass, found))


def kl_floor(
    key: Array,
    mass: Float[Array, "bins bins"],
    draw: Callable[[Array, int], Array],
    num: int,
    repeats: int = 6,
    half_width: float = 1.0,
) -> Float[Array, " repeats"]:
    """What exact samples score in `kl_on_grid`, `repeats` times: `draw(key, num)` draws them. No model can do better."""
    return jax.lax.map(lambda key: kl_on_grid(mass, draw(key, num), half_width), jax.random.split(key, repeats))


def off_support(
    lower: Float[Array, "boxes dim"], upper: Float[Array, "boxes dim"], samples: Float[Array, "num dim"]
) -> Float[Array, ""]:
    """Share of the samples that lie in none of the boxes."""
    inside = ((samples[:, None] >= lower) & (samples[:, None] <= upper)).all(-1).any(-1)
    return 1 - inside.mean()
