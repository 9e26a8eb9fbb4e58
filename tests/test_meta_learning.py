"""Meta-learning on tasks whose best initialisation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.fitting import fit
from gfm_jax.weights import baselines
from gfm_jax.weights.meta_learning import adapted, maml, reptile

CURVATURE = jnp.array([1.0, 4.0])
CENTRE = jnp.array([2.0, -1.0])


def init(key):
    return jax.random.normal(key, (2,))


def loss(w, minimum):
    """A bowl around the minimum of a task."""
    return jnp.sum(CURVATURE * (w - minimum) ** 2) / 2


def draw(key, centre):
    minimum = centre + jax.random.normal(key, (2,))
    return minimum, minimum


@pytest.mark.parametrize("make", [maml, reptile])
def test_the_initialisation_is_the_mean_of_the_minima(make, key):
    """Of bowls of one curvature, whatever the number of inner steps."""
    model = make(init, loss, draw, inner_steps=2, batch_size=64)
    params, _ = fit(key, model, CENTRE, num_steps=600, learning_rate=5e-2)
    found = model.generate(key, params, 3)
    np.testing.assert_allclose(found, jnp.broadcast_to(CENTRE, (3, 2)), atol=0.1)


def test_maml_looks_at_what_the_steps_do(key):
    """Bowls of unequal curvature: MAML's optimum weighs each by a (1 - rate a)^2, Reptile's by 1 - (1 - rate a)^k."""
    curvature = jnp.array([1.0, 8.0])
    minima = jnp.array([0.0, 1.0])
    loss = lambda w, task: task[0] * (w[0] - task[1]) ** 2 / 2
    draw = lambda key, data: (lambda i: ((data[0][i], data[1][i]),) * 2)(jax.random.randint(key, (), 0, 2))
    rate = 0.1
    for make, weight in ((maml, curvature * (1 - rate * curvature) ** 2), (reptile, 1 - (1 - rate * curvature))):
        model = make(lambda key: jnp.ones(1), loss, draw, inner_rate=rate, inner_steps=1, batch_size=64)
        found, _ = fit(key, model, (curvature, minima), num_steps=800, learning_rate=1e-2)
        np.testing.assert_allclose(found, weight @ minima / weight.sum(), atol=0.03)


def test_training_from_scratch_is_a_generator(key):
    scratch = adapted(baselines.random(init), loss, optax.sgd(0.2), 100)
    params, _ = fit(key, scratch, jnp.zeros((4, 2)))
    minima = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(scratch.generate(key, params, 3, support=minima), minima, atol=1e-4)


@pytest.mark.parametrize("make", [maml, reptile])
def test_bad_choices(make):
    with pytest.raises(ValueError, match="inner_steps: expected at least 1, got 0"):
        make(init, loss, draw, inner_steps=0)
    with pytest.raises(ValueError, match="inner_rate: expected more than 0, got -1"):
        make(init, loss, draw, inner_rate=-1.0)


@pytest.mark.usefixtures("unchecked")
def test_numbers_and_support_sets(key):
    """(wrong before 0.2)"""
    scratch = adapted(baselines.random(init), loss, optax.sgd(0.2), 2)
    params, _ = fit(key, scratch, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="support: expected one set for each of 3 networks"):
        scratch.generate(key, params, 3, support=jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="num: expected an integer of at least 1"):
        scratch.generate(key, params, 3.0, support=jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="num_steps: expected at least 0, got -1"):
        adapted(baselines.random(init), loss, optax.sgd(0.1), -1)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        maml(init, loss, draw, batch_size=0)
