"""Networks of sets, [num, channels] to one vector: the order of the elements does not matter."""

import flax.linen as nn
import jax.numpy as jnp

from gfm_jax.networks.mlp import MLP
from gfm_jax.networks.sequence import attend

__all__ = ["DeepSet", "SetTransformer", "WithContext"]


class DeepSet(nn.Module):
    r"""The mean of what a perceptron makes of every element, through another perceptron.

    .. math:: \rho\left(\frac1n \sum_i \phi(x_i)\right)

    Attributes:
      width: of the hidden layers.
      num_outputs: of the vector.
    """

    width: int = 128
    num_outputs: int = 64

    @nn.compact
    def __call__(self, x):
        each = MLP((self.width, self.width), nn.gelu, name="each")(x)
        return MLP((self.width, self.num_outputs), nn.gelu, name="all")(each.mean(-2))


class SetTransformer(nn.Module):
    """Pre-norm self-attention without positions, and the mean over the elements.

    Attributes:
      width, num_heads, num_layers: of the blocks.
      num_outputs: of the vector.
    """

    width: int = 64
    num_heads: int = 4
    num_layers: int = 2
    num_outputs: int = 64

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x)
        for i in range(self.num_layers):
            x = attend(x, self.width, self.num_heads, i)
        return nn.Dense(self.num_outputs, name="output")(nn.LayerNorm(name="norm")(x).mean(-2))


class WithContext(nn.Module):
    """A velocity or a flow map whose condition is a set, learned together with what it makes of the set.

    Attributes:
      network: a module `(times, x, cond) -> [dim]`.
      context: a module from [tokens, channels] to the network's condition.
      num_tokens: how many elements the condition, a flat vector, consists of.
    """

    network: nn.Module
    context: nn.Module
    num_tokens: int

    def __call__(self, times, x, cond):
        if cond.shape[-1] % self.num_tokens:
            raise ValueError(f"cond: expected {self.num_tokens} tokens of one length, got {cond.shape[-1]} numbers")
        return self.network(times, x, self.context(jnp.reshape(cond, (*cond.shape[:-1], self.num_tokens, -1))))
