"""Losses of a field by hand: what a gradient may flow through, and what it must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import jittered, small_runs

from gfm_jax.fitting import fit
from gfm_jax.forecasting import (
    FieldKind,
    cut,
    flow_map,
    function_space,
    function_space_loss,
    gradient_flow_matching,
    init_field,
    laplace_nll,
    relative_huber,
)
from gfm_jax.forecasting.field_forecaster import Params
from gfm_jax.forecasting.follow import displacement
from gfm_jax.forecasting.names import OUTPUTS, named
from gfm_jax.forecasting.objectives import ERROR_WEIGHT, Draws, draw_moves, flow_map_loss


@pytest.fixture(scope="module")
def drawn():
    """A field that is zero nowhere, and a batch of moves."""
    windows = [cut(small_runs(), (0.3, 0.5))]
    batch = draw_moves(Draws(32, 0.75, 0.5), jax.random.key(0), windows)
    field = init_field(jax.random.key(1), FieldKind("coordinate"), (8,), batch[0])
    return field._replace(network=jittered(field.network, 0.2)), batch, windows


def test_how_large_errors_are_expected_does_not_pull_on_the_forecast(drawn):
    """The gradient of the whole is that of its two parts, the second at errors that are held fixed."""
    field, batch, _ = drawn
    step, target, weight = batch
    gradient = lambda function: jax.jit(jax.grad(function))(field)
    found = gradient(lambda f: flow_map_loss(f, batch))
    forecast, _ = jax.jit(displacement)(field, step)
    along = gradient(lambda f: relative_huber(displacement(f, step)[0], target, weight))
    expected_error = gradient(lambda f: laplace_nll(displacement(f, step)[1], forecast - target))
    expected = jax.tree.map(lambda a, b: a + ERROR_WEIGHT * b, along, expected_error)
    leaves = zip(jax.tree.leaves(found.network), jax.tree.leaves(expected.network), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_error.network)) > 1e-3


def test_in_function_space_neither_does_it(drawn):
    """Where the loss at the weights and their error pull on nothing, only the expected error is learned."""
    field, _, windows = drawn
    learner = function_space(lambda w: jnp.zeros(()) * w.sum() + 1.0, widths=(8,), num_runs=2, weight=0.0).learner
    batch = learner.sample(jax.random.key(3), windows)
    params = Params(*field, None, (), jnp.zeros(()))
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, None, batch)[0]))(params)
    pulls = named(gradient.network["params"]["output"]["bias"], OUTPUTS)
    assert abs(float(pulls.pop("log_error"))) > 1e-4
    np.testing.assert_allclose([*pulls.values()], 0, atol=1e-8)  # on the coefficients and the residual


def test_the_loss_at_the_last_weights_is_a_constant():
    """(L(w_hat) + .001) / (L(w_n) + .001) is descended in the forecast alone, also where both are functions of one number."""
    loss = lambda w: jnp.sum(w**2)
    of = lambda shift: function_space_loss(loss, jnp.ones(2) + shift, jnp.ones(2) + shift, jnp.zeros(2), 0.0)
    assert float(jax.grad(of)(0.0)) == pytest.approx(4 / 2.001, rel=1e-5)
    at_rest = function_space_loss(loss, jnp.ones(2), jnp.zeros(2), jnp.zeros(2), 1.0)  # no error relative to no motion
    assert float(at_rest) == pytest.approx(np.log(2.001 / 0.001), rel=1e-5)
    below = function_space_loss(
        lambda w: -jnp.sum(w), jnp.ones(2), jnp.zeros(2), jnp.ones(2), 0.0
    )  # (wrong before 0.2)
    assert float(below) == pytest.approx(np.log(1e-3) - np.log(2.001), rel=1e-5)


def test_the_standardisation_of_features_is_not_learned():
    runs = small_runs()
    for method in (flow_map, gradient_flow_matching):
        forecaster = method(widths=(8,), batch_size=32, fractions=(0.3,))
        params, info = fit(jax.random.key(0), forecaster, runs, num_steps=3, learning_rate=0.1)
        learner = forecaster.learner
        key_init, _, key_data = jax.random.split(jax.random.key(0), 3)
        start = learner.init(key_init, learner.prepare(key_data, runs))
        for found in (params, info.last):
            np.testing.assert_array_equal(found.shift, start.shift)
            np.testing.assert_array_equal(found.spread, start.spread)
