"""Forecasts from records in other precisions, and with double precision switched on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import small_runs, small_task

from gfm_jax.fitting import fit
from gfm_jax.flows import GaussianSource, adjoint_matching_targets, closed_form_velocity, draw_gaussian
from gfm_jax.flows.analytic import uniform_on_boxes
from gfm_jax.flows.metrics import frechet, mmd, sliced_wasserstein
from gfm_jax.forecasting import baselines, calibrate, flow_map, horizon_at, observe, prefix_of
from gfm_jax.optimizers.fields import matrix_sign
from gfm_jax.runs import gradient_descent_end, linear_regression, record, save_steps
from gfm_jax.weights import class_context, low_rank, pca


@functools.cache
def fitted():
    fractions = (0.3, 0.5)
    forecaster = flow_map(batch_size=128, widths=(16,), fractions=fractions)
    params, _ = fit(jax.random.key(0), forecaster, small_runs(), num_steps=100)
    return forecaster, calibrate(params, small_runs(), fractions=fractions, coverage=0.8)


def recorded(dtype):
    rates = jnp.full(60, 0.01)
    return record(jax.random.key(5), small_task(), optax.adam, rates, save_steps(60, 20), dtype=dtype)


def end_of(forecaster, params, run):
    return forecaster.forecast(params, prefix_of(run, 10), horizon_at(run, -1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_records_are_enough(dtype):
    full, half = recorded(jnp.float32), recorded(dtype)
    assert half.weights.dtype == half.state["nu"].dtype == dtype
    moved = np.linalg.norm(full.weights[-1] - full.weights[10])
    for forecaster, params in (fitted(), (baselines.lawa(), ()), (baselines.linear(), ())):
        forecast, expected = end_of(forecaster, params, half), end_of(forecaster, params, full)
        assert forecast.weights.dtype == jnp.float32
        rounding = float(jnp.finfo(dtype).eps) * np.linalg.norm(full.weights[-1])
        assert np.linalg.norm(forecast.weights - expected.weights) < 0.3 * moved + 10 * rounding


@pytest.mark.usefixtures("x64")
def test_double_precision_changes_nothing_but_digits():
    run = recorded(jnp.float32)
    double = recorded(jnp.float64)
    assert double.weights.dtype == jnp.float64
    forecaster, params = fitted()
    forecast = end_of(forecaster, params, double)
    np.testing.assert_allclose(forecast.weights, end_of(forecaster, params, run).weights, rtol=5e-3, atol=5e-3)
    assert bool((forecast.lower <= forecast.weights).all() & (forecast.weights <= forecast.upper).all())


@functools.cache
def problem():
    return linear_regression(jax.random.key(0), 40, 3)


@functools.cache
def gaussian():
    return GaussianSource(jnp.zeros(3), jnp.eye(3))


def with_products():
    """Calls that multiply matrices, by name: functions of an array that need no network."""
    run, points = small_runs(), jax.random.normal(jax.random.key(1), (8, 3))
    run = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), run._replace(layout=None))._replace(layout=run.layout)
    moved = lambda x: run._replace(weights=run.weights + x)
    codes = pca(2)
    backbone = run.weights[0]
    adapters = low_rank(run.layout, backbone, 2)
    adapted, _ = fit(jax.random.key(2), adapters, run.weights)
    fitted_codes, _ = fit(jax.random.key(2), codes, points)
    still = lambda t, x: -x
    calls = {
        "observe": lambda x: observe(moved(x)),
        "pca, encode": lambda x: codes.encode(fitted_codes, points[0] + x),
        "pca, decode": lambda x: codes.decode(fitted_codes, points[0, :2] + x),
        "adapters": lambda x: adapters.decode(adapted, adapters.encode(adapted, backbone) + x),
        "class context": lambda x: class_context(points + x, jnp.arange(8) % 2, jnp.eye(2)),
        "closed form": lambda x: closed_form_velocity(points, chunk=3)(0.5, points[0] + x),
        "boxes": lambda x: uniform_on_boxes(points, points + 1).velocity(0.5, points[0] + x),
        "sign of a matrix": lambda x: matrix_sign(points + x),
        "its derivative": lambda x: jax.grad(lambda x: matrix_sign(points + x * points**2)[0, 0])(x),
        "a Gaussian": lambda x: draw_gaussian(jax.random.key(3), gaussian(), 5, x),
        "adjoints": lambda x: adjoint_matching_targets(
            jax.random.key(3), still, still, jnp.sum, gaussian(), points[0] + x, 3
        ),
        "frechet": lambda x: frechet(points + x, points),
        "mmd": lambda x: mmd(points + x, points),
        "sliced": lambda x: sliced_wasserstein(jax.random.key(3), points + x, points),
        "linear regression": lambda x: jax.grad(problem().loss)(points[0] + x, problem().data, jnp.zeros(0)),
        "its end": lambda x: gradient_descent_end(problem(), points[0] + x, 0.1, 9),
    }
    for name in ("linear", "exponential", "rank1", "dmd", "lawa"):
        forecaster = getattr(baselines, name)()
        calls[name] = lambda x, forecaster=forecaster: end_of(forecaster, (), moved(x)).weights
    return calls


def products(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
                yield from products(getattr(leaf, "jaxpr", leaf))


def test_products_are_of_float32_wherever_they_run():
    """By default a GPU multiplies float32 with ten bits, and a TPU with seven (wrong before 0.2)."""
    jax.clear_caches()
    with jax.default_matmul_precision(None):
        for name, call in with_products().items():
            found = list(products(jax.make_jaxpr(call)(jnp.float32(0.1)).jaxpr))
            assert found, name
            for eqn in found:
                highest = (jax.lax.Precision.HIGHEST,) * 2
                assert eqn.params["precision"] == highest, f"{name}: {eqn.source_info.traceback}"
