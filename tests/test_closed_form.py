"""The closed form of flow matching, the oracles, and empirical flow matching, against what is known of them."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.flows import (
    closed_form_velocity,
    draw_reference_points,
    empirical_path,
    flow_matching_loss,
    gaussian,
    interpolate,
    linear,
    posterior,
    single_point,
    trigonometric,
    uniform_on_boxes,
    variance_preserving,
    velocity_to,
)
from gfm_jax.solve import log_likelihood, solve_flow

INTERPOLANTS = (linear, trigonometric, variance_preserving)


def as_written(data, t, x):
    """Proposition 1, densely and in float64."""
    data, x = np.asarray(data, float), np.asarray(x, float)
    logits = -((x - t * data) ** 2).sum(1) / (2 * (1 - t) ** 2)
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights @ (data - x) / (1 - t), 1 / (weights**2).sum()


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_are_the_formula(key, t, chunk):
    data = jax.random.normal(key, (101, 3))
    x = t * data[5] + (1 - t) * jnp.array([0.3, -1.0, 0.2])
    expected, size = as_written(data, t, x)
    velocity = jax.jit(closed_form_velocity(data, chunk=chunk))(jnp.float32(t), x)
    np.testing.assert_allclose(velocity, expected, rtol=2e-4, atol=2e-4 / (1 - t) / 10)
    assert float(posterior(data, jnp.float32(t), x, chunk=chunk).effective_size) == pytest.approx(size, rel=1e-3)


def test_the_density_of_the_paths(key):
    """A mixture of Gaussians: N(t x^(i), (1 - t)^2 s^2) for every point of the data."""
    data, t, x, source = jax.random.normal(key, (30, 3)), 0.6, jnp.array([0.3, -0.4, 0.1]), (0.2, 0.7)
    of_each = jax.scipy.stats.norm.logpdf(x, (1 - t) * 0.2 + t * data, (1 - t) * 0.7).sum(1)
    exact = jax.nn.logsumexp(of_each) - jnp.log(30)
    np.testing.assert_allclose(posterior(data, jnp.float32(t), x, source=source, chunk=8).log_density, exact, rtol=1e-5)


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_any_path_and_any_gaussian_source(key, interpolant):
    """Against conditional means of simulated paths: of those that pass near x the mean velocity is u*(x)."""
    data, source, t = jnp.array([[1.0], [-0.5], [2.0]]), (0.4, 0.7), jnp.float32(0.5)
    key_0, key_1 = jax.random.split(key)
    x_0 = source[0] + source[1] * jax.random.normal(key_0, (400_000, 1))
    x_1 = data[jax.random.randint(key_1, (400_000,), 0, 3)]
    path = jax.vmap(lambda a, b: interpolate(interpolant, t, a, b))(x_0, x_1)
    near = jnp.abs(path.x_t[:, 0] - 0.8) < 0.02
    found = path.dx_t[near].mean(), path.dx_t[near].std() / np.sqrt(near.sum())
    exact = closed_form_velocity(data, interpolant=interpolant, source=source)(t, jnp.array([0.8]))
    assert abs(float(exact[0] - found[0])) < 4 * float(found[1]) + 0.01


def test_one_point(key):
    x_1, x = jax.random.normal(key, (2, 4))
    t = jnp.float32(0.6)
    for interpolant in INTERPOLANTS:
        exact = closed_form_velocity(x_1[None], interpolant=interpolant)(t, x)
        np.testing.assert_allclose(exact, single_point(x_1, interpolant=interpolant).velocity(t, x), rtol=1e-4)
    np.testing.assert_allclose(closed_form_velocity(x_1[None])(t, x), (x_1 - x) / 0.4, rtol=1e-5)


def test_euler_lands_on_the_data(key):
    """A hundred steps of Euler never look at t = 1, and the last one ends at the posterior's mean: a data point."""
    data = 3 * jax.random.normal(key, (30, 2))  # farther apart than the noise that is left at the last step
    x_0 = jax.random.normal(jax.random.key(1), (50, 2))
    flow = functools.partial(solve_flow, closed_form_velocity(data), num_steps=100, solver=diffrax.Euler())
    ends = jax.jit(jax.vmap(lambda x: flow(x)[0]))(x_0)
    distance = jnp.linalg.norm(ends[:, None] - data, axis=-1).min(1)
    assert float(distance.max()) < 1e-5


def dense(data, t, x):
    """Mean, effective size, log-density and velocity of linear paths from N(0, I), densely and in float64."""
    data, x = np.asarray(data, float), np.asarray(x, float)
    logits = -((x - t * data) ** 2).sum(1) / (2 * (1 - t) ** 2)
    weights = np.exp(logits - logits.max())
    density = logits.max() + np.log(weights.mean()) - x.size * np.log(np.sqrt(2 * np.pi) * (1 - t))
    weights /= weights.sum()
    return weights @ data, 1 / (weights**2).sum(), density, weights @ (data - x) / (1 - t)


@pytest.mark.parametrize("t", [0.5, 0.9])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_data_far_from_zero_lose_nothing(key, offset, t):
    """(wrong before 0.2)"""
    data = offset + jax.random.normal(key, (40, 8))
    x = t * data[3] + (1 - t) * 1.5 * jax.random.normal(jax.random.key(1), (8,))
    t = float(np.float32(t))
    mean, size, density, velocity = dense(data, t, x)
    found = posterior(data, jnp.float32(t), x, chunk=7)
    resolution = 1e-6 * max(offset, 1)
    np.testing.assert_allclose(found.mean, mean, atol=resolution)
    assert float(found.effective_size) == pytest.approx(size, rel=1e-3)
    assert float(found.log_density) == pytest.approx(density, abs=2e-3)
    np.testing.assert_allclose(closed_form_velocity(data)(jnp.float32(t), x), velocity, atol=10 * resolution, rtol=1e-6)
    path = interpolate(linear, jnp.float32(t), jnp.zeros(8), data[3])._replace(x_t=x)
    target = empirical_path(jax.tree.map(lambda leaf: leaf[None], path), data).dx_t[0]
    np.testing.assert_allclose(target, velocity, atol=30 * resolution)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "bfloat16", "float16"])
def test_any_dtype_is_computed_in_float32(dtype):
    """Bytes wrapped, and 16 bits lost the weights (wrong before 0.2)."""
    data = jnp.asarray(np.random.default_rng(0).integers(0, 255, (50, 16))).astype(dtype)
    wide, t = data.astype(jnp.float32), jnp.float32(0.5)
    found, expected = posterior(data, t, data[3]), posterior(wide, t, wide[3])
    assert found.mean.dtype == jnp.float32
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(closed_form_velocity(data)(0, data[3]), closed_form_velocity(wide)(0.0, wide[3]))


def test_data_of_any_size_give_numbers():
    """(wrong before 0.2)"""
    data = jnp.array([[1e20, 0.0], [0.0, 1e20], [-1e20, 3e19]])
    np.testing.assert_allclose(closed_form_velocity(data)(0.5, jnp.array([0.4e20, 0.1e20])), [1.2e20, -2e19], rtol=1e-5)
    np.testing.assert_allclose(closed_form_velocity(jnp.full((3, 2), 1.5))(0.5, jnp.zeros(2)), 3.0, rtol=1e-6)
    assert float(posterior(jnp.ones((3, 1)), 0.5, jnp.array([1e20])).effective_size) == pytest.approx(3)


def test_the_default_solver_lands_on_the_data(key):
    """The others are told that there is nothing to see at t = 1 (wrong before 0.2)."""
    data = jax.random.normal(key, (20, 2))
    velocity, x_0 = closed_form_velocity(data), jax.random.normal(jax.random.key(1), (30, 2))
    ends, info = jax.jit(jax.vmap(lambda x: solve_flow(velocity, x, num_steps=50)))(x_0)
    assert bool(info["finite"].all())
    assert float(jnp.linalg.norm(ends[:, None] - data, axis=-1).min(1).max()) < 1e-4
    for solver in (diffrax.Heun(), diffrax.Tsit5()):
        with pytest.raises(ValueError, match=r"t: expected a flow time in \[0, 1\), got 1.0"):
            solve_flow(velocity, x_0[0], solver=solver)
    with pytest.raises(ValueError, match=r"t: expected a flow time in \[0, 1\), got 1"):
        velocity_to(linear, 1.0, x_0[0], data[0])


def test_the_density_of_the_closed_form_before_the_end(key):
    """Integrated back along the flow, against the mixture that it is; at the end there is none (wrong before 0.2)."""
    data, x = jax.random.normal(key, (10, 2)), jnp.array([0.3, 0.2])
    normal = lambda x: jnp.sum(jax.scipy.stats.norm.logpdf(x))
    found = log_likelihood(closed_form_velocity(data), x, normal, t_1=0.7)
    assert float(found) == pytest.approx(float(posterior(data, 0.7, x).log_density), abs=2e-3)
    with pytest.raises(ValueError, match=r"t: expected a flow time in \[0, 1\)"):
        log_likelihood(closed_form_velocity(data), data[0], normal)


def test_a_large_data_set_is_never_beside_the_queries(key):
    """The compiled program holds a chunk of products, not [queries, data]."""
    num, queries, dim, chunk = 20_000, 64, 32, 500
    data = jnp.zeros((num, dim))
    velocity = jax.jit(jax.vmap(lambda data, t, x: closed_form_velocity(data, chunk=chunk)(t, x), in_axes=(None, 0, 0)))
    compiled = velocity.lower(data, jnp.zeros(queries), jnp.zeros((queries, dim))).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 4 * (8 * queries * chunk + 4 * chunk * dim + 4 * num)
    assert temporary < 0.5 * 4 * queries * num


# --- oracles ----------------------------------------------------------------------------------------------------------


def checkerboard_boxes():
    corner = [[column, row] for row in range(4) for column in range(row % 2, 4, 2)]
    lower = jnp.array(corner, jnp.float32) / 2 - 1
    return lower, lower + 0.5


@pytest.mark.parametrize("t", [0.0, 0.05, 0.5, 0.9, 0.99])
def test_boxes_against_quadrature(key, t):
    lower, upper = checkerboard_boxes()
    oracle, std = uniform_on_boxes(lower, upper, std_0=0.5775), 0.5775
    key_box, key_inside, key_source = jax.random.split(key, 3)
    x_1 = lower[jax.random.randint(key_box, (64,), 0, 8)] + 0.5 * jax.random.uniform(key_inside, (64, 2))
    x = (1 - t) * std * jax.random.normal(key_source, (64, 2)) + t * x_1
    nodes, weights = np.polynomial.legendre.leggauss(200)
    y = np.asarray(lower, float)[:, None] + 0.25 * (nodes[:, None] + 1)  # [boxes, nodes, 2]
    for point, velocity in zip(
        np.asarray(x, float), jax.vmap(lambda x: oracle.velocity(jnp.float32(t), x))(x), strict=True
    ):
        density = np.exp(-((point - t * y) ** 2) / (2 * (1 - t) ** 2 * std**2)) * weights[:, None]
        mass, moment = density.sum(1), (density * y).sum(1)
        whole = mass.prod(1).sum()
        mean = np.stack([(moment[:, 0] * mass[:, 1]).sum(), (mass[:, 0] * moment[:, 1]).sum()]) / whole
        np.testing.assert_allclose(velocity, (mean - point) / (1 - t), atol=3e-6 / (1 - t), rtol=1e-4)


@pytest.mark.parametrize(
    "oracle",
    [
        gaussian(jnp.array([1.0, -1.0]), 0.3, source=(0.2, 0.8)),
        gaussian(jnp.array([1.0, -1.0]), 0.3, interpolant=trigonometric),
        single_point(jnp.array([1.0, 0.5])),
        uniform_on_boxes(*checkerboard_boxes()),
    ],
    ids=["gaussian", "trigonometric", "point", "boxes"],
)
def test_flow_maps_are_semigroups_and_solve_the_ode(oracle):
    x, s, u, t = jnp.array([0.3, -0.4]), jnp.float32(0.1), jnp.float32(0.45), jnp.float32(0.8)
    straight = oracle.flow_map(s, t, x)
    np.testing.assert_allclose(oracle.flow_map(u, t, oracle.flow_map(s, u, x)), straight, atol=2e-5)
    np.testing.assert_allclose(oracle.flow_map(s, s, x), x, atol=1e-6)
    solved, _ = solve_flow(oracle.velocity, x, s, t, num_steps=200)
    np.testing.assert_allclose(solved, straight, atol=2e-4)


# --- empirical flow matching ------------------------------------------------------------------------------------------

DATA = jax.random.normal(jax.random.key(7), (40, 2))


def draw_paths(key, t, x_t=None, num=20_000, num_reference_points=8, **choices):
    """Paths through all of space, or through one point x_t by the law of where they come from; and the reference points."""
    key_index, key_source = jax.random.split(key)
    own, index = draw_reference_points(key_index, len(DATA), num, num_reference_points, **choices)
    x_0 = jax.random.normal(key_source, (num, 2))
    path = jax.vmap(lambda a, b: interpolate(linear, jnp.float32(t), a, b))(x_0, DATA[own])
    return path, DATA[index]


def test_all_reference_points_give_the_exact_field(key):
    path, reference_points = draw_paths(key, 0.6, num=16, num_reference_points=40, sharing="per_sample")
    exact = jax.jit(jax.vmap(closed_form_velocity(DATA)))(path.t, path.x_t)
    np.testing.assert_allclose(empirical_path(path, reference_points).dx_t, exact, rtol=1e-4, atol=1e-4)


def test_one_reference_point_is_conditional_flow_matching(key):
    path, reference_points = draw_paths(key, 0.6, num=16, num_reference_points=1, sharing="per_sample")
    np.testing.assert_allclose(empirical_path(path, reference_points).dx_t, path.dx_t, rtol=1e-4, atol=1e-5)


def in_standard_errors(path, target):
    """How far E[target - u* | .] is from zero, in standard errors: the largest over moments that see a bias anywhere."""
    error = target - jax.jit(jax.vmap(closed_form_velocity(DATA)))(path.t, path.x_t)
    tests = jnp.stack([jnp.ones_like(error), path.x_t, jnp.sign(path.x_t), path.x_t[:, ::-1] * error.shape[1]])
    products = tests * error
    return float(jnp.abs(products.mean(1) / (products.std(1) / np.sqrt(len(error)))).max())


@pytest.mark.parametrize("choices", [("per_sample", False), ("per_sample", True)], ids=["without", "with replacement"])
def test_proposition_2(key, choices):
    """The target is unbiased, and its variance at most that of one sample; leaving the own point out is biased."""
    sharing, replacement = choices
    path, points = draw_paths(key, 0.5, sharing=sharing, replacement=replacement)
    target = empirical_path(path, points).dx_t
    assert in_standard_errors(path, target) < 4
    exact = jax.jit(jax.vmap(closed_form_velocity(DATA)))(path.t, path.x_t)
    assert float(((target - exact) ** 2).mean()) < 0.7 * float(((path.dx_t - exact) ** 2).mean())
    assert in_standard_errors(path, empirical_path(path, points[:, 1:]).dx_t) > 10


def test_without_replacement_has_less_variance(key):
    exact = closed_form_velocity(DATA)

    def variance(replacement):
        path, points = draw_paths(key, 0.5, num_reference_points=25, sharing="per_sample", replacement=replacement)
        error = empirical_path(path, points).dx_t - jax.vmap(exact)(path.t, path.x_t)
        return float((error**2).mean())

    assert variance(False) < 0.7 * variance(True)


def test_a_shared_set_is_unbiased(key):
    """Over many small batches, each of which shares its reference points."""

    def batch(key):
        path, points = draw_paths(key, 0.5, num=4, num_reference_points=12, sharing="shared")
        return path, empirical_path(path, points).dx_t

    path, target = jax.jit(jax.vmap(batch))(jax.random.split(key, 8000))
    path, target = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (path, target))
    first = jax.tree.map(lambda leaf: leaf[::4], (path, target))  # of one batch the errors are not independent
    assert in_standard_errors(*first) < 4


def test_regression_on_paths_is_regression_on_the_exact_field(key):
    """The gradient of conditional flow matching is that of the distance to u*, up to sampling error."""
    path, _ = draw_paths(key, 0.4, num=200_000, num_reference_points=1, sharing="per_sample")
    model = lambda theta: jnp.tanh(path.x_t @ theta)
    theta = jnp.array([[0.5, -1.0], [0.3, 0.8]])
    exact = path._replace(dx_t=jax.vmap(closed_form_velocity(DATA))(path.t, path.x_t))
    gradients = [jax.grad(lambda theta, p=p: flow_matching_loss(model(theta), p))(theta) for p in (path, exact)]
    np.testing.assert_allclose(*gradients, atol=0.01)
    assert float(jnp.abs(gradients[0]).min()) > 0.02  # what is compared is not zero


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    t, x = jnp.float32(0.5), jnp.zeros(2)
    with pytest.raises(ValueError, match=r"data: expected at least 1 point, got 0"):
        posterior(jnp.zeros((0, 2)), t, x)
    with pytest.raises(ValueError, match=r"data: expected .* got \(4, 3\)"):
        closed_form_velocity(jnp.zeros((4, 3)))(t, x)
    with pytest.raises(ValueError, match="source: expected a Gaussian"):
        closed_form_velocity(DATA, source=(0.0, 0.0))(t, x)
    with pytest.raises(ValueError, match="chunk"):
        posterior(DATA, t, x, chunk=0)
    with pytest.raises(ValueError, match="data: 1 of 40 points are not finite"):
        closed_form_velocity(DATA.at[3, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"t: expected .* got 1.2"):
        closed_form_velocity(DATA)(jnp.float32(1.2), x)
    with pytest.raises(ValueError, match=r"source: expected .* got 'uniform'"):
        closed_form_velocity(DATA, source="uniform")(t, x)
    with pytest.raises(ValueError, match=r"t: expected a flow time in \[0, 1\), got 1.0"):
        closed_form_velocity(DATA)(1.0, x)
    with pytest.raises(ValueError, match=r"data: expected points .*, got shape \(40,\)"):
        closed_form_velocity(DATA[:, 0])
    with pytest.raises(ValueError, match="data: expected real numbers, got complex64"):
        posterior(DATA + 1j, t, x)
    with pytest.raises(ValueError, match=r"t: expected one time, got shape \(3,\)"):
        posterior(DATA, jnp.zeros(3), x)
    assert posterior(DATA.tolist(), 0, [0, 1]).mean.shape == (2,)  # lists and integers are numbers


def test_oracles_refuse_the_end():
    """Where they are not defined (wrong before 0.2)."""
    for oracle in (gaussian(jnp.ones(2), 0.0), single_point(jnp.ones(2)), uniform_on_boxes(*checkerboard_boxes())):
        with pytest.raises(ValueError, match=r"expected a flow time in \[0, 1\)"):
            oracle.velocity(jnp.float32(1), jnp.zeros(2))
    with pytest.raises(ValueError, match="std: expected a standard deviation of at least 0, got -1"):
        gaussian(jnp.ones(2), -1.0)
    moved = gaussian(jnp.ones(2), 0.5).velocity(jnp.float32(1), jnp.zeros(2))  # of a law that has a density
    assert bool(jnp.isfinite(moved).all())


def test_under_the_settings_that_find_mistakes():
    """No filler is infinite, and every broadcast is written out (wrong before 0.2)."""
    settings = {"jax_debug_nans": True, "jax_debug_infs": True, "jax_numpy_rank_promotion": "raise"}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        velocity = closed_form_velocity(DATA, chunk=7)
        found = jax.jit(jax.vmap(velocity))(jnp.linspace(0, 0.9, 3), DATA[:3])
        end, _ = solve_flow(velocity, DATA[0], num_steps=4)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    np.testing.assert_allclose(found[1], dense(DATA, 0.45, DATA[1])[3], rtol=1e-4, atol=1e-5)
    assert bool(jnp.isfinite(end).all())


def test_the_closed_form_inside_shard_map():
    """The loop's carry has the axes of what comes in from the start (wrong before 0.2)."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("d")
    each = lambda x: jax.vmap(lambda x: closed_form_velocity(DATA, chunk=7)(0.3, x))(x)
    found = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=split, out_specs=split))(DATA[:4])
    np.testing.assert_allclose(found, jax.jit(each)(DATA[:4]), rtol=1e-6)
