"""The zoo: networks trained on subsets of the classes, recorded in one call, and split by run and by task."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from gfm_jax.base import Network
from gfm_jax.datasets import load
from gfm_jax.encoders import Symmetry, find_relabeling, find_symmetry
from gfm_jax.networks import MLP
from gfm_jax.pytrees import ravel, unravel
from gfm_jax.tasks import ByClass, by_class, class_subsets, few_shot
from gfm_jax.trajectories import record_many

__all__ = ["Networks", "Zoo", "record_zoo"]

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
      apply: `(w, images) -> logits [num, ways]`.
      init: `(key) -> w`, initial weights.
      symmetry, relabeling: of the network.
    """

    train: Networks
    unseen: Networks
    validation: Networks
    held_out: Networks
    images: dict[str, ByClass]
    apply: Callable[[Array, Array], Array]
    init: Callable[[Array], Array]
    symmetry: Symmetry
    relabeling: Symmetry


def record_zoo(config) -> Zoo:
    """Trains all networks side by side, each on its own classes."""
    key_tasks, key_images, key_order, key_runs = jax.random.split(jax.random.key(config.seed), 4)
    images = _images(config, key_images)
    if max(config.shots) > (rarest := int(images["train"].count.min())):
        raise ValueError(f"shots: expected at most {rarest}, the images of the rarest class, got {max(config.shots)}")
    module = MLP((config.width, config.num_ways))
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
    saves = (0, config.run_steps)
    keys = jax.random.split(key_runs, len(rows))
    options = {"keep": ("weights",), "variety": {"classes": classes}, "chunk": 256}
    runs = record_many(keys, task, optax.adam, rates, saves, **options)

    stops = np.cumsum(list(numbers.values()))[:-1]
    parts = zip(jnp.split(runs.weights[:, -1], stops), jnp.split(classes, stops), strict=True)
    of_split = {split: Networks(*part) for split, part in zip(numbers, parts, strict=True)}
    look = images["train"].inputs[:2]
    return Zoo(
        **of_split,
        images=images,
        apply=lambda w, x: module.apply(unravel(like, w), x),
        init=lambda key: ravel(network.init(key)),
        symmetry=find_symmetry(module.apply, like, look),
        relabeling=find_relabeling(module.apply, like, look),
    )


def _images(config, key):
    """Of the package's training split a fifth is for validation; its test split stays that."""
    pixels, labels = load(config.dataset, "train")
    order = np.asarray(jax.random.permutation(key, len(pixels)))
    cut = len(pixels) * 4 // 5
    parts = {name: (pixels[rows], labels[rows]) for name, rows in (("train", order[:cut]), ("validation", order[cut:]))}
    parts["test"] = load(config.dataset, "test")
    flat = {name: part[0].reshape(len(part[0]), -1).astype(np.float32) for name, part in parts.items()}
    mean, std = flat["train"].mean(), flat["train"].std()
    return {name: by_class((flat[name] - mean) / std, parts[name][1], NUM_CLASSES) for name in parts}
