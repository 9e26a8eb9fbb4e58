"""What the networks of the zoo are trained on: images at several sizes, teachers, and sequences."""

import argparse
import inspect
import typing

import numpy as np

from gfm_jax.datasets import load_dataset

__all__ = ["CHARACTERS", "characters", "images", "markov_chain", "mixture", "teacher"]

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789_.,:;()[]{}'\"=+-*/<>#@!?%&|\\"


def images(name: str, num_train: int, pool: int = 1, num_test: int = 2000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A part of a data set, its images made smaller by the mean over squares of `pool` pixels, and standardised."""
    parts = {}
    for split, num in (("train", num_train), ("test", num_test)):
        pixels, labels = load_dataset(name, split)
        order = np.random.default_rng(0).permutation(len(pixels))[:num]
        x = pixels[order].astype(np.float32)
        height, width = (size // pool * pool for size in x.shape[1:3])
        x = x[:, :height, :width].reshape(len(x), height // pool, pool, width // pool, pool, -1).mean((2, 4))
        parts[split] = (x, labels[order])
    mean, std = parts["train"][0].mean(), parts["train"][0].std()
    return {split: ((x - mean) / std, labels) for split, (x, labels) in parts.items()}


def teacher(num_train: int, dim: int = 16, num_classes: int = 8, seed: int = 0) -> dict:
    """Classes that a random network of one hidden layer gives to Gaussian inputs."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(dim, 32)) / np.sqrt(dim), rng.normal(size=(32, num_classes))
    x = rng.normal(size=(num_train + 2000, dim)).astype(np.float32)
    labels = (np.tanh(2 * x @ first) @ second).argmax(1).astype(np.int32)
    return _split(x, labels, num_train)


def mixture(num_train: int, dim: int = 20, num_classes: int = 10, seed: int = 1) -> dict:
    """Gaussian classes that overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, dim))
    labels = rng.integers(0, num_classes, num_train + 2000).astype(np.int32)
    x = (centres[labels] + 1.2 * rng.normal(size=(len(labels), dim))).astype(np.float32)
    return _split(x, labels, num_train)


def markov_chain(num_train: int, length: int = 16, num_tokens: int = 12, seed: int = 2) -> dict:
    """The next token after `length` of a random chain of second order."""
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(0.3 * np.ones(num_tokens), (num_tokens, num_tokens)).cumsum(-1)
    sequence = rng.integers(0, num_tokens, (num_train + 2000, length + 1))
    for i in range(2, length + 1):
        chance = rng.random((len(sequence), 1))
        sequence[:, i] = (chance > law[sequence[:, i - 2], sequence[:, i - 1]]).sum(1).clip(0, num_tokens - 1)
    return _split(sequence[:, :-1].astype(np.uint8), sequence[:, -1].astype(np.int32), num_train)


def characters(num_train: int, length: int, *, every: bool = False, num_test: int = 2000, seed: int = 3) -> dict:
    """Windows of program text, of Python's own library, and the character after each; with `every`, after each place of it."""
    text = "".join(inspect.getsource(module) for module in (argparse, inspect, typing)).lower()
    codes = np.array([CHARACTERS.find(c) for c in text if c in CHARACTERS], np.int32)
    cut = int(0.9 * len(codes))  # the test is a later part of the text
    parts, rng = {}, np.random.default_rng(seed)
    for split, own, num in (("train", codes[:cut], num_train), ("test", codes[cut:], num_test)):
        starts = rng.integers(0, len(own) - length - 1, num)
        windows = own[starts[:, None] + np.arange(length + 1)]
        parts[split] = (windows[:, :-1], windows[:, 1:] if every else windows[:, -1])
    return parts


def _split(x, labels, num_train):
    return {"train": (x[:num_train], labels[:num_train]), "test": (x[num_train:], labels[num_train:])}
