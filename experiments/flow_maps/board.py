"""The checkerboard: eight squares of a 4x4 board on [-1, 1]^2, its density on a grid, and points to learn from."""

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from gfm_jax.datasets import checkerboard
from gfm_jax.flows import optimal_transport

__all__ = ["LOWER", "STD", "UPPER", "density", "draw_pool"]

LOWER = np.array([[column, row] for row in range(4) for column in range(row % 2, 4, 2)], np.float32) / 2 - 1
UPPER = LOWER + np.float32(0.5)
STD = 0.5775  # of each coordinate: 1/sqrt(3); the source is as wide


def density(bins: int) -> jnp.ndarray:
    """The density at the centre of every bin, times its area: [bins, bins], x first.

    As published: where an edge of a square runs through the centres of bins, as with 50 of them, they count as full, though
    half of their mass is missing; exact samples then score .066 and not .009.
    """
    centre = (np.arange(bins) + 0.5) * 2 / bins - 1
    inside = (centre >= LOWER[..., None] - 1e-9) & (centre < UPPER[..., None] - 1e-6)  # [squares, 2, bins]
    covered = np.einsum("kx,ky->xy", inside[:, 0], inside[:, 1])
    return jnp.asarray(covered * 0.5 * (2 / bins) ** 2, jnp.float32)


def draw_pool(config) -> tuple[np.ndarray, np.ndarray | None]:
    """Points of the board, and sources paired with them; None where any source goes with any point."""
    key_points, key_sources = jax.random.split(jax.random.key(config.seed))
    x_1 = np.asarray(checkerboard(key_points, config.num_points))
    if config.coupling == "independent":
        return x_1, None
    x_0 = np.asarray(STD * jax.random.normal(key_sources, x_1.shape))
    index = []
    for start in tqdm(range(0, len(x_1), 100 * config.block), desc="pair sources with points", leave=False):
        rows = slice(start, start + 100 * config.block)
        index.append(start + optimal_transport(x_0[rows], x_1[rows], block=config.block))
    return x_1[np.concatenate(index)], x_0
