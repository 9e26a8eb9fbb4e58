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

    Returns:
      What `network.init` returns, such as `{"params": ...}`.

    >>> import jax, jax.numpy as jnp
    >>> from gfm_jax.networks import MLP
    >>> variables = init_network(MLP((2,)), jax.random.key(0), jnp.ones((1, 3)))
    >>> jax.tree.map(jnp.shape, variables)
    {'params': {'output': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    return _init(network, key, *inputs)


# It runs once and draws at random some dozens of times: XLA would take ten times as long to optimise it as to compile it.
_init = quick_jit(lambda network, key, *inputs: network.init(key, *inputs), static_argnums=0)
