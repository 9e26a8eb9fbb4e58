"""All networks of a zoo as codes and back, in one compiled call that knows a codec when it comes again."""

import functools

import jax
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Codec

__all__ = ["decode_all", "encode_all"]


def encode_all(codec: Codec, params: PyTree, weights: Float[Array, "num dim"]) -> Float[Array, "num codes"]:
    """The codes of each."""
    return _map(codec.encode, params, weights)


def decode_all(codec: Codec, params: PyTree, codes: Float[Array, "num codes"]) -> Float[Array, "num dim"]:
    """The weights of each."""
    return _map(codec.decode, params, codes)


@functools.partial(jax.jit, static_argnums=0)
def _map(function, params, points):
    return jax.vmap(functools.partial(function, params))(points)
