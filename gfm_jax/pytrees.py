"""Weights as pytrees and as flat vectors."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Layout

__all__ = ["layout_of", "map_rows", "place", "ravel", "segment_ids", "unravel"]


def layout_of(weights: PyTree) -> Layout:
    """The layout of a pytree of weights once it is flat.

    Args:
      weights: a pytree of arrays (or of their shapes, as `jax.eval_shape` returns it).

    Returns:
      Names such as "hidden_0/kernel" and shapes, in the order of `ravel`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if not leaves:
        raise ValueError("weights: expected a pytree with at least one array, got one without leaves")
    names = tuple("/".join(_name(key) for key in path if _name(key) != "params") for path, _ in leaves)
    return Layout(names, tuple(tuple(leaf.shape) for _, leaf in leaves))


def _name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def ravel(weights: PyTree) -> Float[Array, " dim"]:
    """All leaves of a pytree of weights as one flat vector."""
    return ravel_pytree(weights)[0]


def unravel(like: PyTree, vector: Float[Array, " dim"]) -> PyTree:
    """A flat vector as a pytree of the same structure, shapes and dtypes as `like`.

    Raises:
      ValueError: where the sizes differ.
    """
    leaves, treedef = jax.tree.flatten(like)
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"vector: expected shape ({sum(sizes)},) to fill the weights, got {vector.shape}")
    stops = list(itertools.accumulate(sizes))
    pieces = [vector[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]
    return treedef.unflatten(
        piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, leaves, strict=True)
    )


def segment_ids(layout: Layout) -> np.ndarray:
    """For each coordinate of the flat vector, the index of its tensor: int32 [dim]."""
    return np.repeat(np.arange(len(layout.sizes), dtype=np.int32), layout.sizes)


def place(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """`jax.device_put`, also where the devices of a sharding belong to several hosts, each of which holds the whole tree."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def map_rows(function: Callable, rows: PyTree, batch_size: int) -> PyTree:
    """`jax.lax.map` over the leading axis in full batches: the last one is filled up with the first rows.

    A batch of another size would be compiled apart, in the time of all the others.

    Args:
      function: of one row.
      rows: arrays with the same leading axis.
      batch_size: how many rows are worked out side by side.
    """
    num = len(jax.tree.leaves(rows)[0])
    size = min(batch_size, num)
    index = jnp.arange(-(-num // size) * size) % num
    row = lambda i: jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], rows)
    found = jax.lax.map(lambda i: function(row(i)), index, batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:num], found)
