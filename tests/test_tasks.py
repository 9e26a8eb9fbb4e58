"""Training problems: what is known of them in closed form, and the variety of a zoo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import small_task

from gfm_jax.base import Network
from gfm_jax.networks import CNN
from gfm_jax.networks import cnn as cnn_module
from gfm_jax.tasks import (
    TaskFamily,
    branched,
    draw_structures,
    gradient_descent_end,
    heavy_ball_end,
    least_squares,
    linear_regression,
    streamed,
)
from gfm_jax.trajectories import record, record_many, save_steps

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
    runs = record_many(
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
    runs = record_many(keys, task, optax.sgd, jnp.full(num_steps, 0.1), save_steps(num_steps, 4), variety=variety)
    weights = np.asarray(runs.weights)
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_array_equal(weights[0, :3], weights[2, :3])  # up to step 10
    assert np.abs(weights[0, 3:] - weights[2, 3:]).max() > 1e-3
    plain = record_many(keys[:1], small_task(), optax.sgd, jnp.full(num_steps, 0.1), save_steps(num_steps, 4))
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
    runs = record_many(keys, task, optax.sgd, rates, (0, 100), variety={"slope": slopes})
    np.testing.assert_allclose(runs.weights[:, -1, 0], slopes, atol=1e-3)
    assert task.evaluate(jnp.array([2.0]), (jnp.ones(4), jnp.ones(4)))["loss"] == 1
    with pytest.raises(ValueError, match="variety: expected the law of each run, got none"):
        record_many(keys, task, optax.sgd, rates, (0, 100))
