"""Fields of optimizers that see matrices as matrices."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import OptimizerField
from gfm_jax.optimizers.velocity.leaves import check_decays, field_of_leaves, zeros

__all__ = ["matrix_sign", "muon"]


def matrix_sign(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    r"""The orthogonal factor of a matrix: with M = U diag(s) V^T, msign(M) = U V^T, and zero where s is."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return (u * (s > 1e-12 * s.max())) @ vt


def muon(decay: float = 0.95, nesterov: bool = True, orthogonalize: Callable = matrix_sign) -> OptimizerField:
    r"""Muon, of matrices only, with optax's `mu`.

    .. math:: W' = -\mathrm{msign}(M), \qquad M' = \frac{G - M}{\tau}

    with M + (lr / tau)(G - M) in the place of M under Nesterov's momentum.

    Args:
      decay: beta of the momentum.
      nesterov: as in `optax.contrib.muon`, whose default it is.
      orthogonalize: `(matrix) -> matrix`: msign, or the polynomial that an implementation has in its place.

    Raises:
      ValueError: in `velocity`, for weights that are no matrix: biases and the like are given to another optimizer.
    """
    check_decays(decay=decay)

    def velocity(time, w, slots, g, lr):
        if w.ndim != 2:
            raise ValueError(f"weights: expected matrices, got one of shape {w.shape}: give it to another optimizer")
        m, rate = slots["mu"], (1 - decay) / lr
        # Of the sign of M only its direction matters, which starts at the first gradient.
        direction = jnp.where(time > 0, m + (1 - decay) * (g - m) if nesterov else m, g)
        return -orthogonalize(direction), {"mu": rate * (g - m)}

    return field_of_leaves({"mu": zeros}, velocity)
