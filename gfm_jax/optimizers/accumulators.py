"""The dtype of accumulators, float32 at least: sums of many small terms are lost in bfloat16."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

__all__ = ["as_accumulator", "zero_accumulators"]


def as_accumulator(leaf: Array) -> Array:
    """The same numbers, in float32 where they had fewer bits.

    >>> as_accumulator(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def zero_accumulators(tree: PyTree) -> PyTree:
    """Zeros in the shapes of a tree, in float32 at least, and where it lies on the same devices.

    >>> zero_accumulators({"w": jnp.ones(2, jnp.bfloat16)})
    {'w': Array([0., 0.], dtype=float32)}
    """
    return jax.tree.map(lambda leaf: as_accumulator(jnp.zeros_like(leaf)), tree)
