"""`minimize` takes the steps that optax says, wherever it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.minimize import minimize

CURVATURE = jnp.array([1.0, 4.0])
MINIMUM = jnp.array([2.0, -1.0])


def bowl(x, minimum=MINIMUM):
    return jnp.sum(CURVATURE * (x - minimum) ** 2) / 2


def test_the_path_is_that_of_gradient_descent():
    path = minimize(bowl, jnp.zeros(2), optax.sgd(0.1), 3, path=True)
    want = MINIMUM * (1 - (1 - 0.1 * CURVATURE) ** np.arange(4)[:, None])
    np.testing.assert_allclose(path, want, rtol=1e-5)
    np.testing.assert_array_equal(minimize(bowl, jnp.zeros(2), optax.sgd(0.1), 3), path[-1])
    np.testing.assert_array_equal(minimize(bowl, jnp.ones(2), optax.sgd(0.1), 0, path=True), jnp.ones((1, 2)))


def test_every_step_has_its_own_key(key):
    """A linear objective whose slope is drawn: the end is minus the sum of the draws."""
    objective = lambda x, key: x["a"] @ jax.random.normal(key, (2,))
    found = minimize(objective, {"a": jnp.zeros(2)}, optax.sgd(1.0), 5, key=key)["a"]
    draws = jax.vmap(lambda key: jax.random.normal(key, (2,)))(jax.random.split(key, 5))
    np.testing.assert_allclose(found, -draws.sum(0), rtol=1e-5)


def test_it_is_mapped_compiled_and_differentiated():
    """d x_k / d minimum = 1 - (1 - rate a)^k."""
    end = lambda minimum: minimize(lambda x: bowl(x, minimum), jnp.zeros(2), optax.sgd(0.1), 3)
    want = 1 - (1 - 0.1 * CURVATURE) ** 3
    np.testing.assert_allclose(jax.jit(jax.jacrev(end))(MINIMUM), jnp.diag(want), rtol=1e-5)
    minima = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(jax.jit(jax.vmap(end))(minima), minima * want, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("num_steps", [-1, 2.0])
def test_bad_numbers_of_steps(num_steps):
    with pytest.raises(ValueError, match="num_steps: expected"):
        minimize(bowl, jnp.zeros(2), optax.sgd(0.1), num_steps)
