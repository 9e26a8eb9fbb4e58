"""Networks of the zoo and of the families that are held out, beside those of `gfm_jax.networks`."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from gfm_jax.networks.sequence import attend

__all__ = ["ConvNet", "LanguageModel", "Mixer", "NextCharacter", "ResidualMLP", "ResidualNet", "Tokens"]


class ResidualMLP(nn.Module):
    """Blocks x + W_2 a(W_1 norm(x)) between two dense layers."""

    width: int = 32
    num_blocks: int = 2
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x.reshape(len(x), -1))
        for i in range(self.num_blocks):
            y = nn.gelu(nn.Dense(self.width, name=f"up_{i}")(nn.LayerNorm(name=f"norm_{i}")(x)))
            x = x + nn.Dense(self.width, name=f"down_{i}")(y)
        return nn.Dense(self.num_classes, name="output")(nn.LayerNorm(name="norm")(x))


class ConvNet(nn.Module):
    """Convolutions of 3x3 with pooling between them, with BatchNorm or without, and dense layers.

    BatchNorm uses the statistics of the batch that it sees, also in evaluation: no running mean is kept.
    """

    channels: Sequence[int] = (8, 16)
    dense: Sequence[int] = ()
    batch_norm: bool = False
    num_classes: int = 10
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x):
        for i, channels in enumerate(self.channels):
            x = nn.Conv(channels, (3, 3), use_bias=not self.batch_norm, name=f"conv_{i}")(x)
            if self.batch_norm:
                x = batch_norm(x, f"norm_{i}")
            x = nn.avg_pool(self.activation(x), (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.dense):
            x = self.activation(nn.Dense(width, name=f"dense_{i}")(x))
        return nn.Dense(self.num_classes, name="output")(x)


def batch_norm(x, name: str):
    """Standardised over the batch, with a scale and a bias that are trained."""
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return ScaleAndBias(name=name)((x - mean) / jnp.sqrt(var + 1e-5))


class ScaleAndBias(nn.Module):
    """scale * x + bias, channel by channel."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return scale * x + bias


class NextCharacter(nn.Module):
    """The next character after a few, by a perceptron on their embeddings: [batch, context] -> logits."""

    num_characters: int
    width: int = 64
    embedding: int = 8

    @nn.compact
    def __call__(self, x):
        x = nn.Embed(self.num_characters, self.embedding, name="embed")(x.astype(jnp.int32))
        x = nn.gelu(nn.Dense(self.width, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_characters, name="output")(x)


class Tokens(nn.Module):
    """A transformer that classifies a sequence by its last element: [batch, length, channels] or integers [batch, length]."""

    num_classes: int
    num_tokens: int = 0
    width: int = 16
    num_layers: int = 1

    @nn.compact
    def __call__(self, x):
        embed = (
            nn.Embed(self.num_tokens, self.width, name="embed")
            if self.num_tokens
            else nn.Dense(self.width, name="embed")
        )
        x = embed(x.astype(jnp.int32) if self.num_tokens else x)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[-2:])
        for i in range(self.num_layers):
            x = attend(x, self.width, 2, i)
        return nn.Dense(self.num_classes, name="output")(nn.LayerNorm(name="norm")(x[:, -1]))


# --- families that the zoo does not hold ------------------------------------------------------------------------------


class ResidualNet(nn.Module):
    """A residual convolutional network with BatchNorm, of two stages."""

    channels: Sequence[int] = (16, 32)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(batch_norm(nn.Conv(self.channels[0], (3, 3), (2, 2), use_bias=False, name="stem")(x), "stem_norm"))
        for i, channels in enumerate(self.channels):
            stride = (2, 2) if i else (1, 1)
            y = nn.Conv(channels, (3, 3), stride, use_bias=False, name=f"conv_{i}a")(x)
            y = nn.Conv(channels, (3, 3), use_bias=False, name=f"conv_{i}b")(nn.relu(batch_norm(y, f"norm_{i}a")))
            if i:
                x = nn.Conv(channels, (1, 1), stride, use_bias=False, name=f"shortcut_{i}")(x)
            x = nn.relu(x + batch_norm(y, f"norm_{i}b"))
        return nn.Dense(self.num_classes, name="output")(x.mean((1, 2)))


class Mixer(nn.Module):
    """Perceptrons over patches and over channels in turn."""

    width: int = 48
    num_blocks: int = 3
    patch: int = 4
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch, self.patch), (self.patch, self.patch), name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        for i in range(self.num_blocks):
            y = jnp.swapaxes(nn.LayerNorm(name=f"norm_{i}a")(x), 1, 2)
            y = nn.Dense(x.shape[1], name=f"tokens_{i}b")(nn.gelu(nn.Dense(32, name=f"tokens_{i}a")(y)))
            x = x + jnp.swapaxes(y, 1, 2)
            y = nn.gelu(nn.Dense(2 * self.width, name=f"channels_{i}a")(nn.LayerNorm(name=f"norm_{i}b")(x)))
            x = x + nn.Dense(self.width, name=f"channels_{i}b")(y)
        return nn.Dense(self.num_classes, name="output")(nn.LayerNorm(name="norm")(x).mean(1))


class LanguageModel(nn.Module):
    """A causal transformer: the next character at every place, integers [batch, length] -> logits of each."""

    num_characters: int
    width: int = 48
    num_layers: int = 2

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x)
        x = nn.Embed(self.num_characters, self.width, name="embed")(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[-2:])
        for i in range(self.num_layers):
            y = nn.LayerNorm(name=f"norm_{i}a")(x)
            x = x + nn.MultiHeadDotProductAttention(4, name=f"attention_{i}")(y, mask=mask)
            y = nn.gelu(nn.Dense(4 * self.width, name=f"up_{i}")(nn.LayerNorm(name=f"norm_{i}b")(x)))
            x = x + nn.Dense(self.width, name=f"down_{i}")(y)
        return nn.Dense(self.num_characters, name="output")(nn.LayerNorm(name="norm")(x))
