"""Optimizers as vector fields: a discrete optimizer is a first-order integrator of its own field."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest

from gfm_jax.optimizers import fields, transformation_velocity
from gfm_jax.solve import solve_flow

CURVATURE = np.array([[0.5, 1.0, 3.0], [1.5, 0.7, 1.2]])
COUPLING = 0.2 * np.cos(np.arange(36.0).reshape(6, 6))
START = np.array([[1.0, -2.0, 0.5], [0.8, 1.5, -1.0]])


def muon(decay, nesterov=True):
    """Of one matrix, with Newton and Schulz's iteration to the end."""
    # Older versions do not find out the axes, and scale the update where there are more outputs than inputs.
    axes = optax.contrib.MuonDimensionNumbers(1, 0)
    return optax.contrib.scale_by_muon((1.5, -0.5, 0.0), 40, decay, nesterov=nesterov, weight_dimension_numbers=axes)


def gradient(weights):
    """Of a quadratic loss of a matrix."""
    mixed = COUPLING @ (COUPLING.T @ weights.reshape(-1))
    return CURVATURE * weights + mixed.reshape(weights.shape)


class Pair(NamedTuple):
    """An optimizer and its field, both by learning rate, with memories that are fixed in time.

    `speed` is that of the field's clock: in the form of optax's trace weights move by (1 - beta) of the learning rate.
    """

    discrete: Callable
    field: Callable
    end: float = 0.5
    speed: Callable = lambda lr: 1.0
    slots: Callable = lambda lr, weights: None  # what others start with than the field says
    updates: tuple[int, int] = (400, 800)


def chained(transform):
    return lambda lr: optax.chain(transform(lr), optax.scale_by_learning_rate(lr))


TAU, TAU_2 = 0.2, 0.5
b1, b2 = (lambda lr: 1 - lr / TAU), (lambda lr: 1 - lr / TAU_2)
adam_like = lambda optimizer, field: Pair(
    lambda lr: optimizer(lr, b1(lr), b2(lr)), lambda lr: field(b1(lr), b2(lr)), 1.0
)
PAIRS = {
    "sgd": Pair(optax.sgd, lambda lr: fields.sgd(), 1.0),
    "momentum": Pair(
        lambda lr: optax.sgd(lr * lr / TAU, momentum=b1(lr)),
        lambda lr: fields.momentum(b1(lr)),
        1.0,
        speed=lambda lr: lr / TAU,
    ),
    "nesterov": Pair(
        lambda lr: optax.sgd(lr * lr / TAU, momentum=b1(lr), nesterov=True),
        lambda lr: fields.nesterov(b1(lr)),
        1.0,
        speed=lambda lr: lr / TAU,
    ),
    "rmsprop": Pair(
        lambda lr: optax.rmsprop(lr, decay=b1(lr), eps=1e-3, initial_scale=1.0),
        lambda lr: fields.rmsprop(b1(lr), eps=1e-3),
        slots=lambda lr, weights: {"nu": jnp.ones_like(weights)},
    ),
    "adam": adam_like(optax.adam, fields.adam),
    "adamw": adam_like(
        functools.partial(optax.adamw, weight_decay=0.3), functools.partial(fields.adamw, weight_decay=0.3)
    ),
    "nadam": adam_like(optax.nadam, fields.nadam),
    "lion": Pair(
        lambda lr: optax.lion(lr, 0.9, b2(lr), weight_decay=0.1), lambda lr: fields.lion(0.9, b2(lr), 0.1), 0.2
    ),
    "muon": Pair(
        chained(lambda lr: muon(b1(lr), nesterov=False)),
        lambda lr: fields.muon(b1(lr), nesterov=False),
    ),
    "muon with nesterov's momentum": Pair(chained(lambda lr: muon(b1(lr))), lambda lr: fields.muon(b1(lr))),
    "schedule_free": Pair(
        functools.partial(optax.contrib.schedule_free_sgd, b1=0.9, weight_decay=0.0),
        lambda lr: fields.schedule_free(),
        1.0,
    ),
    "adafactor": Pair(
        chained(lambda lr: optax.scale_by_factored_rms(min_dim_size_to_factor=2)),
        lambda lr: fields.adafactor(min_dim_size_to_factor=2),
    ),
    "adafactor in full": Pair(  # two errors of opposite signs, of which one dies out faster
        chained(lambda lr: optax.scale_by_factored_rms()), lambda lr: fields.adafactor(), updates=(3200, 6400)
    ),
}


def discrete_end(transform, num):
    start = jnp.asarray(START, float)

    def step(_, carry):
        weights, state = carry
        updates, state = transform.update(gradient(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    return jax.jit(lambda: jax.lax.fori_loop(0, num, step, (start, transform.init(start)))[0])()


def continuous_end(pair, lr, num):
    """The end of the field at lr, by a solver far finer than lr."""
    start, field, speed = jnp.asarray(START, float), pair.field(lr), pair.speed(lr)

    def flow(t, x):
        weights, slots = x
        moved = field.velocity(t * speed, weights, slots, gradient(weights), lr * speed)
        return jax.tree.map(lambda d: d * speed, moved)

    slots = pair.slots(lr, start) or field.init(start)
    finer = {"num_steps": max(4000, 8 * num), "solver": diffrax.Heun()}
    (weights, _), info = solve_flow(flow, (start, slots), 0.0, num * lr, **finer)
    assert bool(info["finite"])
    return weights


def distance(pair, lr, num):
    return float(jnp.linalg.norm(discrete_end(pair.discrete(lr), num) - continuous_end(pair, lr, num)))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.usefixtures("x64")
def test_halving_the_rate_halves_the_distance_to_the_field(name):
    pair = PAIRS[name]
    far = [distance(pair, pair.end / num, num) for num in pair.updates]
    assert far[0] > 1e-6  # they are not the same thing
    assert far[0] / far[1] == pytest.approx(2.0, abs=0.1)


@pytest.mark.usefixtures("x64")
def test_adagrad_has_a_clock_of_its_own():
    """In the sum of squared rates: half the rate is a quarter of a step, and of the distance."""
    accumulator = lambda lr: 0.5 / lr**2
    pair = Pair(
        lambda lr: optax.adagrad(lr, accumulator(lr), eps=0.0), lambda lr: fields.adagrad(accumulator(lr), eps=0.0)
    )
    far = [distance(pair, lr, round(0.5 / lr**2)) for lr in (0.04, 0.02)]
    assert far[0] / far[1] == pytest.approx(4.0, abs=0.1)


@pytest.mark.usefixtures("x64")
def test_descent_by_signs_is_its_field_until_a_sign_changes():
    assert distance(Pair(optax.sign_sgd, lambda lr: fields.sign_sgd()), 0.001, 200) < 1e-10


@pytest.mark.usefixtures("x64")
def test_a_sign_of_matrices_has_no_singular_values_but_one():
    matrix = jnp.asarray(START)
    np.testing.assert_allclose(jnp.linalg.svd(fields.matrix_sign(matrix))[1], 1.0, rtol=1e-12)
    of_rank_one = jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(fields.matrix_sign(of_rank_one), of_rank_one / 5, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_the_derivative_of_a_sign_of_matrices(shape, key):
    matrices = jax.random.normal(key, (3, *shape))
    jax.test_util.check_grads(jax.jit(jax.vmap(fields.matrix_sign)), (matrices,), order=1)
    signs = jnp.stack([fields.matrix_sign(matrix) for matrix in matrices])
    np.testing.assert_allclose(jax.vmap(fields.matrix_sign)(matrices), signs, atol=1e-12)
    equal = jax.jit(jax.jacobian(fields.matrix_sign))(jnp.eye(*shape))  # of singular values that are all the same
    assert jnp.isfinite(equal).all()


@pytest.mark.usefixtures("x64")
def test_a_matched_decay_closes_the_field():
    """In the sum of learning rates RMSprop takes one path under every schedule, to the first order."""
    optimizer = optax.inject_hyperparams(functools.partial(optax.rmsprop, eps=1e-3, initial_scale=1.0))
    far = {"matched": [], "fixed": []}
    for num in (400, 800):
        ends = {"matched": [], "fixed": []}
        for shape in (jnp.ones(num), 1 + 0.8 * jnp.cos(jnp.linspace(0, jnp.pi, num))):
            rates = shape / shape.sum()
            schedule = lambda count, rates=rates: rates[count]
            decays = {"matched": fields.matched_decay(schedule, TAU), "fixed": float(np.exp(-1 / num / TAU))}
            for name, decay in decays.items():
                ends[name].append(discrete_end(optimizer(schedule, decay=decay), num))
        for name, (a, b) in ends.items():
            far[name].append(float(jnp.linalg.norm(a - b)))
    assert far["matched"][0] / far["matched"][1] == pytest.approx(2.0, abs=0.1)
    assert far["fixed"][0] / far["fixed"][1] == pytest.approx(1.0, abs=0.1)
    assert far["fixed"][1] > 10 * far["matched"][1]


def test_a_memory_and_its_decay():
    assert float(fields.memory(0.9, 0.01)) == pytest.approx(0.1)
    assert float(fields.memory(fields.matched_decay(1e-4, TAU)(0), 1e-4)) == pytest.approx(TAU, rel=1e-2)


@pytest.mark.usefixtures("x64")
def test_semi_implicit_euler_is_heavy_ball():
    """State first, then weights: one Euler step of length lr through the field is the discrete optimizer, to rounding."""
    lr, field = 0.05, fields.momentum(0.9)
    weights, slots = jnp.array([1.0, -2.0, 0.5]), {"trace": jnp.zeros(3)}
    transform, state = optax.sgd(lr, momentum=0.9), None
    true, state = weights, transform.init(weights)
    for k in range(50):
        g = jnp.array([0.5, 1.0, 3.0]) * weights
        _, d_slots = field.velocity(k * lr, weights, slots, g, lr)
        slots = jax.tree.map(lambda s, d: s + lr * d, slots, d_slots)
        d_weights, _ = field.velocity(k * lr, weights, slots, g, lr)
        weights = weights + lr * d_weights
        updates, state = transform.update(jnp.array([0.5, 1.0, 3.0]) * true, state, true)
        true = optax.apply_updates(true, updates)
    np.testing.assert_allclose(weights, true, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "build",
    [optax.sgd, optax.adam, optax.rmsprop, optax.lion, functools.partial(optax.sgd, momentum=0.9), optax.adagrad],
)
def test_any_transformation_has_a_velocity_whose_euler_step_it_is(build):
    lr = 0.01
    transform = build(lr)
    weights = jnp.asarray(START[0], jnp.float32)
    state, gradient = transform.init(weights), lambda weights: CURVATURE[0].astype(np.float32) * weights
    for _ in range(3):
        updates, new_state = transform.update(gradient(weights), state, weights)
        d_weights, d_state = transformation_velocity(transform, lr)(weights, state, gradient(weights))
        np.testing.assert_allclose(
            weights + lr * d_weights, optax.apply_updates(weights, updates), rtol=1e-5, atol=1e-6
        )
        for old, new, change in zip(*map(jax.tree.leaves, (state, new_state, d_state)), strict=True):
            scale = lr if jnp.issubdtype(jnp.asarray(new).dtype, jnp.floating) else 1
            np.testing.assert_allclose(np.asarray(old) + scale * np.asarray(change), new, rtol=1e-4, atol=1e-6)
        weights, state = optax.apply_updates(weights, updates), new_state


def test_adam_under_a_constant_gradient_moves_at_speed_one():
    field, g = fields.adam(), jnp.array([2.0, -0.5])
    slots = {"mu": g * (1 - 0.9**100), "nu": g**2 * (1 - 0.999**100)}
    moved, _ = field.velocity(100 * 1e-3, jnp.zeros(2), slots, g, 1e-3)
    np.testing.assert_allclose(moved, -jnp.sign(g), rtol=1e-2)


def test_fields_of_pytrees():
    weights = {"a": jnp.ones(2), "b": {"c": jnp.ones((2, 2))}}
    field = fields.adamw()
    moved, slots = field.velocity(0.0, weights, field.init(weights), weights, 0.1)
    assert jax.tree.structure(moved) == jax.tree.structure(weights)
    assert jax.tree.structure(slots["nu"]) == jax.tree.structure(weights)


def test_bad_input():
    with pytest.raises(ValueError, match="b2: expected a decay in"):
        fields.adam(b2=1.0)
    with pytest.raises(ValueError, match="decay"):
        fields.momentum(-0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        transformation_velocity(optax.sgd(0.1), 0.0)
    with pytest.raises(ValueError, match="decay_rate: expected an exponent"):
        fields.adafactor(1.0)
    with pytest.raises(ValueError, match="tau: expected a positive time"):
        fields.matched_decay(0.1, 0.0)
    with pytest.raises(ValueError, match="weights: expected matrices, got one of shape"):
        fields.muon().velocity(0.0, jnp.ones(3), {"mu": jnp.ones(3)}, jnp.ones(3), 0.1)
