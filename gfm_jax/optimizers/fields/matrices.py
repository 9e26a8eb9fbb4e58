"""Fields of optimizers that see matrices as matrices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import OptimizerField
from gfm_jax.optimizers.fields.leaves import Decay, check_decays, field_of_leaves, zeros

__all__ = ["matrix_sign", "muon"]


@jax.custom_jvp
@jax.default_matmul_precision("highest")
def matrix_sign(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    r"""The orthogonal factor of a matrix: with M = U diag(s) V^T, msign(M) = U V^T, and zero where s is.

    Its derivative, in directions that leave the rank as it is:

    .. math:: d(U V^\top) = U \left[ \frac{U^\top dM V - V^\top dM^\top U}{s_i + s_j} \right] V^\top
       + (I - U U^\top) \, dM \, V s^{-1} V^\top + U s^{-1} U^\top dM \, (I - V V^\top)

    Args:
      matrix: real, of any rank.

    >>> round(float(matrix_sign(3 * jnp.eye(2))[1, 1]), 4)
    1.0
    """
    u, s, vt = _svd(matrix)
    return (u * _positive(s)) @ vt


@matrix_sign.defjvp
@jax.default_matmul_precision("highest")
def _(primals, tangents):
    u, s, vt = _svd(*primals)
    kept = _positive(s)
    u, vt, inverse = u * kept, vt * kept[:, None], jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    [change] = tangents
    inner = u.T @ change @ vt.T
    sums = jnp.where(kept[:, None] & kept, s[:, None] + s, 1)
    turned = u @ ((inner - inner.T) / sums) @ vt
    left = (change @ vt.T - u @ inner) * inverse @ vt
    right = u @ (inverse[:, None] * (u.T @ change - inner @ vt))
    return u @ vt, turned + left + right


def _positive(s):
    return s > 1e-12 * s.max()


def _svd(matrix):
    """On CPU matrices are decomposed one by one even where there are many of them: two batched decompositions of one program
    wait for one another's threads, for ever, with jaxlib 0.10."""
    thin = functools.partial(jnp.linalg.svd, full_matrices=False)
    return jax.lax.platform_dependent(matrix, cpu=jax.custom_batching.sequential_vmap(thin), default=thin)


def muon(decay: Decay = 0.95, nesterov: bool = True, orthogonalize: Callable = matrix_sign) -> OptimizerField:
    r"""Muon, of matrices only, with optax's `mu`.

    .. math:: W' = -\mathrm{msign}(M), \qquad M' = \frac{G - M}{\tau}

    with M + (lr / tau)(G - M) in the place of M under Nesterov's momentum.

    Args:
      decay: beta of the momentum.
      nesterov: as in `optax.contrib.muon`, whose default it is.
      orthogonalize: `(matrix) -> matrix`: msign, or the polynomial that an implementation has in its place.

    Raises:
      ValueError: in `velocity`, for weights that are no matrix: biases and the like are given to another optimizer.

    >>> field, w = muon(), jnp.ones((2, 2))
    >>> round(float(field.velocity(0.0, w, field.init(w), 3 * jnp.eye(2), 0.1)[0][1, 1]), 4)
    -1.0
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
