"""The optimizer's own field around a learned gradient, where the loss is a quadratic: it is exact up to the step size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.forecasting import horizon_at, optimizer_flow, prefix_of
from gfm_jax.optimizers import fields
from gfm_jax.runs import quadratic, record, save_steps

TASK = quadratic(jnp.array([0.2, 0.5, 1.0, 2.0]), 1.5)
OPTIMIZERS = {
    "sgd": (optax.sgd, fields.sgd(), 0.01),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), fields.momentum(0.9), 0.001),
    "rmsprop": (functools.partial(optax.rmsprop, decay=0.9), fields.rmsprop(0.9), 0.002),
    "adam": (optax.adam, fields.adam(), 0.005),
}


def run_of(name):
    optimizer, field, rate = OPTIMIZERS[name]
    run = jax.jit(lambda key: record(key, TASK, optimizer, jnp.full(400, rate), save_steps(400, 100)))
    return field, run(jax.random.key(0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_follows_a_quadratic_to_its_end(name):
    field, run = run_of(name)
    prefix, horizon = prefix_of(run, 30), horizon_at(run, -1)
    forecast = jax.jit(functools.partial(optimizer_flow(field, 280).forecast, ()))(prefix, horizon).weights
    moved = np.linalg.norm(run.weights[-1] - run.weights[30])
    assert np.linalg.norm(forecast - run.weights[-1]) < 0.02 * moved


@pytest.mark.parametrize(("name", "missing"), [("sgd", "gradient"), ("sgd", "mean_weights"), ("adam", "state")])
def test_says_what_it_needs(name, missing):
    field, run = run_of(name)
    prefix = prefix_of(run, 30)._replace(**{missing: None})
    with pytest.raises(ValueError, match="mu, nu" if missing == "state" else missing):
        optimizer_flow(field).forecast((), prefix, horizon_at(run, -1))
