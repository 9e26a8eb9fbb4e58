"""Low-rank adapters of a frozen backbone, as codes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Codec, Layout, Procedure
from gfm_jax.pytrees import output_axes
from gfm_jax.weights.linear import check_length, check_weights, wide

__all__ = ["low_rank"]


class Adapter(NamedTuple):
    """Where a leaf lies in the flat weights and in the code, and the matrix that it is taken as."""

    start: int
    size: int
    code: int
    rows: int
    columns: int
    rank: int  # 0 where the leaf is kept whole
    transposed: bool  # whether the leaf lies in memory as [units, incoming]


def low_rank(layout: Layout, backbone: Float[Array, " dim"], rank: int) -> Codec:
    r"""What a network adds to a backbone, each matrix by its best approximation of a low rank.

    .. math:: W = W_0 + A B, \qquad A = U \sqrt{S}, \; B = \sqrt{S} V^\top

    from the singular value decomposition of W - W_0, its signs such that the entries of every column of A sum to something
    positive. Kernels are taken as matrices [incoming, units], the units along the tensor's output axis (`pytrees.output_axes`);
    vectors, such as biases, are kept whole.

    Weights of networks that were trained as adapters come back exactly. Such runs are recorded with the factors as weights:
    `Network(init, lambda z, x: apply(codec.decode((), z), x))`, with an `init` whose B is zero.

    Args:
      layout: of the flat weights.
      backbone: W_0, that stays as it is.
      rank: of every factor, at least 1; matrices that are no larger than their factors are kept whole.

    Returns:
      A codec; its fit only checks the weights.

    Raises:
      ValueError: for a rank below 1, or a backbone or weights of another size than the layout's.

    >>> codec = low_rank(Layout(("dense/kernel",), ((4, 4),)), jnp.zeros(16), rank=1)
    >>> z = codec.encode((), jnp.ones(16))  # a matrix of rank 1
    >>> z.shape, codec.decode((), z).round().tolist()[:2]
    ((8,), [1.0, 1.0])

    Low-rank adaptation, arXiv 2106.09685.
    """
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    if backbone.shape != (layout.dim,):
        raise ValueError(f"backbone: expected the {layout.dim} weights of the layout, got shape {backbone.shape}")
    adapters, backbone = _adapters(layout, rank), wide(backbone)

    def fit(key, weights, *, folder, progress):
        check_weights(weights, 1)
        if weights.shape[1] != layout.dim:
            raise ValueError(
                f"weights: expected the {layout.dim} of the layout for each network, got {weights.shape[1]}"
            )
        return ()

    def encode(params, w):
        check_length("weights", w, backbone)
        change, codes, done = wide(w) - backbone, [], 0.0
        for a in adapters:
            found, done = _factors(a, change[a.start : a.start + a.size], done)
            codes.append(found)
        return jnp.concatenate(codes)

    def decode(params, z):
        return backbone + jnp.concatenate([_product(a, z) for a in adapters])

    return Codec(Procedure(fit), encode, decode)


def _adapters(layout, rank):
    found, start, code = [], 0, 0
    for shape, size, axis in zip(layout.shapes, layout.sizes, output_axes(layout), strict=True):
        columns = shape[axis] if shape else 1
        rows = size // max(columns, 1)
        own = rank if len(shape) > 1 and rank * (rows + columns) < size else 0
        found.append(Adapter(start, size, code, rows, columns, own, axis == 0))
        start, code = start + size, code + (own * (rows + columns) if own else size)
    return tuple(found)


def _factors(a, change, done):
    """The code of a leaf, and something that is known when that is.

    A decomposition starts when the one before has ended: two batched ones at once wait for one another's threads on CPU, for
    ever, with jaxlib 0.10.
    """
    if not a.rank:
        return change, done
    matrix = change.reshape(a.columns, a.rows).T if a.transposed else change.reshape(a.rows, a.columns)
    matrix = matrix + 0 * done
    u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
    sign = jnp.where(u[:, : a.rank].sum(0) < 0, -1.0, 1.0)
    root = sign * jnp.sqrt(s[: a.rank])
    return jnp.concatenate([(u[:, : a.rank] * root).ravel(), (root[:, None] * v[: a.rank]).ravel()]), s[0]


@jax.default_matmul_precision("highest")
def _product(a, z):
    if not a.rank:
        return jax.lax.slice(z, (a.code,), (a.code + a.size,))
    middle, end = a.code + a.rows * a.rank, a.code + (a.rows + a.columns) * a.rank
    matrix = z[a.code : middle].reshape(a.rows, a.rank) @ z[middle:end].reshape(a.rank, a.columns)
    return (matrix.T if a.transposed else matrix).ravel()
