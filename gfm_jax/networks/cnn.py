"""A small convolutional network that stays fast when hundreds of copies train side by side."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CNN"]

DENSE_PIXELS = 64  # up to this size of an image a convolution is cheaper as dense products along its rows


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

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate(self.channels):
            if i:
                x = max_pool(x)
            x = self.activation(Conv3x3(features, padding=int(i > 0), name=f"conv_{i}")(x))
        return nn.Dense(self.num_classes, name="output")(x.reshape(*x.shape[:-3], -1))


class Conv3x3(nn.Module):
    """A 3x3 convolution of [batch, height, width, channels].

    Mapped over many sets of weights, a convolution becomes a grouped one, which is slow on every device. Rows of small
    images are therefore multiplied by the matrix that the convolution is along a row: three input rows to one output
    row, D[(i, x, c), (y, f)] = sum_j T[j, x, y] K[i, j, c, f].
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
        along_row = _along_row(width, self.padding).astype(x.dtype)
        matrix = jnp.einsum("jxy,ijcf->ixcyf", along_row, kernel).reshape(3 * width * channels, -1)
        num_rows, num_columns = height + 2 * self.padding - 2, along_row.shape[-1]
        rows = jnp.pad(x, ((0, 0), (self.padding, self.padding), (0, 0), (0, 0))).reshape(batch, -1, width * channels)
        rows = jnp.concatenate([rows[:, i : i + num_rows] for i in range(3)], axis=-1)
        y = rows.reshape(batch * num_rows, -1) @ matrix
        return y.reshape(batch, num_rows, num_columns, self.features) + bias


@functools.lru_cache
def _along_row(width, padding):
    """T[j, x, y] = 1 where output column y sees input column x through column j of the kernel."""
    j, x, y = np.ogrid[:3, :width, : width + 2 * padding - 2]
    return np.asarray(x == y + j - padding, np.float32)


def max_pool(x):
    """Maximum over disjoint 2x2 squares of [..., height, width, channels]; an odd last row or column is dropped."""
    height, width = (size // 2 * 2 for size in x.shape[-3:-1])
    every_other = lambda x, start, size, axis: jax.lax.slice_in_dim(x, start, size, 2, axis % x.ndim)
    x = jnp.maximum(every_other(x, 0, height, -3), every_other(x, 1, height, -3))
    return jnp.maximum(every_other(x, 0, width, -2), every_other(x, 1, width, -2))
