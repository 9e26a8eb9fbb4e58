"""Features in which images are compared: those of a classifier that is trained here, so that no weights are downloaded."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.networks import init_network
from gfm_jax.networks.cnn import Conv3x3, max_pool
from gfm_jax.training import fit

__all__ = ["Features", "classifier_features"]


class Features(NamedTuple):
    """`extract(images [num, dim]) -> [num, features]`, and the share of held-out images that the classifier knows."""

    extract: Callable[[Array], Array]
    accuracy: float


class _Classifier(nn.Module):
    """Convolutions, each halved, then a dense layer whose activations are the features."""

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    num_features: int
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, *self.shape)
        for channels in self.channels:
            x = max_pool(nn.relu(Conv3x3(channels, padding=1)(x)))
        features = nn.relu(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(features), features


def classifier_features(
    key: Array,
    images: Float[Array, "num dim"],
    labels,
    held_out: tuple,
    shape: tuple[int, int, int],
    *,
    channels: tuple[int, ...] = (16, 32),
    num_features: int = 64,
    num_steps: int = 1000,
    batch_size: int = 128,
) -> Features:
    """Trains a small convolutional classifier, and returns the activations before its last layer.

    Args:
      key: randomness.
      images, labels: to train on; images are points, height * width * colours long.
      held_out: images and labels by which its accuracy is told, never learned from.
      shape: height, width, colours.
      channels: of each convolution, after which the image is halved.
      num_features: how many there are.
      num_steps, batch_size: of the fit, by Adam.
    """
    labels = jnp.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels: expected one for each of {len(images)} images, got shape {labels.shape}")
    network = _Classifier(shape, channels, num_features, int(labels.max()) + 1)
    key_init, key_fit = jax.random.split(key)

    def sample(key, data):
        index = jax.random.randint(key, (batch_size,), 0, len(data[0]))
        return data[0][index], data[1][index]

    def loss(params, key, batch):
        logits, _ = network.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), {}

    rate = optax.cosine_decay_schedule(5e-3, num_steps)
    params = init_network(network, key_init, images[:1])
    params = fit(key_fit, loss, params, (images, labels), sample, optax.adam(rate), num_steps).params
    apply = jax.jit(network.apply)
    accuracy = (apply(params, held_out[0])[0].argmax(-1) == jnp.asarray(held_out[1])).mean()
    return Features(lambda images: apply(params, images)[1], float(accuracy))
