"""Small sequence models: [length, channels] to one vector."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

__all__ = ["LSTM", "Transformer", "attend"]


def attend(x, width: int, num_heads: int, i: int):
    """Block i of a transformer, inside a module of its own: self-attention and a perceptron, each after a norm."""
    y = nn.LayerNorm(name=f"norm_{i}a")(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads, name=f"attention_{i}")(y)
    y = nn.gelu(nn.Dense(2 * width, name=f"up_{i}")(nn.LayerNorm(name=f"norm_{i}b")(x)))
    return x + nn.Dense(width, name=f"down_{i}")(y)


class LSTM(nn.Module):
    """The last state of a long short-term memory, read out linearly.

    Attributes:
      width: of the state.
      num_outputs: of the readout, which starts at zero.
    """

    width: int = 32
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x):
        states: Any = nn.RNN(nn.OptimizedLSTMCell(self.width))(x)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="output")(states[..., -1, :])


class Transformer(nn.Module):
    """Pre-norm self-attention over the sequence with learned positions, read out at its last element.

    Attributes:
      width, num_heads, num_layers: of the blocks.
      num_outputs: of the readout, which starts at zero.
    """

    width: int = 32
    num_heads: int = 4
    num_layers: int = 1
    num_outputs: int = 1

    @nn.compact
    def __call__(self, x):
        positions = self.param("positions", nn.initializers.normal(0.02), (x.shape[-2], self.width))
        x = nn.Dense(self.width, name="embed")(x)
        x = x + jnp.expand_dims(positions, tuple(range(x.ndim - 2)))
        for i in range(self.num_layers):
            x = attend(x, self.width, self.num_heads, i)
        last = nn.LayerNorm(name="norm")(jnp.take(x, -1, axis=-2))
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="output")(last)
