"""Multilayer perceptrons."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from gfm_jax.networks.embedding import since_first, sinusoids

__all__ = ["MLP", "TimeMLP"]


class MLP(nn.Module):
    """x -> W_L a(... a(W_1 x + b_1) ...) + b_L.

    Attributes:
      widths: the widths of the layers after the input, the output's last.
      activation: applied after every layer but the last.
      zero_output: start the last layer at zero, so that the network starts as the zero function.
    """

    widths: Sequence[int]
    activation: Callable = nn.relu
    zero_output: bool = False

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        *hidden, output = self.widths
        for i, width in enumerate(hidden):
            x = self.activation(nn.Dense(width, name=f"hidden_{i}")(x))
        kernel_init = nn.initializers.zeros if self.zero_output else nn.linear.default_kernel_init
        return nn.Dense(output, kernel_init=kernel_init, name="output")(x)


class TimeMLP(nn.Module):
    """A field as a perceptron: `(times [k], x, cond) -> dx`, of one point, whose coordinates it takes as a vector.

    Attributes:
      widths: of the hidden layers.
      activation: applied after each of them.
      scale: of the points, which are divided by it.
      num_sinusoids: of each time, of its distance from the first for those that follow; 0 gives the network the times.
    """

    widths: Sequence[int] = (256, 256, 256, 256)
    activation: Callable = nn.gelu
    scale: float = 1.0
    num_sinusoids: int = 0

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        super().__post_init__()

    @nn.compact
    def __call__(self, times, x, cond=None):
        if self.num_sinusoids:
            times = sinusoids(since_first(times), self.num_sinusoids).reshape(-1)
        inputs = [times.astype(x.dtype), x.ravel() / self.scale] + ([] if cond is None else [cond])
        out = MLP((*self.widths, x.size), self.activation, name="mlp")(jnp.concatenate(inputs))
        return out.reshape(x.shape)
