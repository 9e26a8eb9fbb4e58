"""Tasks that are subsets of the classes of one data set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.base import Network
from gfm_jax.networks import MLP
from gfm_jax.pytrees import unravel
from gfm_jax.runs import by_class, class_subsets, draw_support, few_shot, labels_among, record

NUM_CLASSES, WAYS = 6, 3


@pytest.fixture
def data():
    """Points around a centre for each class, of unequal numbers; the first coordinate tells the class."""
    labels = np.repeat(np.arange(NUM_CLASSES), [10, 40, 20, 30, 15, 25])[np.random.default_rng(0).permutation(140)]
    inputs = np.random.default_rng(1).normal(size=(140, 4)) + 5 * np.eye(NUM_CLASSES, 4)[labels]
    inputs[:, 0] = labels
    return inputs.astype(np.float32), labels.astype(np.int32)


def network_of(inputs):
    module = MLP((8, WAYS))
    return Network(jax.jit(lambda key: module.init(key, inputs[:1])), module.apply)


def test_subsets_are_shared_out_without_overlap(key):
    found = class_subsets(key, NUM_CLASSES, WAYS, {"train": 0.7, "validation": 0.1, "held_out": 0.2})
    assert {split: len(subsets) for split, subsets in found.items()} == {"train": 14, "validation": 2, "held_out": 4}
    assert len({tuple(subset) for subsets in found.values() for subset in subsets.tolist()}) == 20


def test_examples_in_order_of_their_classes(data):
    found = by_class(*data, NUM_CLASSES)
    for c, (start, count) in enumerate(zip(found.start, found.count, strict=True)):
        assert set(found.labels[start : start + count].tolist()) == {c}
        assert set(found.inputs[start : start + count, 0].tolist()) == {float(c)}
    assert int(found.count.sum()) == len(data[0])


def test_a_support_set_has_different_examples_of_each_class(data, key):
    examples, classes = by_class(*data, NUM_CLASSES), jnp.array([4, 0, 2])
    inputs, labels = jax.jit(draw_support, static_argnums=3)(key, examples, classes, 10)
    closed_over = jax.jit(lambda key: draw_support(key, examples, classes, 10)[0])
    np.testing.assert_array_equal(closed_over(key), inputs)
    assert labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    np.testing.assert_array_equal(inputs[:, 0], classes[labels])
    assert len(np.unique(np.asarray(inputs), axis=0)) == 30
    np.testing.assert_array_equal(labels_among(inputs[:, 0].astype(int), classes), labels)
    assert labels_among(jnp.array([1, 4, 3]), classes).tolist() == [-1, 0, -1]


def test_minibatches_are_even_and_of_the_runs_own_classes(data, key):
    task = few_shot(network_of(data[0]), {"train": data}, 64, num_classes=NUM_CLASSES)
    seen = []
    told = few_shot(Network(None, lambda w, x: (seen.append(x), jnp.zeros((len(x), WAYS)))[1]), {"train": data}, 3000,
                    num_classes=NUM_CLASSES)  # fmt: skip
    draw = jax.tree.map(lambda leaf: leaf[3], told.draws(key, 5, {"classes": jnp.array([5, 0, 1])}))
    told.loss(None, told.data, draw)
    counts = np.bincount(np.asarray(seen[0][:, 0]).astype(int), minlength=NUM_CLASSES)
    assert counts[[2, 3, 4]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(counts[[5, 0, 1]], 1000, atol=100)
    assert task.data["train"].inputs.shape == data[0].shape


def test_runs_learn_their_own_classes(data, key):
    network = network_of(data[0])
    task = few_shot(network, {"train": data, "test": data}, 16, num_classes=NUM_CLASSES)
    classes = jnp.array([[0, 1, 2], [2, 1, 0], [5, 3, 4]])
    runs = record(
        jax.random.split(key, 3), task, optax.adam, jnp.full(400, 2e-2), (0, 400), keep=("weights",),
        variety={"classes": classes},
    )  # fmt: skip
    like = task.init(key)
    examples = task.data["test"]
    for w, own in zip(runs.weights[:, -1], classes, strict=True):
        split = examples.inputs, labels_among(examples.labels, own)
        told = task.evaluate(unravel(like, w), split)
        assert told["accuracy"] > 0.9
        alone = jax.tree.map(lambda part, own=own: part[np.isin(examples.labels, own)], split)
        assert told["loss"] == pytest.approx(float(task.evaluate(unravel(like, w), alone)["loss"]), rel=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: by_class(x, y[:-1], 6), "labels: expected one for each of 140 inputs, got 139"),
        (lambda x, y: by_class(x, y, 5), r"labels: expected 0..4, got 0..5"),
        (lambda x, y: by_class(x, y.astype(float), 6), "expected labels that are integers, got dtype float64"),
        (lambda x, y: by_class(np.where(x == x[3, 0], np.nan, x), y, 6), "expected finite inputs"),
        (lambda x, y: few_shot(network_of(x), {"test": (x, y)}, 4, num_classes=6), "data: expected a dict of splits"),
        (lambda x, y: by_class(x, y, 7), r"labels: expected examples of every class, got none of \[6\]"),
        (lambda x, y: draw_support(jax.random.key(0), by_class(x, y, 6), jnp.arange(3), 11), r"shots: expected 1..10"),
        (lambda x, y: draw_support(jax.random.key(0), by_class(x, y, 6), jnp.arange(3), 0), r"shots: expected 1..10"),
        (lambda x, y: few_shot(network_of(x), {"train": (x, y)}, 0, num_classes=6), "batch_size: expected at least 1"),
        (lambda x, y: draw_support(jax.random.key(0), by_class(x, y, 6), jnp.array([5, 6]), 2), r"0..5, got \[5, 6\]"),
        (lambda x, y: class_subsets(jax.random.key(0), 6, 7, {"train": 1.0}), "num_ways: expected 1..6"),
        (
            lambda x, y: class_subsets(jax.random.key(0), 6, 3, {"a": 0.9, "b": 0.2}),
            "fractions: expected positive ones",
        ),
    ],
)
def test_bad_input(call, message, data):
    with pytest.raises(ValueError, match=message):
        call(*data)


def test_the_loss_of_a_class_that_there_is_not_is_no_number(data, key):
    task = few_shot(network_of(data[0]), {"train": data}, 8, num_classes=NUM_CLASSES)
    weights = task.init(key)
    for classes, finite in (([5, 0, 1], True), ([6, 0, 1], False), ([0, -1, 1], False)):
        draw = jax.tree.map(lambda leaf: leaf[0], task.draws(key, 1, {"classes": jnp.array(classes)}))
        assert bool(jnp.isfinite(task.loss(weights, task.data, draw))) is finite


def test_bytes_reach_the_network_as_numbers(data, key):
    """(wrong before 0.2)"""
    inputs, seen = np.abs(data[0] * 10).astype(np.uint8), []
    network = Network(None, lambda w, x: (seen.append(x), jnp.zeros((len(x), WAYS)))[1])
    task = few_shot(network, {"train": (inputs, data[1])}, 8, num_classes=NUM_CLASSES)
    draw = jax.tree.map(lambda leaf: leaf[0], task.draws(key, 1, {"classes": jnp.array([5, 0, 1])}))
    task.loss(None, task.data, draw)
    task.evaluate(None, (task.data["train"].inputs, task.data["train"].labels))
    assert [x.dtype for x in seen] == [jnp.float32] * 2
    assert task.data["train"].inputs.dtype == np.uint8
    np.testing.assert_array_equal(np.sort(seen[1], 0), np.sort(inputs, 0))


@pytest.mark.usefixtures("unchecked")
def test_runs_without_classes_are_refused(data, key):
    """(wrong before 0.2)"""
    task = few_shot(network_of(data[0]), {"train": data}, 8, num_classes=NUM_CLASSES)
    call = lambda variety: record(key[None], task, optax.sgd, np.full(2, 0.1), (0, 2), variety=variety)
    with pytest.raises(ValueError, match="variety: expected `classes`"):
        call(None)
    with pytest.raises(
        ValueError, match=r"variety\['classes'\]: expected integers \[ways\] for each run, got shape \(\)"
    ):
        call({"classes": np.array([1])})
    with pytest.raises(ValueError, match=r"network: expected outputs \[batch, 4\]"):
        call({"classes": np.array([[0, 1, 2, 3]])})
