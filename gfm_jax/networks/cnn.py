"""A small convolutional network that stays fast when hundreds of copies train side by side."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CNN"]

DENSE_PIXELS = 64  # up to this size of an image a convolution is cheaper as one dense matrix product


class CNN(nn.Module):
    """Convolutions of 3x3, the first without padding, halved by 2x2 max-pooling between them, then a dense layer.

    Attributes:
      channels: channels of each convolution.
      num_classes: size of the output.
      activation: applied after every convolution.
    """

    channels: Sequence[int] = (8, 16)
    num_classes: int = 10
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate(self.channels):
            if i:
                x = max_pool(x)
            x = self.activation(Conv3x3(features, padding=int(i > 0), name=f"conv_{i}")(x))
        return nn.Dense(self.num_classes, name="output")(x.reshape(*x.shape[:-3], -1))


class Conv3x3(nn.Module):
    """A 3x3 convolution of [batch, height, width, channels].

    Mapped over many sets of weights, a convolution becomes a grouped one, which is slow on every device. Small images
    are therefore multiplied by the matrix that the convolution is: D[(x, c), (y, f)] = sum_t T[x, y, t] K[t, c, f].
    """

    features: int
    padding: int = 0

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", nn.linear.default_kernel_init, (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if height * width > DENSE_PIXELS:
            padding = [(self.padding, self.padding)] * 2
            dims = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dims) + bias
        reach = _reach(height, width, self.padding).astype(x.dtype)
        matrix = jnp.einsum("xyt,tcf->xcyf", reach, kernel.reshape(9, channels, self.features))
        y = x.reshape(batch, -1) @ matrix.reshape(height * width * channels, -1)
        grow = 2 * self.padding - 2
        return y.reshape(batch, height + grow, width + grow, self.features) + bias


@functools.lru_cache
def _reach(height, width, padding):
    """T[x, y, t] = 1 where output pixel y sees input pixel x through tap t of the kernel."""
    rows, columns = height + 2 * padding - 2, width + 2 * padding - 2
    reach = np.zeros((height, width, rows, columns, 3, 3), np.float32)
    for row, column, i, j in np.ndindex(rows, columns, 3, 3):
        x_row, x_column = row + i - padding, column + j - padding
        if 0 <= x_row < height and 0 <= x_column < width:
            reach[x_row, x_column, row, column, i, j] = 1
    return reach.reshape(height * width, rows * columns, 9)


def max_pool(x):
    """Maximum over disjoint 2x2 squares of [..., height, width, channels]; an odd last row or column is dropped."""
    *batch, height, width, channels = x.shape
    x = x[..., : height // 2 * 2, : width // 2 * 2, :]
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).max((-4, -2))
