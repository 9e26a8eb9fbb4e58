"""Parameters to start from, soon."""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, PyTree

__all__ = ["init_network"]


# What runs once and draws at random some dozens of times would take ten times as long to optimise as to compile.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def init_network(network: nn.Module, key: Array, *inputs: PyTree) -> PyTree:
    """`network.init(key, *inputs)`, in one program that compiles quickly.

    Args:
      network: a flax module.
      key: randomness.
      *inputs: as the module is called: their shapes count.
    """
    return network.init(key, *inputs)
