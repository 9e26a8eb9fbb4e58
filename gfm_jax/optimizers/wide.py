"""What optimizers remember, in float32 at least: sums of many small terms are lost in bfloat16."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

__all__ = ["wide", "wide_zeros"]


def wide(leaf: Array) -> Array:
    """The same numbers, in float32 where they had fewer bits."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def wide_zeros(tree: PyTree) -> PyTree:
    """Zeros in the shapes of a tree, in float32 at least, and where it lies on the same devices."""
    return jax.tree.map(lambda leaf: wide(jnp.zeros_like(leaf)), tree)
