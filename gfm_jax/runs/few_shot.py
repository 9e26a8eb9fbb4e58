"""Classification among a few classes of a data set: tasks by the hundred from one set of labelled examples."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.base import Network, Task
from gfm_jax.checks import is_traced
from gfm_jax.runs.examples import as_inputs, check_labelled, check_logits, check_splits

__all__ = ["ByClass", "by_class", "class_subsets", "draw_support", "few_shot", "labels_among"]


class ByClass(NamedTuple):
    """Labelled examples in the order of their labels, so that those of one class lie side by side.

    Attributes:
      inputs: [num, ...].
      labels: of each, in 0..classes-1.
      start, count: of each class, where it begins and how many it has.
    """

    inputs: Array
    labels: Int[Array, " num"]
    start: Int[Array, " classes"]
    count: Int[Array, " classes"]


def by_class(inputs: Array | np.ndarray, labels: Array | np.ndarray, num_classes: int) -> ByClass:
    """Sorts labelled examples by label, so that those of one class lie side by side.

    Args:
      inputs: [num, ...], finite.
      labels: [num], integers in 0..num_classes-1, each of them at least once.
      num_classes: at least 1.

    Returns:
      The examples, and where each class begins.

    Raises:
      ValueError: for inputs that are not finite, labels of another number, no integers or out of range, a class without
        examples, or traced arrays.

    >>> examples = by_class(jnp.arange(5.0), jnp.array([1, 0, 2, 1, 0]), 3)
    >>> examples.inputs.tolist(), examples.start.tolist(), examples.count.tolist()
    ([1.0, 4.0, 0.0, 3.0, 2.0], [0, 2, 4], [2, 2, 1])
    """
    if is_traced(inputs, labels):
        raise ValueError("inputs, labels: expected arrays whose values are known, got tracers: call it outside of jit")
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if len(inputs) != len(labels):
        raise ValueError(f"labels: expected one for each of {len(inputs)} inputs, got {len(labels)}")
    if labels.dtype.kind in "iu" and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels: expected 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    check_labelled(inputs, labels, num_classes, "inputs, labels")
    labels = labels.astype(np.int32)
    count = np.bincount(labels, minlength=num_classes)
    if not count.all():
        raise ValueError(f"labels: expected examples of every class, got none of {np.flatnonzero(count == 0).tolist()}")
    order = np.argsort(labels, kind="stable")
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    return ByClass(*map(jnp.asarray, (inputs[order], labels[order], start.astype(np.int32), count.astype(np.int32))))


def class_subsets(key: Array, num_classes: int, num_ways: int, fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """All subsets of the classes, divided at random: no two splits have a subset in common.

    Args:
      key: randomness of the division.
      num_classes: to choose from.
      num_ways: classes in a subset.
      fractions: of the subsets, by split, in (0, 1], with a sum of at most 1.

    Returns:
      By split, int32 [subsets, num_ways], each in rising order.

    Raises:
      ValueError: for fractions that are not positive or add up to more than 1, or more ways than classes.

    >>> subsets = class_subsets(jax.random.key(0), 4, 2, {"train": 0.5, "test": 0.5})  # of the 6 pairs
    >>> subsets["train"].shape, subsets["test"].shape
    ((3, 2), (3, 2))
    """
    if not 1 <= num_ways <= num_classes:
        raise ValueError(f"num_ways: expected 1..{num_classes}, the number of classes, got {num_ways}")
    if not all(fraction > 0 for fraction in fractions.values()) or sum(fractions.values()) > 1 + 1e-9:
        raise ValueError(f"fractions: expected positive ones with a sum of at most 1, got {fractions}")
    subsets = np.array(list(itertools.combinations(range(num_classes), num_ways)), np.int32)
    subsets = subsets[np.asarray(jax.random.permutation(key, len(subsets)))]
    stops = np.round(np.cumsum(list(fractions.values())) * len(subsets)).astype(int)
    return dict(zip(fractions, np.split(subsets, stops)[: len(fractions)], strict=True))


def labels_among(labels: Int[Array, " num"], classes: Int[Array, " ways"]) -> Int[Array, " num"]:
    """The place of each label among the classes of a task, -1 for one that is not among them.

    >>> labels_among(jnp.array([7, 3, 5]), jnp.array([3, 7])).tolist()
    [1, 0, -1]
    """
    same = labels[:, None] == classes[None, :]
    return jnp.where(same.any(1), same.argmax(1), -1)


def draw_support(
    key: Array, examples: ByClass, classes: Int[Array, " ways"], shots: int
) -> tuple[Array, Int[Array, " support"]]:
    """A support set: `shots` different examples of each class, and their places among the classes.

    Args:
      key: randomness.
      examples: to draw from.
      classes: of the task, in the order of the network's outputs.
      shots: examples of a class, at most as many as the rarest class has.

    Returns:
      (inputs [ways * shots, ...], labels [ways * shots]), class after class.

    Raises:
      ValueError: for no shot, more shots than the rarest class has examples, or a class, where it is known, that there is not.

    >>> examples = by_class(jnp.arange(6.0), jnp.array([0, 0, 1, 1, 2, 2]), 3)
    >>> inputs, labels = draw_support(jax.random.key(0), examples, jnp.array([2, 0]), shots=2)
    >>> np.sort(inputs.reshape(2, 2)).tolist(), labels.tolist()
    ([[4.0, 5.0], [0.0, 1.0]], [0, 0, 1, 1])
    """
    rarest = None if is_traced(examples.count) else int(np.asarray(examples.count).min())
    if shots < 1 or (rarest is not None and shots > rarest):
        raise ValueError(f"shots: expected 1..{rarest} examples of a class, got {shots}")
    num_classes = len(examples.count)
    if not is_traced(classes) and not all(0 <= c < num_classes for c in np.asarray(classes).tolist()):
        raise ValueError(f"classes: expected those among 0..{num_classes - 1}, got {np.asarray(classes).tolist()}")

    def of_class(key, c):
        score = jax.random.uniform(key, (len(examples.labels),))
        _, index = jax.lax.top_k(jnp.where(examples.labels == c, score, -1.0), shots)
        return index

    index = jax.vmap(of_class)(jax.random.split(key, len(classes)), classes).ravel()
    return examples.inputs[index], jnp.repeat(jnp.arange(len(classes)), shots)


def few_shot(network: Network, data: PyTree, batch_size: int, *, num_classes: int = 10) -> Task:
    r"""The cross-entropy of a classifier among some classes, on minibatches drawn evenly from them, with replacement.

    .. math:: L(w) = -\frac{1}{B} \sum_b \log \mathrm{softmax}(f_w(x_b))_{y_b}, \qquad
       y_b \sim U\{1..W\}, \; x_b \sim U(\text{examples of class } c_{y_b})

    Its `variety`: `classes`, int [ways], a run's own, in the order of the network's outputs; needed. The loss of a class that
    there is not is NaN.

    Integers of 8 or 16 bits (`uint8` images) reach the network as float32 of the same numbers, as in `classification`.

    Args:
      network: any `init(key)` and `apply(weights, inputs) -> logits [batch, ways]`.
      data: `{split: (inputs [num, ...], labels int [num])}` with a split "train", labels in 0..num_classes-1.
      batch_size: examples a step, at least 1.
      num_classes: of the data.

    Returns:
      The task; its data are `ByClass`; `evaluate(weights, (inputs, labels))` gives `loss` and `accuracy` over the examples
      whose label is not -1, as `labels_among` and `draw_support` make them.

    Raises:
      ValueError: for a batch of no example, or labels as `by_class` refuses them.

    >>> linear = Network(lambda key: jnp.zeros((5, 2)), lambda weights, inputs: inputs @ weights)
    >>> task = few_shot(linear, {"train": (jnp.eye(5), jnp.array([0, 1, 1, 2, 2]))}, batch_size=8, num_classes=3)
    >>> inputs, labels = jnp.eye(5), labels_among(jnp.array([0, 1, 1, 2, 2]), jnp.array([2, 1]))
    >>> round(float(task.evaluate(task.init(jax.random.key(0)), (inputs, labels))["loss"]), 4)  # log 2
    0.6931
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    check_splits(data, num_classes)

    def draws(key, num_steps, variety):
        if not variety or "classes" not in variety:
            raise ValueError(
                "variety: expected `classes`, those of each run in the order of the network's outputs, got none"
            )
        classes = variety["classes"]
        if classes.ndim != 1 or not jnp.issubdtype(classes.dtype, jnp.integer):
            got = f"shape {classes.shape} of {classes.dtype}"
            raise ValueError(f"variety['classes']: expected integers [ways] for each run, got {got}")
        return {
            "key": jax.random.split(key, num_steps),
            "classes": jnp.broadcast_to(classes, (num_steps, len(classes))),
        }

    def loss(weights, data, draw):
        examples: ByClass = data["train"]
        key_class, key_example = jax.random.split(draw["key"])
        labels = jax.random.randint(key_class, (batch_size,), 0, len(draw["classes"]))
        c = draw["classes"][labels]
        index = examples.start[c] + jax.random.randint(key_example, (batch_size,), 0, examples.count[c])
        logits = network.apply(weights, as_inputs(examples.inputs[index]))
        check_logits(logits, len(draw["classes"]))
        known = jnp.all((draw["classes"] >= 0) & (draw["classes"] < num_classes))
        return jnp.where(known, _cross_entropy(logits, labels).mean(), jnp.nan)

    def evaluate(weights, split):
        inputs, labels = split
        logits = network.apply(weights, as_inputs(jnp.asarray(inputs)))
        counts = labels >= 0
        mean = lambda values: jnp.sum(jnp.where(counts, values, 0.0)) / counts.sum()
        return {"loss": mean(_cross_entropy(logits, labels)), "accuracy": mean(logits.argmax(-1) == labels)}

    examples = {split: by_class(inputs, labels, num_classes) for split, (inputs, labels) in data.items()}
    return Task(examples, lambda key, variety=None: network.init(key), draws, loss, evaluate)


def _cross_entropy(logits, labels) -> Float[Array, " batch"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
