"""Self-distillation: residuals that are zero where they have to be, gradients that stop where they are told to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.flows import (
    eulerian,
    gaussian,
    guided_velocity,
    lagrangian,
    progressive,
    single_point,
    velocity_of,
    weighted_square,
)

ORACLES = {
    "gaussian": gaussian(jnp.array([1.0, -0.5]), 0.3, source=(0.0, 0.8)),
    "single point": single_point(jnp.array([1.0, 0.5])),
}
RESIDUALS = {
    "lsd": lagrangian,
    "lsd point": functools.partial(lagrangian, stop="point"),
    "lsd none": functools.partial(lagrangian, stop="none"),
    "esd": eulerian,
    "esd joint": functools.partial(eulerian, stop="velocity"),
    "esd bracket": functools.partial(eulerian, stop="bracket"),
    "esd none": functools.partial(eulerian, stop="none"),
    "psd midpoint": progressive,
    "psd uniform": functools.partial(progressive, gamma=0.3),
    "psd point": functools.partial(progressive, stop="point"),
}
S, T, X = jnp.float32(0.2), jnp.float32(0.7), jnp.array([0.4, -0.9])


def mean_velocity(oracle, wrong=0.0):
    """v_{s,t} of an exact map; on the diagonal its limit. `wrong` bends the map, and with it its velocity."""

    def v(s, t, x):
        same = s == t
        later = jnp.where(same, s + 0.5, t)  # any other time: its value is not used
        apart = (oracle.flow_map(s, later, x) - x) / (later - s)
        return jnp.where(same, oracle.velocity(s, x), apart) + wrong * (t - s) * jnp.sin(3 * x)

    return v


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("name", RESIDUALS)
def test_zero_for_the_exact_map_and_only_for_it(oracle, name):
    residual = RESIDUALS[name]
    np.testing.assert_allclose(residual(mean_velocity(ORACLES[oracle]), S, T, X), 0, atol=1e-5)
    assert float(jnp.abs(residual(mean_velocity(ORACLES[oracle], 0.3), S, T, X)).max()) > 0.02


def test_mean_flow_is_zero_in_the_mean():
    """With the velocity of the path in the place of that of the flow, the residual is zero for the path of one data point."""
    x_1 = jnp.array([1.0, 0.5])
    v = mean_velocity(single_point(x_1))
    dx_s = (x_1 - X) / (1 - S)  # every path through X ends in x_1
    np.testing.assert_allclose(eulerian(v, S, T, X, stop="bracket", tangent=dx_s), 0, atol=1e-5)


def test_one_derivative_along_both_is_the_sum_of_two():
    v = mean_velocity(ORACLES["gaussian"], 0.3)
    np.testing.assert_allclose(eulerian(v, S, T, X, stop="velocity"), eulerian(v, S, T, X), rtol=1e-5)
    np.testing.assert_allclose(eulerian(v, S, T, X, stop="bracket"), -eulerian(v, S, T, X), rtol=1e-4)


# --- gradients, by hand, of v = a + b (t - s) + c x, on x = 1 dimension -----------------------------------------------


def linear_model(theta):
    a, b, c = theta
    return lambda s, t, x: a + b * (t - s) + c * x


THETA = jnp.array([0.7, -0.4, 0.5])


def gradient(residual):
    """d/d theta of r, the residual in one dimension."""
    x = jnp.array([0.6])
    return jax.grad(lambda theta: residual(linear_model(theta), S, T, x)[0])(THETA)


def test_gradients_stop_where_they_are_told_to():
    a, b, c = np.asarray(THETA, float)
    h, x = 0.5, 0.6
    # X = x + h (a + b h + c x), d_t X = a + 2 b h + c x, teacher v_tt(X) = a + c X.
    d_x_t, x_t = np.array([h, h * h, h * x]), x + h * (a + b * h + c * x)
    live, teacher = np.array([1, 2 * h, x]), np.array([1, 0, x_t])
    np.testing.assert_allclose(gradient(lagrangian), live, rtol=1e-5)
    np.testing.assert_allclose(gradient(RESIDUALS["lsd point"]), live - teacher, rtol=1e-5)
    np.testing.assert_allclose(gradient(RESIDUALS["lsd none"]), live - teacher - c * d_x_t, rtol=1e-5)

    # d_s X = -(a + b h + c x) - b h, grad X w = (1 + h c) w, w = v_ss = a + c x.
    w, live = a + c * x, np.array([-1, -2 * h, -x])
    np.testing.assert_allclose(gradient(eulerian), live, rtol=1e-5)
    np.testing.assert_allclose(gradient(RESIDUALS["esd joint"]), live + np.array([0, 0, h * w]), rtol=1e-5)
    all_of_it = live + np.array([0, 0, h * w]) + (1 + h * c) * np.array([1, 0, x])
    np.testing.assert_allclose(gradient(RESIDUALS["esd none"]), all_of_it, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient(RESIDUALS["esd bracket"]), [1, h, x], rtol=1e-5)

    # v_st = a + b h + c x; the shorter ones from s to u and from u to t, u half way.
    first = a + b * h / 2 + c * x
    x_u = x + h / 2 * first
    live = np.array([1, h, x])
    shorter = (np.array([1, h / 2, x]) + np.array([1, h / 2, x_u])) / 2
    np.testing.assert_allclose(gradient(progressive), live, rtol=1e-5)
    np.testing.assert_allclose(gradient(RESIDUALS["psd point"]), live - shorter, rtol=1e-5, atol=1e-6)


def test_a_frozen_teacher():
    """Lagrangian and Eulerian map distillation: with the exact velocity as the teacher, the exact map has no residual."""
    oracle = ORACLES["gaussian"]
    v = mean_velocity(oracle)
    no_velocity = lambda s, t, x: jnp.where(s == t, jnp.nan, 1.0) * v(s, t, x)  # the live one is not asked
    for residual in (lagrangian, eulerian):
        np.testing.assert_allclose(residual(no_velocity, S, T, X, teacher=oracle.velocity), 0, atol=1e-5)
        assert float(jnp.abs(residual(v, S, T, X, teacher=lambda t, x: x)).max()) > 0.1


def test_velocity_on_the_diagonal():
    oracle = ORACLES["gaussian"]
    np.testing.assert_allclose(velocity_of(oracle.flow_map, S, X), mean_velocity(oracle)(S, S, X), rtol=1e-5)


def test_guidance():
    conditional, nothing = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0])
    np.testing.assert_allclose(guided_velocity(conditional, nothing, 1.0), conditional)
    np.testing.assert_allclose(guided_velocity(conditional, nothing, 0.0), nothing)
    np.testing.assert_allclose(guided_velocity(conditional, nothing, 3.0), [2.0, 6.0])


def test_a_learned_weight_settles_at_the_logarithm_of_the_error():
    residual = jnp.array([0.3, -0.4])  # |r|^2 = 1/4
    np.testing.assert_allclose(weighted_square(residual), 0.25, rtol=1e-6)
    slope = jax.grad(lambda w: weighted_square(residual, w))
    np.testing.assert_allclose(slope(jnp.log(0.25)), 0, atol=1e-6)
    assert float(slope(0.0)) > 0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("residual", [lagrangian, eulerian, progressive])
def test_unknown_stops(residual):
    with pytest.raises(ValueError, match="stop: expected one of teacher"):
        residual(mean_velocity(ORACLES["gaussian"]), S, T, X, stop="everywhere")
