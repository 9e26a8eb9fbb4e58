"""Adjoint matching, against the closed form of a Gaussian tilted by linear and quadratic rewards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.fitting import fit, with_defaults
from gfm_jax.flows import (
    GaussianSource,
    adjoint_matching_targets,
    draw_gaussian,
    flow_map,
    flow_matching,
    memoryless_step,
)
from gfm_jax.networks import TimeMLP
from gfm_jax.weights import flow_to_learn, identity
from gfm_jax.weights.baselines import gaussian
from gfm_jax.weights.tuning import tune_by_adjoint_matching, tune_through_solver

MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[1.5, 0.4], [0.4, 0.3]])
SLOPE, CURVATURE = np.array([0.7, 1.2]), np.array([[0.8, 0.3], [0.3, 0.5]])
REWARDS = {"linear": 0.0, "quadratic": 1.0}  # times the curvature


def reward(curvature, x):
    return SLOPE @ x - curvature * x @ CURVATURE @ x / 2


def tilted(curvature):
    """Mean and covariance of N(m, S) e^r: (S^-1 + K)^-1, and that times (S^-1 m + b)."""
    covariance = np.linalg.inv(np.linalg.inv(COVARIANCE) + curvature * CURVATURE)
    return covariance @ (np.linalg.solve(COVARIANCE, MEAN) + SLOPE), covariance


def velocity_to(mean, covariance, source):
    """E[x_1 - x_0 | x_t], of Gaussians."""
    noise = source.factor @ source.factor.T

    def velocity(t, x):
        here = t**2 * covariance + (1 - t) ** 2 * noise
        gain = t * covariance - (1 - t) * noise
        return mean - source.mean + gain @ jnp.linalg.solve(here, x - t * mean - (1 - t) * source.mean)

    return velocity


@pytest.fixture
def source(x64):
    return GaussianSource(jnp.array([0.2, -0.3]), jnp.array([[0.8, 0.0], [0.3, 0.5]]))


@pytest.mark.parametrize("num_steps", [4, 25])
def test_targets_are_the_tilted_velocity_under_a_linear_reward(num_steps, source, key):
    """Whatever the path and the number of steps; at t = 0 up to the first step's square."""
    base, want = velocity_to(MEAN, COVARIANCE, source), velocity_to(*tilted(0.0), source)
    other = velocity_to(MEAN + 1, COVARIANCE, source)  # of the flow on the way
    gain = functools.partial(reward, 0.0)
    times, points, targets = adjoint_matching_targets(key, other, base, gain, source, jnp.ones(2), num_steps)
    expected = jax.vmap(want)(times, points)
    np.testing.assert_allclose(targets[1:], expected[1:], rtol=1e-9)
    np.testing.assert_allclose(targets[0], expected[0], atol=5 / num_steps**2)


def test_targets_are_in_the_mean_the_tilted_velocity_under_a_quadratic_reward(source, key):
    """On paths of the tilted law itself, where tuning comes to rest, up to the noise of the paths."""
    base, want = velocity_to(MEAN, COVARIANCE, source), velocity_to(*tilted(1.0), source)
    gain, num = functools.partial(reward, 1.0), 20_000

    def one(key):
        key_source, key_path = jax.random.split(key)
        x_0 = draw_gaussian(key_source, source, 1)[0]
        return adjoint_matching_targets(key_path, want, base, gain, source, x_0, 20)

    times, points, targets = jax.vmap(one)(jax.random.split(key, num))
    for step, tolerance in ((4, 0.06), (10, 0.03), (16, 0.01), (19, 1e-9)):  # the last step has no noise
        x, t = points[:, step], times[0, step]
        with_one = np.concatenate([x, np.ones((num, 1))], axis=1)
        found = with_one @ np.linalg.lstsq(with_one, np.asarray(targets[:, step]), rcond=None)[0]  # E[target | x]
        expected = jax.vmap(functools.partial(want, t))(x)
        moved = jax.vmap(functools.partial(base, t))(x) - expected
        assert jnp.linalg.norm(found - expected) < tolerance * jnp.linalg.norm(moved)


def test_the_diffusion_has_the_marginals_of_the_flow_and_forgets(source, key):
    """Its mean in any number of steps, its covariance up to first order in them."""
    base, num = velocity_to(MEAN, COVARIANCE, source), 40_000
    start = draw_gaussian(key, source, num)

    def end(num_steps):
        def step(x, ends):
            s, t, key = ends
            noise = jax.random.normal(key, x.shape)
            return jax.vmap(lambda x, n: memoryless_step(base, source, s, t, x, n))(x, noise), None

        times = jnp.linspace(0, 1, num_steps + 1)
        keys = jax.random.split(jax.random.fold_in(key, num_steps), num_steps)
        return jax.lax.scan(step, start, (times[:-1], times[1:], keys))[0]

    off = {}
    for num_steps in (20, 80):
        found = end(num_steps)
        np.testing.assert_allclose(found.mean(0), MEAN, atol=0.02)
        together = jnp.cov(jnp.concatenate([start, found], axis=1).T)[:2, 2:]
        np.testing.assert_allclose(together, 0, atol=0.02)
        off[num_steps] = np.linalg.norm(jnp.cov(found.T) - COVARIANCE) / np.linalg.norm(COVARIANCE)
    assert off[80] < 0.1
    assert off[80] == pytest.approx(off[20] / 4, rel=0.25)


# --- of a flow that was learned ---------------------------------------------------------------------------------------

FLOW = with_defaults(flow_matching(TimeMLP((48, 48))), num_steps=1500, learning_rate=3e-3, ema_decay=0.99)


@pytest.fixture(scope="module")
def learned():
    generator = flow_to_learn(identity(), FLOW)
    data = jax.random.multivariate_normal(jax.random.key(1), jnp.array(MEAN), jnp.array(COVARIANCE), (20_000,))
    return generator, fit(jax.random.key(2), generator, data.astype(jnp.float32))[0]


@pytest.mark.parametrize("name", REWARDS)
def test_a_learned_flow_is_tilted(name, learned, key):
    generator, params = learned
    options = {"num_steps": 150, "learning_rate": 2e-3, "batch_size": 32}
    tune = tune_by_adjoint_matching(generator, lambda z, curvature: reward(curvature, z), **options)
    tuned = jax.jit(tune)(key, params, REWARDS[name])
    mean, covariance = tilted(REWARDS[name])
    before, after = (generator.generate(jax.random.key(3), p, 20_000) for p in (params, tuned))
    apart = lambda samples: np.linalg.norm(samples.mean(0) - mean)
    assert apart(after) < 0.12 * apart(before)
    np.testing.assert_allclose(jnp.cov(after.T), covariance, rtol=0.2, atol=0.06)


def test_tuning_through_the_solver_only_climbs(learned, key):
    """No law to stay near to: all samples go where the loss is least."""
    generator, params = learned
    minimum = jnp.array([0.0, 0.5])
    options = {"num_steps": 100, "learning_rate": 3e-3, "num_solver_steps": 3}
    tune = tune_through_solver(generator, lambda z, minimum: jnp.sum((z - minimum) ** 2), **options)
    samples = generator.generate(jax.random.key(3), jax.jit(tune)(key, params, minimum), 1000)
    np.testing.assert_allclose(samples.mean(0), minimum, atol=0.1)
    assert samples.std() < 0.5


def test_a_flow_map_is_tuned_in_one_step(key):
    points = 2 + jax.random.normal(key, (500, 2))
    generator = flow_to_learn(identity(), with_defaults(flow_map(TimeMLP((32, 32))), num_steps=300))
    params, _ = fit(key, generator, points)
    tune = tune_through_solver(generator, lambda z, to: jnp.sum((z - to) ** 2), num_steps=100, learning_rate=3e-3)
    samples = generator.generate(key, jax.jit(tune)(key, params, jnp.zeros(2)), 500)
    assert jnp.linalg.norm(samples.mean(0)) < 0.5
    with pytest.raises(ValueError, match="generator: expected one that follows a velocity, got a flow map"):
        tune_by_adjoint_matching(generator, lambda z, to: 0.0)
    with pytest.raises(ValueError, match="generator: expected one that follows a velocity, got none"):
        tune_by_adjoint_matching(gaussian(identity()), lambda z, to: 0.0)


@pytest.mark.parametrize(
    "choices", [{"source": lambda key: jax.random.normal(key, (2,))}, {"coupling": "optimal_transport"}]
)
def test_other_sources_and_couplings_are_refused(choices, key):
    generator = flow_to_learn(identity(), with_defaults(flow_matching(TimeMLP((8,))), num_steps=1), **choices)
    params, _ = fit(key, generator, jax.random.normal(key, (64, 2)))
    tune = tune_by_adjoint_matching(generator, lambda z, _: z.sum())
    expected = (
        "expected a flow from a Gaussian source, got source 'initial'" if "source" in choices else "'optimal_transport'"
    )
    with pytest.raises(ValueError, match=expected):
        tune(key, params, None)


def test_targets_carry_no_gradient(source, key):
    """Neither to the tuned velocity nor to the base."""

    def total(scale):
        velocity = lambda t, x: scale * velocity_to(MEAN, COVARIANCE, source)(t, x)
        _, points, targets = adjoint_matching_targets(
            key, velocity, velocity, functools.partial(reward, 1.0), source, jnp.ones(2), 3
        )
        return points.sum() + targets.sum()

    assert float(jax.grad(total)(1.0)) == 0
    assert float(jnp.abs(total(1.1) - total(1.0))) > 1e-3


@pytest.mark.usefixtures("unchecked")
def test_tuning_refuses(learned, key):
    """(wrong before 0.2)"""
    generator, params = learned
    for choices in ({"num_steps": 0}, {"batch_size": 1.5}, {"learning_rate": -1.0}, {"num_solver_steps": 0}):
        for way in (tune_through_solver, tune_by_adjoint_matching):
            with pytest.raises(ValueError, match=f"{next(iter(choices))}: expected"):
                way(generator, lambda z, _: z.sum(), **choices)
    with pytest.raises(ValueError, match="temperature: expected at least 0, got -1"):
        tune_through_solver(generator, lambda z, _: z.sum(), temperature=-1.0)
    tune = tune_through_solver(generator, lambda z, _: z.sum(), num_steps=1)
    with pytest.raises(ValueError, match="cond: expected none, as in the fit"):
        tune(key, params, None, jnp.ones(3))
    with pytest.raises(ValueError, match=r"cond: expected that of one task"):
        tune(key, params, None, jnp.ones((2, 3)))
