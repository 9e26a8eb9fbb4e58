"""Training at equal gradient budgets, each optimizer at its own best learning rate."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.integrators.methods import NUM_TRAIN, TRAINED
from gfm_jax.base import Network, Task
from gfm_jax.datasets import load_dataset
from gfm_jax.files import replacing
from gfm_jax.networks import CNN, MLP
from gfm_jax.pytrees import unravel
from gfm_jax.runs import classification, record, save_steps

__all__ = ["Trained", "task_of", "train", "train_or_read"]

FIRST_RATE = {"adam": 0.002, "adam_by_heun": 0.002}  # in the middle of the grid; of all others .1


class Trained(NamedTuple):
    """Fresh runs at the best learning rate: at every save the loss over the training set and the accuracy on the test set.

    Attributes:
      rate: the best of the grid, by the mean over tuning seeds of the loss at the end.
      grid, grid_loss: all learning rates that were tried, and that mean; infinite where a run diverged.
      gradients: that had been asked for at each save.
      loss, accuracy: [seeds, saves].
      seconds: of one network for as many gradients as an epoch has minibatches.
    """

    rate: np.ndarray
    grid: np.ndarray
    grid_loss: np.ndarray
    gradients: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    seconds: np.ndarray


@functools.cache
def task_of(name: str, batch_size: int) -> tuple[Task, Callable]:
    """Digits by a perceptron or a small convolutional network; and the tree of its weights from a flat vector."""
    images, labels = load_dataset("digits")
    test_images, test_labels = load_dataset("digits", "test")
    shape = (-1, 8, 8, 1) if name == "cnn" else (-1, 64)
    scaled = lambda x: (x.reshape(shape) / 255).astype(np.float32)
    module = CNN((4, 8)) if name == "cnn" else MLP((32, 10))
    network = Network(lambda key: module.init(key, scaled(images[:1])), module.apply)
    data = {"train": (scaled(images[:NUM_TRAIN]), labels[:NUM_TRAIN]), "test": (scaled(test_images), test_labels)}
    task = classification(network, data, batch_size)
    return task, functools.partial(unravel, jax.eval_shape(task.init, jax.random.key(0)))


def train(config, task_name: str, num_gradients: int, method_name: str, key: jax.Array) -> Trained:
    """Tunes the learning rate on a grid that grows until the best is inside it, and trains on fresh seeds with it."""
    key_tuning, key_fresh = jax.random.split(key)
    seeds = jax.random.split(key_tuning, config.tuning_seeds)
    chunk = max(config.fresh_seeds // config.tuning_seeds, 1)  # rates at a time, so that all calls have one shape
    run = functools.partial(_run, config, task_name, num_gradients, method_name)
    middle = FIRST_RATE.get(method_name, 0.1)
    exponents = [*range(-(config.first_rates // 2), config.first_rates - config.first_rates // 2)]
    tried = {}
    while True:
        new = [e for e in exponents if e not in tried]
        for some in (new[i : i + chunk] for i in range(0, len(new), chunk)):
            padded = (some * chunk)[:chunk]
            rates = np.repeat(middle * config.rate_factor ** np.array(padded, float), len(seeds))
            loss, *_ = run(jnp.tile(seeds, chunk), rates)
            ends = np.where(np.isfinite(loss[:, -1]), loss[:, -1], np.inf).reshape(chunk, -1).mean(1)
            tried |= dict(zip(some, ends, strict=False))
        best = min(tried, key=tried.get)
        lowest, highest = min(tried), max(tried)
        if lowest < best < highest and np.isfinite(tried[best]):
            break
        if not np.isfinite(tried[best]):
            exponents = [lowest - 1 - k for k in range(chunk)]  # all of them diverged
        else:
            exponents = [best - 1 - k for k in range(chunk)] if best == lowest else [best + 1 + k for k in range(chunk)]
    grid = sorted(tried)
    rate = middle * config.rate_factor ** float(best)
    num = chunk * config.tuning_seeds
    loss, accuracy, gradients, seconds = run(jax.random.split(key_fresh, num), np.full(num, rate))
    return Trained(
        np.array(rate),
        middle * config.rate_factor ** np.array(grid, float),
        np.array([tried[e] for e in grid]),
        gradients,
        loss,
        accuracy,
        np.array(seconds),
    )


def train_or_read(path: pathlib.Path, *arguments) -> Trained:
    """Trained now, or read where a run that was stopped left it; written beside and renamed, so that it is whole."""
    if path.exists():
        with np.load(path) as stored:
            return Trained(**stored)
    fit = train(*arguments)
    with replacing(path) as file:
        np.savez(file, **fit._asdict())
    return fit


def _run(config, task_name, num_gradients, method_name, keys, rates):
    """Loss and accuracy at every save [runs, saves], the gradients until then, and the seconds of an epoch of one network."""
    task, tree_of = task_of(task_name, config.batch_size)
    method = TRAINED[method_name]
    num_updates = num_gradients // method.gradients
    saves = save_steps(num_updates, min(config.num_saves, num_updates))
    rates = jnp.broadcast_to(jnp.asarray(rates, jnp.float32)[:, None], (len(keys), num_updates))
    keep = ("weights", "state") if method_name == "schedule_free" else ("weights",)
    begin = time.perf_counter()
    runs = jax.block_until_ready(record(keys, task, method.make, rates, saves, keep=keep))
    steps_per_epoch = NUM_TRAIN // config.batch_size
    seconds = (time.perf_counter() - begin) / len(keys) / num_gradients * steps_per_epoch
    weights = runs.weights
    if method_name == "schedule_free":  # what is evaluated is the mean x, w = (1 - beta) z + beta x with beta = .9
        weights = (weights - 0.1 * runs.state["z"]) / 0.9
    loss, accuracy = _evaluate(task.evaluate, tree_of, weights, task.data)
    return np.asarray(loss), np.asarray(accuracy), method.gradients * np.asarray(saves), seconds


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(evaluate, tree_of, weights, data):
    def one(flat):
        tree = tree_of(flat)
        return evaluate(tree, data["train"])["loss"], evaluate(tree, data["test"])["accuracy"]

    return jax.lax.map(jax.vmap(one), weights)
