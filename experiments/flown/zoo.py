"""The zoo: networks trained on subsets of the classes, recorded in one call, and split by run and by task."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from gfm_jax.base import Layout, Network, Task
from gfm_jax.datasets import load_dataset
from gfm_jax.networks import CNN, MLP
from gfm_jax.pytrees import layout_of, ravel, unravel
from gfm_jax.runs import ByClass, by_class, class_subsets, few_shot, record
from gfm_jax.weights import Symmetry, find_relabeling, find_symmetry

__all__ = ["Networks", "Zoo", "record_runs", "record_zoo", "retrained"]

NUM_CLASSES = 10
SHARES = {"train": 0.7, "validation": 0.15, "held_out": 0.15}


class Networks(NamedTuple):
    """Trained networks, and what each tells apart.

    Attributes:
      weights: [num, dim].
      classes: [num, ways], in the order of its outputs.
    """

    weights: Float[Array, "num dim"]
    classes: Int[Array, "num ways"]


class Zoo(NamedTuple):
    """Everything that is known of the networks.

    Attributes:
      train, unseen, validation, held_out: networks by split: of training tasks, of more runs of these, and of other tasks.
      images: by split ("train", "validation", "test"), in order of their classes, flat and standardized.
      shape: of an image.
      task: what every network was trained on, its classes as variety.
      apply: `(w, images) -> logits [num, ways]`.
      init: `(key) -> w`, initial weights.
      symmetry, relabeling, layout: of the network.
    """

    train: Networks
    unseen: Networks
    validation: Networks
    held_out: Networks
    images: dict[str, ByClass]
    shape: tuple[int, int, int]
    task: Task
    apply: Callable[[Array, Array], Array]
    init: Callable[[Array], Array]
    symmetry: Symmetry
    relabeling: Symmetry
    layout: Layout


def record_zoo(config) -> Zoo:
    """Trains all networks side by side, each on its own classes."""
    key_tasks, key_images, key_order, key_runs = jax.random.split(jax.random.key(config.seed), 4)
    images, shape = _images(config, key_images)
    if max(config.shots) > (rarest := int(images["train"].count.min())):
        raise ValueError(f"shots: expected at most {rarest}, the images of the rarest class, got {max(config.shots)}")
    module = _module(config, shape)
    like = jax.eval_shape(module.init, key_runs, images["train"].inputs[:2])
    network = Network(lambda key: module.init(key, images["train"].inputs[:1]), module.apply)
    data = {split: (part.inputs, part.labels) for split, part in images.items()}
    task = few_shot(network, data, config.run_batch, num_classes=NUM_CLASSES)

    subsets = class_subsets(key_tasks, NUM_CLASSES, config.num_ways, SHARES)
    numbers = {"train": config.num_train, "unseen": config.num_unseen, "validation": config.num_held}
    numbers["held_out"] = config.num_held
    rows = [np.resize(subsets.get(split, subsets["train"]), (num, config.num_ways)) for split, num in numbers.items()]
    rows = jnp.concatenate([jnp.asarray(part) for part in rows])
    classes = jax.vmap(jax.random.permutation)(jax.random.split(key_order, len(rows)), rows)
    rates = optax.cosine_decay_schedule(config.run_rate, config.run_steps)(jnp.arange(config.run_steps))
    weights = record_runs(key_runs, task, classes, rates)
    stops = np.cumsum(list(numbers.values()))[:-1]
    parts = zip(jnp.split(weights, stops), jnp.split(classes, stops), strict=True)
    of_split = {split: Networks(*part) for split, part in zip(numbers, parts, strict=True)}
    look = images["train"].inputs[:2]
    return Zoo(
        **of_split,
        images=images,
        shape=shape,
        task=task,
        apply=lambda w, x: module.apply(unravel(like, w), x),
        init=lambda key: ravel(network.init(key)),
        symmetry=find_symmetry(module.apply, like, look),
        relabeling=find_relabeling(module.apply, like, look),
        layout=layout_of(like),
    )


def record_runs(key: Array, task: Task, classes: Int[Array, "num ways"], rates: Array) -> Float[Array, "num dim"]:
    """The last weights of a run of Adam for each row of classes."""
    keys, saves = jax.random.split(key, len(classes)), (0, len(rates))
    options = {"keep": ("weights",), "variety": {"classes": classes}, "chunk": 256}
    return record(keys, task, optax.adam, rates, saves, **options).weights[:, -1]


def retrained(key: Array, config, zoo: Zoo, images: dict[str, ByClass]) -> Zoo:
    """The zoo with other images, on which the networks of the held-out tasks are trained anew."""
    rates = optax.cosine_decay_schedule(config.run_rate, config.run_steps)(jnp.arange(config.run_steps))
    weights = record_runs(key, zoo.task._replace(data=images), zoo.held_out.classes, rates)
    return zoo._replace(images=images, held_out=zoo.held_out._replace(weights=weights))


def _module(config, shape):
    if config.network == "mlp":
        return MLP((config.width, config.num_ways))
    return nn.Sequential([lambda x: x.reshape(-1, *shape), CNN((config.width // 2, config.width), config.num_ways)])


def _images(config, key):
    """Of the package's training split a fifth is for validation; its test split stays that."""
    pixels, labels = load_dataset(config.dataset, "train")
    order = np.asarray(jax.random.permutation(key, len(pixels)))
    cut = len(pixels) * 4 // 5
    parts = {name: (pixels[rows], labels[rows]) for name, rows in (("train", order[:cut]), ("validation", order[cut:]))}
    parts["test"] = load_dataset(config.dataset, "test")
    flat = {name: part[0].reshape(len(part[0]), -1).astype(np.float32) for name, part in parts.items()}
    mean, std = flat["train"].mean(), flat["train"].std()
    images = {name: by_class((flat[name] - mean) / std, parts[name][1], NUM_CLASSES) for name in parts}
    return images, pixels.shape[1:]
