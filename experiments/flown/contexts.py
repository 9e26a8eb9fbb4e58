"""Support sets, and what generators see of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.flown.zoo import Networks, Zoo
from gfm_jax.fitting import fit
from gfm_jax.runs import draw_support
from gfm_jax.weights import class_context, label_codes, pca, relabel

__all__ = ["Episodes", "Lessons", "draw_episode", "draw_episodes", "draw_lessons", "see"]


class Episodes(NamedTuple):
    """A support set for each of some tasks.

    Attributes:
      images, labels: [tasks, support, pixels] and [tasks, support].
      context: [tasks, context].
    """

    images: Float[Array, "tasks support pixels"]
    labels: Int[Array, "tasks support"]
    context: Float[Array, "tasks context"]


class Lessons(NamedTuple):
    """Networks with their contexts: copies of the zoo, each with its labels in another order and another support set."""

    weights: Float[Array, "num dim"]
    context: Float[Array, "num context"]


def see(config, zoo: Zoo) -> Callable[[Array, Array], Array]:
    """`(images, labels) -> context`: the first principal components of the images, tied to the codes of their labels."""
    components = pca(config.num_features, whiten=False)
    params, _ = fit(jax.random.key(config.seed), components, zoo.images["train"].inputs)
    scale = jax.vmap(functools.partial(components.encode, params))(zoo.images["train"].inputs).std()
    codes = label_codes(config.num_ways)

    def context(images, labels):
        features = jax.vmap(functools.partial(components.encode, params))(images) / scale
        return class_context(features, labels, codes)

    return context


@functools.partial(jax.jit, static_argnums=(0, 4))
def draw_episodes(context, key, images, classes, shots: int) -> Episodes:
    """A support set of training images for each row of classes."""
    one = lambda key, own: draw_support(key, images, own, shots)
    support, labels = jax.vmap(one)(jax.random.split(key, len(classes)), classes)
    return Episodes(support, labels, jax.vmap(context)(support, labels))


def draw_episode(num_ways: int, shots: int, key: Array, data):
    """A support set and a query set for the task of one of the networks, in an order of its own, with no example in common.

    Args:
      num_ways, shots: classes of a task, and examples of each in either set.
      key: randomness.
      data: (images, classes [networks, ways]).
    """
    images, classes = data
    key_task, key_order, key_examples = jax.random.split(key, 3)
    row = classes[jax.random.randint(key_task, (), 0, len(classes))]
    own, labels = jax.random.permutation(key_order, row), jnp.repeat(jnp.arange(num_ways), shots)
    drawn, _ = draw_support(key_examples, images, own, 2 * shots)
    support, query = jnp.swapaxes(drawn.reshape(num_ways, 2, shots, -1), 0, 1).reshape(2, num_ways * shots, -1)
    return (support, labels), (query, labels)


def draw_lessons(key: Array, config, zoo: Zoo, context) -> Lessons:
    """`config.copies` of the training networks, whose support sets take turns with the numbers of shots."""
    weights, contexts = [], []
    for number, shots in enumerate(np.resize(config.shots, config.copies).tolist()):
        key_order, key_support = jax.random.split(jax.random.fold_in(key, number))
        copy = _in_another_order(zoo.relabeling, key_order, zoo.train)
        weights.append(copy.weights)
        contexts.append(draw_episodes(context, key_support, zoo.images["train"], copy.classes, shots).context)
    return Lessons(jnp.concatenate(weights), jnp.concatenate(contexts))


@functools.partial(jax.jit, static_argnums=0)
def _in_another_order(relabeling, key, networks):
    keys, num_ways = jax.random.split(key, len(networks.classes)), networks.classes.shape[1]
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_ways))(keys)
    weights = jax.vmap(functools.partial(relabel, relabeling))(orders, networks.weights)
    return Networks(weights, jnp.take_along_axis(networks.classes, orders, axis=1))
