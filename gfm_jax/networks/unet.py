"""A compact U-Net, as a field on images that are points."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gfm_jax.networks.embedding import since_first, sinusoids

__all__ = ["UNet"]


class UNet(nn.Module):
    """`(times [k], x, cond) -> dx`, of one image [height, width, colours], or of its pixels as a vector.

    Halved between levels, doubled on the way back, with skips; self-attention at the coarsest one. Every operation has a
    forward derivative: attention is plain products and a softmax, not a kernel with a derivative of its own.

    Attributes:
      shape: height, width, colours; height and width divisible by 2^(levels - 1).
      channels: of each level.
      num_blocks: residual blocks of each level, on either way.
      num_heads: of the attention; 0 for none.
    """

    shape: Sequence[int]
    channels: Sequence[int] = (64, 128)
    num_blocks: int = 1
    num_heads: int = 4

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "channels", tuple(self.channels))
        super().__post_init__()

    @nn.compact
    def __call__(self, times, x, cond=None):
        width = 2 * self.channels[0]
        embedded = _dense(width, name="embed_times")(sinusoids(since_first(times), 32).reshape(-1).astype(x.dtype))
        if cond is not None:
            embedded = embedded + _dense(width, name="embed_cond")(cond)
        embedded = nn.silu(_dense(width, name="embed")(nn.silu(embedded)))

        h = _conv(self.channels[0], "input")(x.reshape(self.shape))
        skips = [h]
        for level, features in enumerate(self.channels):
            for i in range(self.num_blocks):
                h = _Block(features, name=f"down_{level}_{i}")(h, embedded)
                skips.append(h)
            if level < len(self.channels) - 1:
                h = nn.avg_pool(h, (2, 2), (2, 2))
                skips.append(h)
        h = _Block(self.channels[-1], name="middle")(h, embedded)
        if self.num_heads:
            h = _Attention(self.num_heads, name="attention")(h)
        for level in reversed(range(len(self.channels))):
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = _Block(self.channels[level], name=f"up_{level}_{i}")(h, embedded)
            if level:
                h = jnp.repeat(jnp.repeat(h, 2, axis=-3), 2, axis=-2)
        return _conv(self.shape[-1], "output")(nn.silu(_norm("norm")(h))).reshape(x.shape)


class _Block(nn.Module):
    """Two convolutions round a scale and a shift that the embedding sets, and a skip."""

    features: int

    @nn.compact
    def __call__(self, x, embedded):
        h = _conv(self.features, "conv_0")(nn.silu(_norm("norm_0")(x)))
        scale, shift = jnp.split(_dense(2 * self.features, name="modulate")(embedded), 2)
        h = _norm("norm_1")(h) * (1 + scale) + shift
        h = _conv(self.features, "conv_1", nn.initializers.zeros)(nn.silu(h))
        return h + (x if x.shape == h.shape else _dense(self.features, name="skip")(x))


class _Attention(nn.Module):
    """Every pixel looks at every pixel."""

    num_heads: int

    @nn.compact
    def __call__(self, x):
        pixels = _norm("norm")(x).reshape(-1, x.shape[-1])
        query, keys, values = (_dense((self.num_heads, x.shape[-1] // self.num_heads), name=n)(pixels) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("ihc,jhc->hij", query, keys) / jnp.sqrt(query.shape[-1]))
        seen = jnp.einsum("hij,jhc->ihc", weights, values)
        out = _dense(x.shape[-1], axis=(-2, -1), kernel_init=nn.initializers.zeros, name="output")(seen)
        return x + out.reshape(x.shape)


# Uniform: truncated normals, some dozens in one program, take long to compile.
UNIFORM = nn.initializers.lecun_uniform()


def _dense(features, name, axis: int | tuple[int, ...] = -1, kernel_init=UNIFORM):
    return nn.DenseGeneral(features, axis=axis, kernel_init=kernel_init, name=name)


def _norm(name):
    return nn.GroupNorm(num_groups=None, group_size=8, name=name)


def _conv(features, name, kernel_init=UNIFORM):
    return nn.Conv(features, (3, 3), kernel_init=kernel_init, name=name)
