"""What the loss around the last weights adds: exact on quadratics, optional everywhere."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import batch_of, run_of, small_runs, small_task

from gfm_jax.base import Curvature
from gfm_jax.fitting import fit
from gfm_jax.forecasting import (
    curvature_at,
    cut,
    flow_map,
    horizon_at,
    measure_curvature,
    observe,
    prefix_of,
)
from gfm_jax.forecasting.names import DIRECTIONS, KRYLOV, named, stack, stacked
from gfm_jax.pytrees import unravel

FIELD = {"batch_size": 64, "widths": (8,), "fractions": (0.3, 0.5)}


def quadratic_loss(eigenvalues, seed=0):
    """1/2 (w - m) H (w - m), with H of these eigenvalues, and its (H, m)."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    hessian, minimum = vectors @ np.diag(eigenvalues) @ vectors.T, rng.normal(size=len(eigenvalues))
    return lambda w: 0.5 * (w - minimum) @ hessian @ (w - minimum), hessian, minimum


TASK = small_task()


def train_loss(weights):
    return TASK.evaluate(unravel(jax.eval_shape(TASK.init, jax.random.key(0)), weights), TASK.data["train"])["loss"]


def first(runs):
    return jax.tree.map(lambda leaf: leaf[0], runs)


@pytest.fixture
def prefix():
    return prefix_of(first(small_runs()), 10)


@pytest.mark.usefixtures("x64")
def test_krylov_directions_span_the_powers_and_are_orthonormal():
    loss, hessian, minimum = quadratic_loss(np.geomspace(0.1, 3, 9))
    metric = np.geomspace(0.2, 2, 9)
    found = curvature_at(loss, jnp.zeros(9), jnp.array(metric))
    krylov = np.asarray(found.krylov)
    np.testing.assert_allclose(krylov / metric @ krylov.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(found.gradient, -hessian @ minimum, rtol=1e-10)
    np.testing.assert_allclose(found.loss, loss(np.zeros(9)), rtol=1e-10)
    power = -metric * np.asarray(found.gradient)
    for k in range(4):
        inside = krylov[: k + 1]
        coefficients = inside / metric @ power
        np.testing.assert_allclose(coefficients @ inside, power, rtol=1e-7, atol=1e-9)
        assert coefficients[-1] > 1e-3  # not already in the span of those before, and never against it
        power = metric * (hessian @ power)


@pytest.mark.usefixtures("x64")
def test_gradient_flow_on_a_quadratic_never_leaves_the_span():
    """With as many different eigenvalues as directions, wherever the flow is at any time."""
    loss, hessian, minimum = quadratic_loss([0.1, 0.1, 0.5, 0.5, 0.5, 2.0, 2.0, 4.0])
    krylov = np.asarray(curvature_at(loss, jnp.zeros(8), jnp.ones(8)).krylov)
    values, vectors = np.linalg.eigh(hessian)
    for time in (0.3, 3.0, 30.0):
        moved = vectors @ ((1 - np.exp(-values * time)) * (vectors.T @ minimum))
        np.testing.assert_allclose(moved @ krylov.T @ krylov, moved, rtol=1e-6, atol=1e-8)


def test_directions_know_no_units(prefix):
    seen, scaled = (observe(measure_curvature(prefix, loss)) for loss in (train_loss, lambda w: 100 * train_loss(w)))
    for name in KRYLOV:
        direction = np.asarray(seen.directions[name])
        np.testing.assert_allclose(direction, scaled.directions[name], rtol=2e-3, atol=2e-3)
        for tensor in range(len(prefix.layout.sizes)):
            inside = np.asarray(seen.segment) == tensor
            np.testing.assert_allclose((direction[inside] ** 2).mean(), 1, rtol=1e-4)


def test_without_a_measurement_there_is_no_curvature(prefix):
    around, blind = observe(measure_curvature(prefix, train_loss)), observe(prefix)
    for name in KRYLOV:
        np.testing.assert_array_equal(blind.directions.pop(name), 0)
        assert float(jnp.abs(around.directions.pop(name)).max()) > 0
    assert float(around.run["has_curvature"]) == 1.0
    assert float(blind.run["has_curvature"]) == 0.0
    chex.assert_trees_all_close(around.directions, blind.directions, rtol=1e-5, atol=1e-6)
    assert prefix_of(measure_curvature(prefix, train_loss), 5).curvature is None  # it was that of a later save


def test_an_end_of_training_has_curvature_too():
    """Where the gradient is zero, and where weights have none."""
    run = run_of(np.ones((5, 6)))
    for loss in (lambda w: jnp.sum((w - 1) ** 2), lambda w: w[0] ** 2):
        chex.assert_tree_all_finite(observe(measure_curvature(run, loss)))


def test_windows_measure_curvature_at_every_cut(prefix):
    runs = small_runs()

    def seen(run):
        features = stacked(observe(measure_curvature(run, train_loss)))
        return features._replace(directions=stack(features.directions, DIRECTIONS))

    windows = cut(runs, (0.5,), feature_dropout=(("curvature",), ("state",)), loss=train_loss)
    expected = jax.vmap(seen)(prefix_of(runs, 10))
    close = {"rtol": 1e-3, "atol": 1e-3}
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[:6], windows.features), expected, **close)
    blind = jax.tree.map(lambda leaf: leaf[6:12], windows.features)
    chex.assert_trees_all_close(blind, cut(runs, (0.5,)).features, **close)
    # without the second moment the directions are those of plain descent
    plain = jax.vmap(seen)(prefix_of(runs._replace(state=None), 10))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[12:], windows.features), plain, **close)
    plain, expected = (named(features.directions, DIRECTIONS) for features in (plain, expected))
    assert all(float(jnp.abs(plain[name] - expected[name]).max()) > 0.1 for name in KRYLOV)


def test_a_field_uses_the_curvature_that_it_was_fitted_with(prefix):
    horizon, measured = horizon_at(first(small_runs()), -1), measure_curvature(prefix, train_loss)
    for losses in (None, [train_loss]):
        forecaster = flow_map(losses=losses, **FIELD)
        params, _ = fit(jax.random.key(0), forecaster, [small_runs()], num_steps=30)
        assert float(params.has_curvature) == (losses is not None)
        forecasts = [forecaster.forecast(params, run, horizon).weights for run in (prefix, measured)]
        apart = float(jnp.abs(forecasts[0] - forecasts[1]).max())
        assert apart > 1e-4 if losses else apart == 0


def test_curvature_tells_what_a_prefix_cannot():
    """One-dimensional valleys with random minima: until it is cut, no run has moved in half of its weights."""

    def run_towards(minimum):
        shares = np.concatenate([np.linspace(0, 0.5, 9), np.linspace(0.6, 1, 8)])[:, None].astype(np.float32)
        late = np.where(np.arange(17)[:, None] < 9, np.float32(0), shares)
        return np.concatenate([shares * minimum[:4], late * minimum[4:]], axis=1)

    minima = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)
    runs = batch_of(run_of(run_towards(minimum)) for minimum in minima)
    prefixes = prefix_of(runs, 8)

    def error(know):
        about = lambda minimum: lambda w: jnp.sum((w - minimum) ** 2)
        seen_by = lambda run, minimum: observe(measure_curvature(run, about(minimum)) if know else run)
        seen = jax.vmap(seen_by)(prefixes, minima)
        basis, target = (
            np.stack([direction * seen.scale for direction in seen.directions.values()], axis=-1),
            np.asarray(runs.weights[:, -1] - runs.weights[:, 8]),
        )
        solve = lambda b, y: b @ np.linalg.lstsq(b, y, rcond=None)[0]
        left = [np.sum((solve(b, y) - y) ** 2) / np.sum(y**2) for b, y in zip(basis, target, strict=True)]
        return np.mean(left)

    assert error(know=False) > 0.2
    assert error(know=True) < 1e-3


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda run: measure_curvature(run, lambda w: w), "loss: expected a scalar"),
        (lambda run: measure_curvature(run._replace(weights=None), train_loss), "run: expected recorded weights"),
        (
            lambda run: fit(jax.random.key(0), flow_map(losses=[train_loss] * 2, **FIELD), [small_runs()]),
            "losses: expected one for each of the 1 batches",
        ),
    ],
)
def test_bad_input(call, match, prefix):
    with pytest.raises(ValueError, match=match):
        call(prefix)


def test_curvature_of_runs_of_any_optimizer():
    for optimizer in (optax.sgd, optax.adam):
        run = prefix_of(first(small_runs(optimizer)), 10)
        around = measure_curvature(run, train_loss).curvature
        assert isinstance(around, Curvature)
        assert around.krylov.shape == (4, run.weights.shape[-1])
        down = jax.jvp(train_loss, (run.weights[-1],), (around.krylov[0],))[1]
        assert float(down) < 0
