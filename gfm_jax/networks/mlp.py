"""Multilayer perceptrons."""

from collections.abc import Callable, Sequence

import flax.linen as nn

__all__ = ["MLP"]


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

    @nn.compact
    def __call__(self, x):
        *hidden, output = self.widths
        for i, width in enumerate(hidden):
            x = self.activation(nn.Dense(width, name=f"hidden_{i}")(x))
        kernel_init = nn.initializers.zeros if self.zero_output else nn.linear.default_kernel_init
        return nn.Dense(output, kernel_init=kernel_init, name="output")(x)
