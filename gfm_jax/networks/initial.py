"""Initialise a flax module in one program that compiles quickly."""

import flax.linen as nn
from jaxtyping import Array, PyTree

from gfm_jax.compiling import quick_jit

__all__ = ["init_network"]


def init_network(network: nn.Module, key: Array, *inputs: PyTree) -> PyTree:
    """`network.init(key, *inputs)`, in one program that compiles quickly; also inside `jax.jit`, `jax.vmap` and the like.

    Args:
      network: a flax module.
      key: randomness.
      *inputs: as the module is called: their shapes count.
    """
    return _init(network, key, *inputs)


# It runs once and draws at random some dozens of times: XLA would take ten times as long to optimise it as to compile it.
_init = quick_jit(lambda network, key, *inputs: network.init(key, *inputs), static_argnums=0)
