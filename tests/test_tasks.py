"""Training problems: what is known of them in closed form, and the variety of a zoo."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import small_task

from gfm_jax.base import Network
from gfm_jax.networks import CNN, MLP
from gfm_jax.networks import cnn as cnn_module
from gfm_jax.runs import (
    TaskFamily,
    branched,
    classification,
    draw_structures,
    gradient_descent_end,
    heavy_ball_end,
    least_squares,
    linear_regression,
    logistic_regression,
    minibatch_indices,
    quadratic,
    record,
    save_steps,
    streamed,
)

FAMILY = TaskFamily(
    tasks=(small_task(), small_task((6, 3))),
    optimizers=((optax.adam, (1e-3, 1e-2)), (optax.sgd, (0.1, 0.1))),
    schedules=("constant", "cosine", "warmup_cosine", "linear"),
    variety={"label_noise": (0.0, 0.5), "init_scale": (0.5, 2.0)},
)


def test_a_family_draws_what_it_says(key):
    structures = draw_structures(key, FAMILY, 40, 30)
    assert [(s.task, s.optimizer) for s in structures] == [(t, o) for t in FAMILY.tasks for o, _ in FAMILY.optimizers]
    adam, sgd = structures[:2]
    assert adam.learning_rate.shape == (40, 30)
    peaks = adam.learning_rate.max(1)
    assert 9e-4 < float(peaks.min()) < 3e-3
    assert 4e-3 < float(peaks.max()) <= 1.001e-2
    assert (
        len(np.unique(np.round(np.asarray(sgd.learning_rate / sgd.learning_rate.max(1, keepdims=True)), 4), axis=0))
        == 4
    )
    for name, (low, high) in FAMILY.variety.items():
        values = np.asarray(adam.variety[name])
        assert low <= values.min() < values.max() <= high
        assert np.abs(np.corrcoef(values, sgd.variety[name])[0, 1]) < 0.5  # structures draw apart
    assert len({tuple(jax.random.key_data(k).tolist()) for s in structures for k in s.keys}) == 160


def test_a_drawn_structure_records(key):
    drawn = draw_structures(key, FAMILY, 3, 12)[0]
    runs = record(
        drawn.keys, drawn.task, drawn.optimizer, drawn.learning_rate, save_steps(12, 3), variety=drawn.variety
    )
    assert runs.weights.shape[:2] == (3, 4)
    assert bool(runs.finite.all())
    size = np.linalg.norm(np.asarray(runs.weights[:, 0]), axis=1)
    assert np.argsort(size).tolist() == np.argsort(np.asarray(drawn.variety["init_scale"])).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedules": ("cosin",)}, "cosin"),
        ({"variety": {"label_noise": (0.5, 0.1)}}, "label_noise"),
        ({"optimizers": ((optax.sgd, (0.0, 0.1)),)}, "learning rates"),
    ],
)
def test_a_family_refuses(key, change, message):
    with pytest.raises(ValueError, match=message):
        draw_structures(key, FAMILY._replace(**change), 2, 5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["gradient descent", "heavy ball"])
def test_linear_regression_ends_where_it_must(name, key):
    rate, num_steps = 0.07, 50
    task = linear_regression(key, 64, 5)
    task = task._replace(data=jax.tree.map(lambda x: x.astype(float), task.data))
    optimizer, end = {
        "gradient descent": (optax.sgd, lambda w: gradient_descent_end(task, w, rate, num_steps)),
        "heavy ball": (
            functools.partial(optax.sgd, momentum=0.8),
            lambda w: heavy_ball_end(task, w, rate, 0.8, num_steps),
        ),
    }[name]
    run = record(key, task, optimizer, jnp.full(num_steps, rate), [0, num_steps], dtype=jnp.float64)
    np.testing.assert_allclose(run.weights[-1], end(run.weights[0]), rtol=1e-9)
    minimum, hessian = least_squares(task)
    gradient = jax.grad(task.loss)(minimum, task.data, jnp.zeros(0))
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    np.testing.assert_allclose(jax.hessian(task.loss)(minimum, task.data, jnp.zeros(0)), hessian, rtol=1e-9)


def test_problems_of_one_shape_share_their_functions():
    one, two = (linear_regression(jax.random.key(i), 16, 3) for i in range(2))
    assert one.loss is two.loss
    assert not np.allclose(one.data["train"][0], two.data["train"][0])


def test_branches_part_where_they_should(key):
    task, num_steps = branched(small_task()), 20
    keys = jnp.stack([key] * 3)
    variety = {"branch": np.array([0, 0, 1]), "branch_step": np.full(3, 10)}
    runs = record(keys, task, optax.sgd, jnp.full(num_steps, 0.1), save_steps(num_steps, 4), variety=variety)
    weights = np.asarray(runs.weights)
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_array_equal(weights[0, :3], weights[2, :3])  # up to step 10
    assert np.abs(weights[0, 3:] - weights[2, 3:]).max() > 1e-3
    plain = record(keys[:1], small_task(), optax.sgd, jnp.full(num_steps, 0.1), save_steps(num_steps, 4))
    np.testing.assert_array_equal(weights[0, :3], plain.weights[0, :3])


@pytest.mark.parametrize("padding", [0, 1])
def test_small_images_are_convolved_as_large_ones(padding, key, monkeypatch):
    x = jax.random.normal(key, (5, 7, 6, 3))
    conv = cnn_module.Conv3x3(4, padding)
    weights = conv.init(key, x)
    along_rows = conv.apply(weights, x)
    monkeypatch.setattr(cnn_module, "DENSE_PIXELS", 0)
    np.testing.assert_allclose(along_rows, conv.apply(weights, x), rtol=1e-5, atol=1e-5)


def test_cnn_pools_by_maxima(key):
    x = jax.random.normal(key, (2, 5, 4, 3))
    expected = np.asarray(x)[:, :4].reshape(2, 2, 2, 2, 2, 3).max((2, 4))
    np.testing.assert_array_equal(cnn_module.max_pool(x), expected)
    assert CNN((2, 3)).init(key, jnp.zeros((1, 8, 8, 1)))["params"]["output"]["kernel"].shape == (27, 10)


def test_every_run_has_a_law_of_its_own(key):
    """A line through the origin, of a slope that the law names: each run finds its own."""
    network = Network(lambda key: jnp.zeros(1), lambda w, x: w * x)

    def draw(key, law):
        x = jax.random.normal(key, (16,))
        return x, law["slope"] * x

    task = streamed(network, draw, lambda outputs, targets: jnp.mean((outputs - targets) ** 2))
    slopes = jnp.array([-1.0, 0.5, 3.0])
    keys, rates = jax.random.split(key, 3), np.full(100, 0.1)
    runs = record(keys, task, optax.sgd, rates, (0, 100), variety={"slope": slopes})
    np.testing.assert_allclose(runs.weights[:, -1, 0], slopes, atol=1e-3)
    assert task.evaluate(jnp.array([2.0]), (jnp.ones(4), jnp.ones(4)))["loss"] == 1
    with pytest.raises(ValueError, match="variety: expected the law of each run, got none"):
        record(keys, task, optax.sgd, rates, (0, 100))


IMAGES = np.array([[0, 255], [254, 3], [128, 127], [1, 250]], np.uint8)


def seen_by_the_network(inputs, variety=None, labels=(0, 1, 0, 1)):
    """The inputs that reach a network in the loss of one step over all examples, in their own order."""
    seen = []
    apply = lambda weights, x: (seen.append(x), jnp.zeros((len(x), 2)))[1]
    task = classification(
        Network(lambda key: jnp.zeros(1), apply), {"train": (inputs, np.array(labels))}, 4, num_classes=2
    )
    draw = jax.tree.map(lambda leaf: leaf[0], task.draws(jax.random.key(0), 1, variety))
    task.loss(None, task.data, draw)
    task.evaluate(None, task.data["train"])
    [of_step, of_split] = seen
    return np.asarray(of_step)[np.argsort(np.asarray(draw["index"]))], np.asarray(of_split), task


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_noise_on_bytes_does_not_wrap(dtype):
    """(wrong before 0.2)"""
    inputs = IMAGES.astype(dtype)
    quiet, split, task = seen_by_the_network(inputs)
    np.testing.assert_array_equal(quiet, IMAGES)
    np.testing.assert_array_equal(split, IMAGES)
    assert task.data["train"][0].dtype == dtype  # kept as small as it came
    noisy, *_ = seen_by_the_network(inputs, {"data_noise": 4.0})
    assert noisy.dtype == np.float32
    off = noisy - IMAGES.astype(np.float32)
    assert 0.5 < np.abs(off).max() < 20
    same, *_ = seen_by_the_network(IMAGES.astype(np.float32), {"data_noise": 4.0})
    np.testing.assert_array_equal(noisy, same)


def test_inputs_reach_the_network_as_numbers_it_can_subtract():
    """(wrong before 0.2)"""
    assert seen_by_the_network(IMAGES)[0].dtype == seen_by_the_network(IMAGES)[1].dtype == np.float32
    assert seen_by_the_network(IMAGES > 100)[0].dtype == np.float32
    assert seen_by_the_network(IMAGES.astype(np.int32))[0].dtype == np.int32  # indices for an embedding


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0.0, 1.0, 0.0, 1.0])}, "expected labels that are integers, got dtype float"),
        ({"labels": np.array([0, 1, 2, 1])}, r"expected labels in 0..1, got 0..2"),
        ({"labels": np.eye(4, 2, dtype=int)}, r"expected labels \[num\]"),
        ({"labels": np.array([0, 1, 1])}, "expected a label for each of 4 inputs, got 3"),
        ({"inputs": np.array([[0.0, 1], [1, 2], [np.nan, 1], [2, 2]])}, "1 of 4 are not, such as number 2"),
        ({"inputs": np.array([["a", "b"]] * 4)}, "expected inputs of real numbers"),
        ({"split": "test"}, r"data: expected a dict of splits, with 'train' among them, got \['test'\]"),
        ({"batch_size": 5}, "batch_size: expected 1..4"),
    ],
)
def test_examples_that_cannot_be_learned_are_refused(change, message):
    """(wrong before 0.2)"""
    given = {"inputs": IMAGES, "labels": np.array([0, 1, 0, 1]), "split": "train", "batch_size": 2} | change
    network = Network(lambda key: jnp.zeros(1), lambda weights, x: jnp.zeros((len(x), 2)))
    data = {given["split"]: (given["inputs"], given["labels"])}
    with pytest.raises(ValueError, match=message):
        classification(network, data, given["batch_size"], num_classes=2)


def test_a_flax_module_and_examples_are_a_task(key):
    """As a network of its own and a dict of splits: the same weights and losses; classes are counted."""
    net = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])
    labels = np.array([0, 1, 2, 1])
    bare = classification(net, (IMAGES, labels), 2)
    inputs = jnp.asarray(IMAGES, jnp.float32)
    wrapped = classification(Network(lambda key: net.init(key, inputs[:1]), net.apply), {"train": (IMAGES, labels)}, 2)
    runs = [record(key, task, optax.sgd, np.full(4, 1e-4, np.float32), (0, 4)) for task in (bare, wrapped)]
    chex.assert_trees_all_equal(*runs)
    with pytest.raises(ValueError, match=r"labels from 0 on, got -1\.\.2"):
        classification(net, (IMAGES, labels - (labels == 0)), 2)
    with pytest.raises(ValueError, match="num_classes: expected a number where the labels are traced"):
        jax.eval_shape(lambda labels: classification(net, (IMAGES, labels), 2).data, jnp.asarray(labels))


@pytest.mark.usefixtures("unchecked")
def test_a_network_of_too_few_outputs_is_refused(key):
    """(wrong before 0.2)"""
    network = Network(lambda key: jnp.zeros(1), lambda weights, x: jnp.zeros((len(x), 2)))
    task = classification(network, {"train": (IMAGES, np.array([0, 1, 2, 1]))}, 2)
    with pytest.raises(ValueError, match=r"network: expected outputs \[batch, 3\]"):
        record(key, task, optax.sgd, np.full(2, 0.1), [0, 2])
    with pytest.raises(ValueError, match=r"batch_size: expected 1..4, the size of the data, got 5"):
        minibatch_indices(key, 4, 5, 1)
    with pytest.raises(
        ValueError, match="variety: expected `branch` and `branch_step` of each run, got no branch_step"
    ):
        branched(task).draws(key, 3, {"branch": 0})


def test_a_task_is_made_inside_jit(key):
    """(wrong before 0.2)"""
    network = Network(lambda key: jnp.zeros((2, 2)), lambda weights, x: x @ weights)
    labels = np.array([0, 1, 0, 1])
    make = lambda inputs: classification(network, {"train": (inputs, labels)}, 4, num_classes=2)
    inputs = IMAGES.astype(np.float32) / 255
    call = lambda inputs: record(key, make(inputs), optax.sgd, np.full(2, 0.1), [0, 2]).weights
    np.testing.assert_allclose(jax.jit(call)(inputs), call(inputs), rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_quadratic_of_integers_and_a_logistic_regression_at_zero(key):
    """(wrong before 0.2)"""
    task = quadratic(jnp.array([1, 2]), 1)
    np.testing.assert_allclose(task.evaluate(jnp.zeros(2), task.data)["loss"], 1.5)
    run = record(key, task, optax.sgd, np.array([0.5, 0.0]), [0, 2])
    np.testing.assert_allclose(run.weights[1], 1 + (run.weights[0] - 1) * np.array([0.5, 0.0]), atol=1e-6)
    task = logistic_regression(key, 32, 3)
    inputs, labels = task.data["train"]
    assert set(np.unique(labels)) == {0, 1}
    loss, gradient = jax.value_and_grad(task.loss)(jnp.zeros(3), task.data, jnp.zeros(0))
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_allclose(gradient, inputs.T @ (0.5 - labels) / 32, rtol=1e-4, atol=1e-6)


def test_examples_may_be_lists():
    """(wrong before 0.2): under strict warnings they were refused."""
    inputs, labels = small_task().data["train"]
    module = MLP((4, 3))
    network = Network(jax.jit(lambda key: module.init(key, jnp.zeros((1, 5)))), module.apply)
    listed = classification(network, {"train": (inputs.tolist(), labels.tolist())}, batch_size=8, num_classes=3)
    for a, b in zip(listed.data["train"], (inputs, labels), strict=True):
        np.testing.assert_array_equal(a, b)
