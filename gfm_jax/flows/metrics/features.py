"""Features in which images are compared: those of a classifier that is trained here, so that no weights are downloaded."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Shaped

from gfm_jax.base import Learner
from gfm_jax.checks import as_points, check_finite
from gfm_jax.fitting import fit
from gfm_jax.networks import init_network
from gfm_jax.networks.cnn import Conv3x3, max_pool

__all__ = ["Features", "classifier_features"]


class Features(NamedTuple):
    """`extract(images [num, dim]) -> [num, features]`, and the fraction of held-out images that it classifies rightly."""

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
    images: Shaped[Array | np.ndarray, "num dim"],
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

    Returns:
      The features, and the accuracy on what was held out.

    Raises:
      ValueError: for images that are not of that shape or not finite, or labels that are no integers from 0 or of another
        number.

    >>> images, labels = jax.random.normal(jax.random.key(0), (8, 16)), jnp.arange(8) % 2
    >>> held_out, config = (images, labels), {"channels": (2,), "num_features": 5, "num_steps": 2}
    >>> found = classifier_features(jax.random.key(1), images, labels, held_out, (4, 4, 1), **config)
    >>> found.extract(images).shape
    (8, 5)
    """
    held, held_labels = held_out
    images, held = as_points("images", images), as_points("held_out", held)
    shape, channels = (*shape,), tuple(channels)
    for name, points, its_labels in (("images", images, labels), ("held_out", held, held_labels)):
        if points.shape[1] != math.prod(shape):
            raise ValueError(
                f"{name}: expected points of {math.prod(shape)} numbers, {shape}, got shape {points.shape}"
            )
        check_finite(name, points)
        _check_labels("labels" if name == "images" else "held_out", its_labels, len(points))
    labels, held_labels = jnp.asarray(labels), jnp.asarray(held_labels)
    network = _Classifier(shape, channels, num_features, int(labels.max()) + 1)

    def sample(key, data):
        index = jax.random.randint(key, (batch_size,), 0, len(data[0]))
        return data[0][index], data[1][index]

    def loss(params, key, batch):
        logits, _ = network.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean(), {}

    learner = Learner(lambda key, data: init_network(network, key, data[0][:1]), sample, loss)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, num_steps))
    params, _ = fit(key, learner, (images, labels), optimizer=optimizer, num_steps=num_steps)
    apply = jax.jit(network.apply)
    accuracy = (apply(params, held)[0].argmax(-1) == held_labels).mean()
    return Features(lambda images: apply(params, as_points("images", images))[1], float(accuracy))


def _check_labels(name, labels, num):
    labels = np.asarray(labels)
    if labels.shape != (num,) or not np.issubdtype(labels.dtype, np.integer) or (labels < 0).any():
        got = f"shape {labels.shape} of {labels.dtype}"
        raise ValueError(f"{name}: expected one label for each of {num} images, an integer from 0, got {got}")
