"""Forecasts from records in other precisions, and with double precision switched on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import small_runs, small_task

from gfm_jax.methods import baselines, gradient_flow_matching
from gfm_jax.trajectories import horizon_at, prefix_of, record, save_steps


@functools.cache
def fitted():
    forecaster = gradient_flow_matching("flow_map", num_steps=100, batch_size=128, widths=(16,), fractions=(0.3, 0.5))
    return forecaster, forecaster.fit(jax.random.key(0), [small_runs()], calibration=[small_runs()])


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
