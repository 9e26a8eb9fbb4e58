"""The images, as points, and the features in which they are compared."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gfm_jax.datasets import load_dataset
from gfm_jax.flows.metrics import classifier_features, frechet
from gfm_jax.weights import nearest_distance

__all__ = ["Images", "check_images", "load_images", "trivial", "worth"]


class Images(NamedTuple):
    """Training and test images in units of the training images' spread, [num, dim], and features of both."""

    train: jnp.ndarray
    test: jnp.ndarray
    shape: tuple[int, int, int]
    extract: object
    accuracy: float


def check_images(dataset: str, num_train: int) -> None:
    """Raises DatasetNotAvailable without the images, and ValueError where there are too few of them to keep some for a test."""
    num = sum(len(load_dataset(dataset, split)[0]) for split in ("train", "test"))
    if num_train >= num:
        raise ValueError(f"num_train: expected fewer than the {num} images of {dataset}, got {num_train}")


def load_images(dataset: str, num_train: int, seed: int, classifier_steps: int) -> Images:
    """Images of a data set in a random order, the first `num_train` to learn from and at most as many to test by, and a
    classifier of the training images, by whose features all are seen."""
    check_images(dataset, num_train)
    pixels, labels = (
        np.concatenate(parts) for parts in zip(load_dataset(dataset), load_dataset(dataset, "test"), strict=True)
    )
    order = np.random.default_rng(seed).permutation(len(pixels))
    train, test = np.split(order[: 2 * num_train], [num_train])
    points = pixels.reshape(len(pixels), -1) / np.float32(255)
    points = (points - points[train].mean()) / points[train].std()
    key = jax.random.key(seed)
    x = jnp.asarray(points)
    held_out = (x[test], labels[test])
    features = classifier_features(key, x[train], labels[train], held_out, pixels.shape[1:], num_steps=classifier_steps)
    return Images(x[train], x[test], pixels.shape[1:], features.extract, features.accuracy)


def worth(images: Images, known: jnp.ndarray, samples: jnp.ndarray) -> dict[str, float]:
    """Frechet distances of samples to the training and the test images, as many of each as there are of the fewest, and the
    mean distance to the nearest of those that were learned from, beside that of a test image; and the share of copies."""
    num = min(len(samples), len(images.train), len(images.test))
    features = images.extract(samples[:num])
    of = lambda others: float(frechet(features, images.extract(others[:num])))
    nearest = nearest_distance(samples, known)
    ordinary = nearest_distance(images.test, known)
    return {
        "frechet_train": of(images.train),
        "frechet_test": of(images.test),
        "nearest": float(nearest.mean()),
        "nearest_of_test": float(ordinary.mean()),
        "copies": float((nearest < 1e-5 * jnp.sqrt(known.shape[1])).mean()),
    }


def trivial(images: Images, num: int, seed: int) -> dict[str, jnp.ndarray]:
    """What any generator has to be compared with: the training images themselves, and one Gaussian fitted to them."""
    key_copy, key_normal = jax.random.split(jax.random.key(seed))
    train, num = images.train, min(num, len(images.train))
    centred = train - train.mean(0)
    combined = jax.random.normal(key_normal, (num, len(train))) @ centred / jnp.sqrt(len(train))
    return {
        "copies": train[jax.random.permutation(key_copy, len(train))[:num]],
        "gaussian": train.mean(0) + combined,
    }
