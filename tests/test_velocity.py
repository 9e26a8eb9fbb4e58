"""Optimizers as vector fields: a discrete optimizer is a first-order integrator of its own field."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.optimizers import transformation_velocity, velocity
from gfm_jax.solve import solve_flow

CURVATURE = jnp.array([0.5, 1.0, 3.0])
START = jnp.array([1.0, -2.0, 0.5])
END = 1.0

# For a field that does not depend on the learning rate, momenta must forget in a fixed time tau: beta = 1 - lr / tau.
TAU = 0.2
TAU_2 = 0.5
PAIRS = {
    "sgd": (lambda lr: optax.sgd(lr), lambda lr: velocity.sgd()),
    "rmsprop": (
        lambda lr: optax.rmsprop(lr, decay=1 - lr / TAU, eps=1e-3, initial_scale=1.0),
        lambda lr: velocity.rmsprop(1 - lr / TAU, eps=1e-3),
    ),
    "adam": (
        lambda lr: optax.adam(lr, 1 - lr / TAU, 1 - lr / TAU_2),
        lambda lr: velocity.adam(1 - lr / TAU, 1 - lr / TAU_2),
    ),
    "adamw": (
        lambda lr: optax.adamw(lr, 1 - lr / TAU, 1 - lr / TAU_2, weight_decay=0.3),
        lambda lr: velocity.adamw(1 - lr / TAU, 1 - lr / TAU_2, weight_decay=0.3),
    ),
    # The trace grows like 1 / (1 - beta): the learning rate that the weights feel is lr / (1 - beta) = tau per step, so the
    # clock of the trace form is scaled: weights move by (1 - beta) of it.
    "momentum": (
        lambda lr: optax.sgd(lr * lr / TAU, momentum=1 - lr / TAU),
        lambda lr: velocity.momentum(1 - lr / TAU),
    ),
    "nesterov": (
        lambda lr: optax.sgd(lr * lr / TAU, momentum=1 - lr / TAU, nesterov=True),
        lambda lr: velocity.nesterov(1 - lr / TAU),
    ),
}


def gradient(weights):
    return CURVATURE * weights


def discrete_end(transform, lr):
    def step(carry, _):
        weights, state = carry
        updates, state = transform.update(gradient(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (START, transform.init(START)), length=round(END / lr))
    return weights


def continuous_end(field, lr, clock_speed):
    """The end of the field at lr, by a solver far finer than lr; slots of the trace form are in units of tau / lr."""

    def flow(t, x):
        weights, slots = x
        d_weights, d_slots = field.velocity(t * clock_speed, weights, slots, gradient(weights), lr * clock_speed)
        return jax.tree.map(lambda d: d * clock_speed, (d_weights, d_slots))

    slots = field.init(START)
    if "nu" in slots and len(slots) == 1:
        slots = {"nu": jnp.ones_like(START)}
    (weights, _), info = solve_flow(flow, (START, slots), 0.0, END, num_steps=4000, solver=diffrax.Heun())
    assert bool(info["finite"])
    return weights


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.usefixtures("x64")
def test_halving_the_rate_halves_the_distance_to_the_field(name):
    discrete, field = PAIRS[name]
    global START, CURVATURE
    start, curvature = START, CURVATURE
    START, CURVATURE = START.astype(float), CURVATURE.astype(float)
    try:
        distances = []
        for lr in (1 / 400, 1 / 800):
            speed = lr / TAU if name in ("momentum", "nesterov") else 1.0
            end = continuous_end(field(lr), lr, speed)
            distances.append(float(jnp.linalg.norm(discrete_end(discrete(lr), lr) - end)))
    finally:
        START, CURVATURE = start, curvature
    assert distances[0] > 1e-5  # they are not the same thing
    assert 1.9 < distances[0] / distances[1] < 2.1


@pytest.mark.usefixtures("x64")
def test_semi_implicit_euler_is_heavy_ball():
    """State first, then weights: one Euler step of length lr through the field is the discrete optimizer, to rounding."""
    lr, field = 0.05, velocity.momentum(0.9)
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
    state, weights = transform.init(START), START
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
    field, g = velocity.adam(), jnp.array([2.0, -0.5])
    slots = {"mu": g * (1 - 0.9**100), "nu": g**2 * (1 - 0.999**100)}
    moved, _ = field.velocity(100 * 1e-3, jnp.zeros(2), slots, g, 1e-3)
    np.testing.assert_allclose(moved, -jnp.sign(g), rtol=1e-2)


def test_fields_of_pytrees():
    weights = {"a": jnp.ones(2), "b": {"c": jnp.ones((2, 2))}}
    field = velocity.adamw()
    moved, slots = field.velocity(0.0, weights, field.init(weights), weights, 0.1)
    assert jax.tree.structure(moved) == jax.tree.structure(weights)
    assert jax.tree.structure(slots["nu"]) == jax.tree.structure(weights)


def test_bad_input():
    with pytest.raises(ValueError, match="b2: expected a decay in"):
        velocity.adam(b2=1.0)
    with pytest.raises(ValueError, match="decay"):
        velocity.momentum(-0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        transformation_velocity(optax.sgd(0.1), 0.0)
