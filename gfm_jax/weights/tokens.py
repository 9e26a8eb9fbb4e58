"""Weights as tokens: a set of vectors of one length, one or more for every unit, whatever the widths of the network."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Layout
from gfm_jax.layers import layer_of
from gfm_jax.pytrees import output_axes

__all__ = ["Tokens", "from_tokens", "to_tokens", "tokens_of"]


class Tokens(NamedTuple):
    """Which weights make which token.

    Attributes:
      index: of each token the places in the flat vector, -1 where it is filled up with zeros, [num, size].
      layer, unit, chunk: of each token, the layer and the unit whose incoming weights it holds, and which stretch of them.
    """

    index: np.ndarray
    layer: np.ndarray
    unit: np.ndarray
    chunk: np.ndarray


def tokens_of(layout: Layout, size: int | None = None) -> Tokens:
    """Divides weights among tokens: a unit's are its bias, then its incoming weights, cut into stretches of one size.

    Tensors of one layer, such as "hidden_0/bias" and "hidden_0/kernel", go together; its units run along the output axis of
    each (`pytrees.output_axes`: the last in flax's convention, the first in torch's). Vectors, such as the bias, come first
    in a token: what a place of a token means then does not depend on how many weights there are.

    Args:
      layout: of the flat weights.
      size: of a token; by default as many weights as the largest unit has.

    Returns:
      Which weights make which token.

    Raises:
      ValueError: for a size below 1.

    >>> layout = Layout(("hidden_0/bias", "hidden_0/kernel"), ((3,), (2, 3)))
    >>> tokens_of(layout).index.tolist()  # of each of three units its bias and its two incoming weights
    [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    """
    if size is not None and size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    starts = np.cumsum([0, *layout.sizes])
    layers: dict[tuple[str, int], list[tuple[bool, np.ndarray]]] = {}
    tensors = zip(layout.names, layout.shapes, starts, layout.sizes, output_axes(layout), strict=False)
    for name, shape, start, length, axis in tensors:
        if not length:
            continue
        places, units = np.arange(start, start + length), shape[axis] if shape else 1
        incoming = places.reshape(units, -1) if axis == 0 else places.reshape(-1, units).T  # [units, weights]
        layers.setdefault((layer_of(name), units), []).append((len(shape) > 1, incoming))
    vectors_first = (sorted(parts, key=lambda part: part[0]) for parts in layers.values())
    of_layer = [np.concatenate([incoming for _, incoming in parts], axis=1) for parts in vectors_first]
    size = int(max(places.shape[1] for places in of_layer)) if size is None else size
    index, where = [], []
    for layer, places in enumerate(of_layer):
        for unit, own in enumerate(places):
            for chunk, begin in enumerate(range(0, len(own), size)):
                stretch = own[begin : begin + size]
                index.append(np.pad(stretch, (0, size - len(stretch)), constant_values=-1))
                where.append((layer, unit, chunk))
    return Tokens(np.array(index), *np.array(where).T)


def to_tokens(tokens: Tokens, weights: Float[Array, " dim"]) -> Float[Array, "num size"]:
    """The tokens of one network.

    >>> tokens = tokens_of(Layout(("kernel",), ((2, 3),)))
    >>> to_tokens(tokens, jnp.arange(6.0)).tolist()
    [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    return jnp.where(tokens.index >= 0, weights[tokens.index], 0)


def from_tokens(tokens: Tokens, vectors: Float[Array, "num size"]) -> Float[Array, " dim"]:
    """The weights that the tokens stand for: the inverse of `to_tokens`.

    >>> tokens = tokens_of(Layout(("kernel",), ((2, 3),)))
    >>> from_tokens(tokens, jnp.array([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    real = tokens.index >= 0
    order = np.argsort(tokens.index[real])
    return vectors[np.nonzero(real)][order]
