"""Small tasks and runs that several tests share: in numpy, whose slices compile nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfm_jax.base import Network, Trajectory
from gfm_jax.networks import MLP
from gfm_jax.pytrees import layout_of
from gfm_jax.runs import classification, record, save_steps


@functools.cache
def small_task(widths=(4, 3), num=48):
    """A classifier of five numbers into three classes."""
    rng = np.random.default_rng(0)
    module = MLP(widths)
    network = Network(jax.jit(lambda key: module.init(key, jnp.zeros((1, 5)))), module.apply)
    inputs = rng.normal(size=(num, 5)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(5, 3))).argmax(1).astype(np.int32)
    data = {"train": (inputs, labels), "validation": (inputs[:16], labels[:16]), "test": (inputs[16:], labels[16:])}
    return classification(network, data, batch_size=8, num_classes=3)


@functools.cache
def small_runs(optimizer=optax.adam, widths=(4, 3), num_runs=6, num_steps=60, num_saves=20):
    keys = jax.random.split(jax.random.key(1), num_runs)
    rates = np.geomspace(0.003, 0.03, num_runs)[:, None] * np.ones(num_steps)
    return jax.device_get(record(keys, small_task(widths), optimizer, rates, save_steps(num_steps, num_saves)))


@functools.cache
def falling_runs(widths=(4, 3), num_runs=4, num_steps=60, num_saves=20):
    """Runs of the small task whose rates fall to zero, by gradient descent with momentum: their time is not their step."""
    keys = jax.random.split(jax.random.key(2), num_runs)
    rates = np.geomspace(0.03, 0.3, num_runs)[:, None] * np.linspace(1, 0, num_steps)
    momentum = functools.partial(optax.sgd, momentum=0.9)
    return jax.device_get(record(keys, small_task(widths), momentum, rates, save_steps(num_steps, num_saves)))


def run_of(weights, *, step=None, rate=0.1, **parts):
    """A trajectory from saved weights [saves, dim] alone."""
    weights = np.asarray(weights)
    weights = weights.astype(jax.dtypes.canonicalize_dtype(weights.dtype))
    step = np.arange(len(weights)) if step is None else np.asarray(step)
    layout = layout_of({"w": np.zeros(weights.shape[-1])})
    return Trajectory(step=step, time=rate * step.astype(weights.dtype), weights=weights, layout=layout, **parts)


def batch_of(runs):
    """Several runs as a batch."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def put(array, index, value):
    """A copy of an array with another value at an index."""
    array = np.array(array)
    array[index] = value
    return array


def jittered(tree, size, seed=0):
    """Arrays with Gaussian noise on them, so that none is zero."""
    noise = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + size * noise.normal(size=leaf.shape).astype(leaf.dtype), jax.device_get(tree)
    )
