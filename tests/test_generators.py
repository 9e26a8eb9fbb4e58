"""Generators: fits of toy laws, their determinism, their resumption, and what they refuse; the networks that they use."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import jittered

from gfm_jax import fitting
from gfm_jax.flows import (
    closed_form_velocity,
    empirical_flow_matching,
    gaussian,
    self_distilled_flow_map,
    trigonometric,
)
from gfm_jax.flows.flow_matching import VelocityRecipe, _objective
from gfm_jax.flows.flow_data import IN_CACHE, flow_data
from gfm_jax.flows.flow_map import OBJECTIVES
from gfm_jax.networks import TimeMLP, UNet, init_network
from gfm_jax.pytrees import map_rows
from gfm_jax.solve import log_likelihood, solve_flow, solve_flow_map, solve_hybrid

NET = TimeMLP((32, 32))
MEAN, STD = jnp.array([1.0, -0.5]), 0.4
DATA = MEAN + STD * jax.random.normal(jax.random.key(3), (4096, 2))
ORACLE = gaussian(MEAN, STD)


# --- samplers ---------------------------------------------------------------------------------------------------------


def test_jumps_of_an_exact_map_and_of_a_first_order_one():
    x_0, exact = jnp.array([0.3, 1.2]), ORACLE.flow_map(jnp.float32(0), jnp.float32(1), jnp.array([0.3, 1.2]))
    for num_jumps in (1, 3, 16):
        np.testing.assert_allclose(solve_flow_map(ORACLE.flow_map, x_0, num_jumps=num_jumps), exact, rtol=1e-5)
    euler = lambda s, t, x: x + (t - s) * ORACLE.velocity(s, x)
    errors = [float(jnp.abs(solve_flow_map(euler, x_0, num_jumps=n) - exact).max()) for n in (32, 64)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


def test_hybrid():
    first, second = (lambda t, x: jnp.ones_like(x)), (lambda t, x: -2 * jnp.ones_like(x))
    solve = functools.partial(solve_hybrid, first, second, jnp.zeros(2), num_steps=10)
    np.testing.assert_allclose(solve(tau=0.3)[0], 0.3 - 2 * 0.7, rtol=1e-5)
    np.testing.assert_allclose(solve(tau=1.0)[0], 1, rtol=1e-5)
    learned = lambda t, x: jnp.sin(3 * t + x)
    alone, _ = solve_flow(learned, jnp.ones(2), num_steps=10)
    np.testing.assert_array_equal(solve_hybrid(first, learned, jnp.ones(2), 0.0, num_steps=10)[0], alone)
    with pytest.raises(ValueError, match="tau: expected a multiple of 1/10"):
        solve(tau=0.25)
    with pytest.raises(ValueError, match=r"tau: expected a flow time in \[0, 1\]"):
        solve(tau=1.5)


def test_samplers_refuse():
    with pytest.raises(ValueError, match="num_jumps"):
        solve_flow_map(ORACLE.flow_map, jnp.zeros(2), num_jumps=0)
    with pytest.raises(ValueError, match="t_0, t_1: expected t_0 <= t_1"):
        solve_flow_map(ORACLE.flow_map, jnp.zeros(2), 0.7, 0.2)
    with pytest.raises(ValueError, match="num_probes"):
        log_likelihood(ORACLE.velocity, jnp.zeros(2), jnp.sum, num_probes=0)


def normal_log_density(x, mean=0.0, std=1.0):
    return jnp.sum(jax.scipy.stats.norm.logpdf(x, mean, std))


def test_likelihood_of_a_gaussian(key):
    x_1 = jnp.array([0.7, -0.2])
    exact = normal_log_density(x_1, MEAN, STD)
    found = log_likelihood(ORACLE.velocity, x_1, normal_log_density, solver=diffrax.Tsit5(), num_steps=40)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_hutchinson_is_right_in_the_mean(key):
    """A field whose divergence is not the trace of a symmetric matrix: single estimates differ, their mean does not."""
    matrix = jnp.array([[0.3, 0.8], [-0.2, -0.5]])
    estimate = lambda key: log_likelihood(
        lambda t, x: matrix @ x, jnp.ones(2), normal_log_density, key=key, num_steps=20
    )
    exact = log_likelihood(lambda t, x: matrix @ x, jnp.ones(2), normal_log_density, num_steps=20)
    found = jax.vmap(estimate)(jax.random.split(key, 500))
    assert float(found.std()) > 0.1
    assert float(found.mean()) == pytest.approx(float(exact), abs=4 * float(found.std()) / np.sqrt(500))


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cond", [None, np.array([1.0, 0.0, 0.5])])
@pytest.mark.parametrize(
    "network",
    [TimeMLP((16,)), TimeMLP((16,), num_sinusoids=8), UNet((8, 8, 1), (8, 16)), UNet((4, 8, 3), (8,), num_heads=0)],
)
def test_fields_have_a_forward_derivative(key, network, cond):
    dim = int(np.prod(network.shape)) if isinstance(network, UNet) else 5
    x, times = jax.random.normal(key, (dim,)), jnp.array([0.2, 0.6])
    params = init_network(network, key, times, x, cond)
    params = jittered(params, 0.05)  # outputs start at 0
    of_cond = jax.jit(lambda times, x, cond: network.apply(params, times, x, cond))
    apply = lambda times, x: of_cond(times, x, cond)
    value, slope = jax.jvp(apply, (times, x), (jnp.array([0.0, 1.0]), jnp.ones_like(x)))
    assert value.shape == x.shape
    step = 1e-5
    ahead, behind = (apply(times + jnp.array([0.0, h]), x + h) for h in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(apply(jnp.array([0.2, 0.9]), x) - value).max()) > 1e-4  # it sees the time
    if cond is not None:
        assert float(jnp.abs(of_cond(times, x, -cond) - value).max()) > 1e-4


# --- fits -------------------------------------------------------------------------------------------------------------


def moments(samples):
    return np.asarray(samples.mean(0)), np.asarray(samples.std(0))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_flow_maps_learn_a_gaussian(objective):
    generator = self_distilled_flow_map(NET, objective, num_steps=600, std_0=1.0, peak_rate=5e-3, average=0.98)
    params = generator.fit(jax.random.key(0), DATA)
    for num_jumps in (1, 4):
        mean, std = moments(generator.generate(jax.random.key(1), params, 4000, num_jumps=num_jumps))
        np.testing.assert_allclose(mean, MEAN, atol=0.12)
        np.testing.assert_allclose(std, STD, rtol=0.3)
    assert params.history["diagonal"][-100:].mean() < 0.9 * params.history["diagonal"][:20].mean()
    times = jnp.float32(0.3), jnp.float32(0.8)
    x = jnp.array([0.5, 0.2])
    np.testing.assert_allclose(generator.flow_map(params, *times, x), ORACLE.flow_map(*times, x), atol=0.2)
    np.testing.assert_allclose(generator.flow_map(params, times[0], times[0], x), x)


@pytest.mark.parametrize("choices", [{}, {"num_companions": 300}, {"num_companions": 8, "companions": "per_sample"}])
def test_flow_matching_learns_a_gaussian(choices):
    generator = empirical_flow_matching(NET, num_steps=600, peak_rate=5e-3, average=0.98, **choices)
    params = generator.fit(jax.random.key(0), DATA)
    mean, std = moments(generator.generate(jax.random.key(1), params, 4000))
    np.testing.assert_allclose(mean, MEAN, atol=0.1)
    np.testing.assert_allclose(std, STD, rtol=0.25)
    x = jnp.array([0.5, 0.2])
    np.testing.assert_allclose(
        generator.velocity(params, jnp.float32(0.4), x), ORACLE.velocity(jnp.float32(0.4), x), atol=0.3
    )


def test_companions_take_variance_from_the_target():
    losses = [
        empirical_flow_matching(NET, m, num_steps=100).fit(jax.random.key(0), DATA).history["loss"][-30:].mean()
        for m in (1, 1024)
    ]
    assert losses[1] < 0.5 * losses[0]


def test_conditions_other_paths_and_learned_weights():
    cond = jnp.eye(2)[(DATA[:, 0] > 1).astype(int)]
    generator = self_distilled_flow_map(
        NET, num_steps=500, interpolant=trigonometric, learned_weight=True, peak_rate=5e-3, average=0.98
    )
    params = generator.fit(jax.random.key(0), DATA, cond)
    of_second = jnp.tile(jnp.array([0.0, 1.0]), (1000, 1))
    right = generator.generate(jax.random.key(1), params, 1000, of_second, num_jumps=2)
    left = generator.generate(jax.random.key(1), params, 1000, 1 - of_second, num_jumps=2)
    assert float((right[:, 0] > 1).mean()) > 0.8
    assert float((left[:, 0] > 1).mean()) < 0.2


def test_guidance_pushes_away_from_the_others():
    cond = jnp.eye(2)[(DATA[:, 0] > 1).astype(int)]
    generator = self_distilled_flow_map(NET, num_steps=800, guidance=3.0, peak_rate=5e-3, average=0.98)
    params = generator.fit(jax.random.key(0), DATA, cond)
    ask = lambda a: jnp.tile(jnp.array([0.0, 1.0, a / 3.0]), (1000, 1))
    means = [
        float(generator.generate(jax.random.key(1), params, 1000, ask(a), num_jumps=4)[:, 0].mean()) for a in (1.0, 3.0)
    ]
    assert means[1] > means[0] + 0.1


def test_pairs_are_kept_together():
    """Sources that are the targets leave nothing to do."""
    generator = self_distilled_flow_map(NET, num_steps=300, peak_rate=5e-3, average=0.9)
    params = generator.fit(jax.random.key(0), DATA, x_0=DATA)
    moved = generator.generate(jax.random.key(1), params, 100, x_0=DATA[:100])
    assert float(jnp.abs(moved - DATA[:100]).mean()) < 0.05


def test_the_same_key_gives_the_same_and_compiles_once():
    generator = self_distilled_flow_map(NET, num_steps=20)
    first = generator.fit(jax.random.key(0), DATA)
    before = fitting._take_steps._cache_size()
    second = self_distilled_flow_map(NET, num_steps=20).fit(jax.random.key(0), DATA)
    assert fitting._take_steps._cache_size() == before
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    samples = [generator.generate(jax.random.key(1), first, 16) for _ in range(2)]
    np.testing.assert_array_equal(*samples)
    assert not np.array_equal(samples[0], generator.generate(jax.random.key(2), first, 16))


@pytest.mark.usefixtures("x64")
def test_in_double_precision():
    data = jnp.asarray(np.asarray(DATA[:64]), jnp.float64)
    params = self_distilled_flow_map(NET, num_steps=3).fit(jax.random.key(0), data)
    assert {leaf.dtype for leaf in jax.tree.leaves(params.network)} <= {jnp.dtype("float32"), jnp.dtype("float64")}
    assert params.std_0.dtype == jnp.float64


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    with pytest.raises(ValueError, match="objective: expected one of lsd, esd"):
        self_distilled_flow_map(NET, "lds")
    with pytest.raises(ValueError, match="steps: expected fields of FlowMapRecipe"):
        self_distilled_flow_map(NET, steps=3)
    with pytest.raises(ValueError, match="diagonal_share"):
        self_distilled_flow_map(NET, diagonal_share=1.0)
    with pytest.raises(ValueError, match="batch_size"):
        self_distilled_flow_map(NET, batch_size=1)
    with pytest.raises(ValueError, match="std_0"):
        self_distilled_flow_map(NET, std_0=0.0)
    with pytest.raises(ValueError, match="guidance: expected an objective with a velocity"):
        self_distilled_flow_map(NET, "psd_m", guidance=2.0)
    with pytest.raises(ValueError, match="guidance: expected a largest strength"):
        self_distilled_flow_map(NET, guidance=0.5)
    generator = self_distilled_flow_map(NET, num_steps=2)
    with pytest.raises(ValueError, match="guidance: expected conditions"):
        self_distilled_flow_map(NET, guidance=2.0).fit(jax.random.key(0), DATA)
    with pytest.raises(ValueError, match="data: 1 of 4096 points are not finite"):
        generator.fit(jax.random.key(0), DATA.at[7, 1].set(jnp.nan))
    with pytest.raises(ValueError, match=r"data: expected points \[num, dim\]"):
        generator.fit(jax.random.key(0), DATA[:, 0])
    with pytest.raises(ValueError, match="x_0: expected a source for each"):
        generator.fit(jax.random.key(0), DATA, x_0=DATA[:3])
    with pytest.raises(ValueError, match="cond: expected a vector for each"):
        generator.fit(jax.random.key(0), DATA, DATA[:3])
    with pytest.raises(ValueError, match="std_0: expected a Gaussian source"):
        empirical_flow_matching(NET, std_0=-1.0)
    with pytest.raises(ValueError, match="num_companions: expected at most 64"):
        empirical_flow_matching(NET, 300).fit(jax.random.key(0), DATA[:64])
    with pytest.raises(ValueError, match="num_companions: expected at least 1, got 0"):
        empirical_flow_matching(NET, 0, companions="per_sample").fit(jax.random.key(0), DATA)
    with pytest.raises(ValueError, match="num_companions: expected 1 with conditions"):
        empirical_flow_matching(NET, 300).fit(jax.random.key(0), DATA, x_0=DATA)


def test_many_points_are_drawn_in_batches():
    """Of one size, filled up with the first: nobody is lost, and no point depends on the others."""
    cond = jnp.eye(2)[jnp.arange(len(DATA)) % 2]
    for method, choices in ((self_distilled_flow_map, {"num_jumps": 3}), (empirical_flow_matching, {"num_steps": 5})):
        generator = method(NET, num_steps=20)
        params = generator.fit(jax.random.key(0), DATA, cond)
        num = 2 * IN_CACHE + 1
        x_0 = jax.random.normal(jax.random.key(1), (num, 2))
        asked = jnp.eye(2)[jnp.arange(num) % 2]
        draw = lambda part: generator.generate(None, params, len(x_0[part]), asked[part], x_0=x_0[part], **choices)  # noqa: B023
        together = draw(slice(None))
        assert together.shape == (num, 2)
        for part in (slice(0, num // 3), slice(2 * num // 3, num)):
            np.testing.assert_allclose(draw(part), together[part], rtol=1e-5, atol=1e-6)


# --- one gate for what comes in ---------------------------------------------------------------------------------------

SHORT = {"num_steps": 20, "batch_size": 16}
METHODS = {"velocity": empirical_flow_matching, "map": self_distilled_flow_map}


@pytest.fixture(scope="module", params=METHODS)
def conditioned(request):
    generator = METHODS[request.param](TimeMLP([8]), **SHORT)  # a list of widths is as good as a tuple
    return generator, generator.fit(jax.random.key(0), DATA[:40], jnp.eye(2)[jnp.arange(40) % 2])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("num", "cond", "message"),
    [
        (2000, np.eye(2), r"cond: expected a vector for each of 2000 samples, got shape \(2, 2\)"),
        (3, np.array([0, 1, 1]), r"cond: expected a vector for each of 3 samples, got shape \(3,\)"),
        (3, [0.0, 1.0], r"cond: expected a vector for each of 3 samples, got shape \(2,\)"),
        (3, None, "cond: expected 2 numbers for each of 3 samples, as in the fit, got none"),
        (3, np.eye(3), r"cond: expected 2 numbers for each sample, as in the fit, got shape \(3, 3\)"),
        (2, np.array([[1, np.nan], [0, 1]]), "cond: 1 of 2 points are not finite"),
        (2.0, np.eye(2), "num: expected an integer of at least 1, got 2.0"),
        (0, np.zeros((0, 2)), "num: expected at least 1, got 0"),
    ],
)
def test_conditions_are_those_of_the_fit(conditioned, num, cond, message):
    """The last condition was taken for all that were missing (wrong before 0.2)."""
    generator, params = conditioned
    with pytest.raises(ValueError, match=message):
        generator.generate(jax.random.key(1), params, num, cond)


@pytest.mark.usefixtures("unchecked")
def test_starts_are_those_of_the_samples(conditioned):
    """(wrong before 0.2)"""
    generator, params = conditioned
    generate = lambda x_0: generator.generate(None, params, 2, np.eye(2), x_0=x_0)
    for x_0 in (jnp.zeros((3, 2)), jnp.zeros((2, 3)), jnp.zeros(2)):
        with pytest.raises(ValueError, match=r"x_0: expected a start for each sample, \(2, 2\), got shape"):
            generate(x_0)
    with pytest.raises(ValueError, match="x_0: 1 of 2 points are not finite"):
        generate(jnp.array([[0.0, jnp.nan], [0.0, 0.0]]))
    np.testing.assert_array_equal(generate([[0, 1], [2, 0]]), generate(jnp.array([[0.0, 1.0], [2.0, 0.0]])))
    with pytest.raises(ValueError, match=r"num_jumps|num_steps"):
        generator.generate(None, params, 2, np.eye(2), **{"num_jumps" if generator.flow_map else "num_steps": 0})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", METHODS.values())
def test_data_of_any_kind(method):
    """(wrong before 0.2)"""
    generator, key = method(TimeMLP((8,)), **SHORT), jax.random.key(0)
    for data in (np.full((5, 2), 3), np.ones((1, 2), np.uint8), [[1, 2], [1, 2]]):
        params = generator.fit(key, data)
        assert bool((params.std_0 > 0).all())
        assert np.isfinite(params.history["loss"]).all()
        assert bool(jnp.isfinite(generator.generate(key, params, 3)).all())
    with pytest.raises(ValueError, match=r"cond: expected none, as in the fit, got shape \(3, 2\)"):
        generator.generate(key, params, 3, jnp.ones((3, 2)))
    bytes_, floats = np.arange(80).reshape(40, 2).astype(np.uint8), np.arange(80.0).reshape(40, 2)
    for a, b in zip(*(jax.tree.leaves(generator.fit(key, data)) for data in (bytes_, floats)), strict=True):
        np.testing.assert_array_equal(a, b)
    for data in (np.zeros((0, 2)), np.zeros((3, 0)), np.zeros(3), "data", [[1, 2], [3]]):
        with pytest.raises(ValueError, match="data: expected"):
            generator.fit(key, data)


@pytest.mark.usefixtures("unchecked")
def test_a_start_of_another_fit(conditioned):
    """(wrong before 0.2)"""
    generator, params = conditioned
    key, cond = jax.random.key(0), jnp.eye(2)[jnp.arange(40) % 2]
    method = empirical_flow_matching if generator.flow_map is None else self_distilled_flow_map
    with pytest.raises(ValueError, match="start: expected a fit with 0 numbers as condition, got one with 2"):
        generator.fit(key, DATA[:40], start=params)
    with pytest.raises(ValueError, match="start: expected parameters of this network"):
        method(TimeMLP((9,)), **SHORT).fit(key, DATA[:40], cond, start=params)
    still = method(TimeMLP([8]), optimizer=optax.sgd(0.0), average=0.0, **SHORT).fit(key, DATA[:40], cond, start=params)
    for a, b in zip(jax.tree.leaves(still.network), jax.tree.leaves(params.network), strict=True):
        np.testing.assert_array_equal(a, b)  # it begins where the other ended, and not at the average of anything else


def test_generators_under_jit_and_vmap(conditioned):
    generator, params = conditioned
    params, keys = params._replace(history={}), jax.random.split(jax.random.key(1), 2)
    alone = generator.generate(keys[1], params, 2, jnp.eye(2))
    compiled = jax.jit(lambda key, params: generator.generate(key, params, 2, jnp.eye(2)))(keys[1], params)
    many = jax.vmap(lambda key: generator.generate(key, params, 2, jnp.eye(2)))(keys)
    np.testing.assert_allclose(compiled, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many[1], alone, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(many[0] - many[1]).max()) > 0.1


@pytest.mark.parametrize("method", METHODS.values())
def test_under_the_settings_that_find_mistakes(method):
    """(wrong before 0.2)"""
    settings = {"jax_debug_nans": True, "jax_debug_infs": True, "jax_numpy_rank_promotion": "raise"}
    before = {name: getattr(jax.config, name) for name in settings}
    few = {} if method is self_distilled_flow_map else {"num_steps": 2}
    generator = method(TimeMLP((7,)), num_steps=200, batch_size=8)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        params = generator.fit(jax.random.key(0), DATA[:40])
        samples = generator.generate(jax.random.key(1), params, 3, **few)
        with jax.check_tracer_leaks():
            again = generator.generate(jax.random.key(1), params, 4, **few)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert samples.shape == (3, 2)
    assert again.shape == (4, 2)


def test_the_source_of_companions_is_that_of_the_paths():
    """Paths from N(0, 3^2): the target is the exact velocity from that source, at the points where the network is asked
    (companions that ignored std_0 were not noticed)."""
    choices = {"companions": "per_sample", "std_0": 3.0, "batch_size": 16, "num_steps": 1}
    recipe = VelocityRecipe(num_companions=40, **choices)
    _, sample, _ = _objective(NET, recipe)
    path, _ = sample(jax.random.key(2), flow_data(DATA[:40], std_0=3.0))
    exact = jax.vmap(closed_form_velocity(DATA[:40], source=(0.0, 3.0)))(path.t, path.x_t)
    np.testing.assert_allclose(path.dx_t, exact, rtol=1e-3, atol=1e-3)
    assert 2 < float(path.x_0.std()) < 4


def test_what_is_drawn_for_a_batch_is_drawn_apart():
    """Times, sources and targets of one batch: each joint law is that of independent ones."""
    _, sample, _ = _objective(NET, VelocityRecipe(batch_size=4096, std_0=1.0))
    cond = jnp.concatenate([DATA, DATA[:, :1] > 1], axis=1).astype(jnp.float32)
    path, drawn = sample(jax.random.key(0), flow_data(DATA, cond, std_0=1.0))
    np.testing.assert_array_equal(drawn[:, :2], path.x_1)  # a condition stays with its target
    columns = jnp.concatenate([path.t[:, None], path.x_0, path.x_1[:, :1]], axis=1)
    correlation = jnp.corrcoef(columns.T) - jnp.eye(4)
    assert float(jnp.abs(correlation).max()) < 5 / 64


def test_rows_are_as_many_in_every_array():
    """A batch of the others was clamped (wrong before 0.2)."""
    with pytest.raises(ValueError, match=r"rows: expected at least one row, as many in every array, got .*2.*5"):
        map_rows(lambda row: row[0] + row[1], (jnp.zeros(5), jnp.zeros(2)), 2)
    np.testing.assert_array_equal(
        map_rows(lambda row: row[0] + row[1], (jnp.arange(5), jnp.ones(5)), 2), jnp.arange(5) + 1
    )


def test_probes_are_averaged():
    """The divergence of c x is exactly c dim by any Rademacher probe, so by any number of them."""
    field = lambda t, x: 0.5 * x
    found = [
        log_likelihood(field, jnp.ones(3), lambda x: jnp.zeros(()), key=key, num_probes=num, num_steps=8)
        for key, num in ((None, 1), (jax.random.key(0), 1), (jax.random.key(1), 4))
    ]
    np.testing.assert_allclose(found, -1.5, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_choices_that_cannot_be_meant():
    """(wrong before 0.2)"""
    for method in METHODS.values():
        for name, value in (
            ("num_steps", 0),
            ("num_steps", 2.5),
            ("batch_size", -1),
            ("peak_rate", 0.0),
            ("average", 1),
        ):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                method(NET, **{name: value})
    with pytest.raises(ValueError, match="stop: expected one of teacher, point, none with 'psd_m', got 'bracket'"):
        self_distilled_flow_map(NET, "psd_m", stop="bracket")
    with pytest.raises(ValueError, match="companions: expected 'per_sample' or 'shared', got 'mine'"):
        empirical_flow_matching(NET, companions="mine")


@pytest.mark.usefixtures("unchecked")
def test_integer_points_have_a_likelihood():
    """(wrong before 0.2)"""
    found = log_likelihood(ORACLE.velocity, np.array([1, 0]), normal_log_density)
    assert float(found) == pytest.approx(float(normal_log_density(jnp.array([1.0, 0.0]), MEAN, STD)), rel=1e-2)
    with pytest.raises(ValueError, match=r"x_1: expected one point \[dim\], got shape \(2, 2\)"):
        log_likelihood(ORACLE.velocity, jnp.zeros((2, 2)), normal_log_density)


@pytest.mark.parametrize("method", METHODS.values())
def test_generators_inside_shard_map(method):
    """Each device makes its part; diffrax's own buffers want `check_vma=False`, jumps do not."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, generator = jax.sharding.PartitionSpec("d"), method(TimeMLP((8,)), **SHORT)
    params = generator.fit(jax.random.key(0), DATA[:40])._replace(history={})
    part = lambda x: generator.generate(None, params, 2, x_0=x)
    options = {} if generator.flow_map else {"check_vma": False}
    found = jax.shard_map(part, mesh=mesh, in_specs=split, out_specs=split, **options)(DATA[:4])
    np.testing.assert_allclose(found, generator.generate(None, params, 4, x_0=DATA[:4]), rtol=1e-5, atol=1e-6)
