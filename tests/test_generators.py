"""Flows: fits of toy laws, their determinism, their resumption, and what they refuse; the networks that they use."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import jittered

from gfm_jax import fit_program
from gfm_jax.fitting import fit
from gfm_jax.flows import (
    EmpiricalTargets,
    FlowData,
    closed_form_velocity,
    empirical_flow_matching,
    esd,
    flow_map,
    flow_map_step,
    flow_matching,
    gaussian,
    guide,
    lagrangian,
    lsd,
    mean_flow,
    psd_midpoint,
    psd_uniform,
    sample,
    shortcut,
    trigonometric,
)
from gfm_jax.flows.flow_data import IN_CACHE, flow_data
from gfm_jax.networks import TimeMLP, UNet, init_network
from gfm_jax.pytrees import map_rows
from gfm_jax.solve import log_likelihood, solve_flow, solve_flow_map, solve_hybrid

NET = TimeMLP((32, 32))
MEAN, STD = jnp.array([1.0, -0.5]), 0.4
DATA = MEAN + STD * jax.random.normal(jax.random.key(3), (4096, 2))
ORACLE = gaussian(MEAN, STD)
CLASSES = jnp.eye(2)[(DATA[:, 0] > 1).astype(int)]
FAST = {"learning_rate": 5e-3, "ema_decay": 0.98}


def fitted(flow, data=DATA, num_steps=600, **choices):
    return fit(jax.random.key(0), flow, data, num_steps=num_steps, **(FAST | choices))


def drawn(flow, params, *arguments, **choices):
    return sample(jax.random.key(1), flow, params, *arguments, **choices)


# --- samplers ---------------------------------------------------------------------------------------------------------


def test_jumps_of_an_exact_map_and_of_a_first_order_one():
    x_0, exact = jnp.array([0.3, 1.2]), ORACLE.flow_map(jnp.float32(0), jnp.float32(1), jnp.array([0.3, 1.2]))
    for num_steps in (1, 3, 16):
        np.testing.assert_allclose(solve_flow_map(ORACLE.flow_map, x_0, num_steps=num_steps), exact, rtol=1e-5)
    euler = lambda s, t, x: x + (t - s) * ORACLE.velocity(s, x)
    errors = [float(jnp.abs(solve_flow_map(euler, x_0, num_steps=n) - exact).max()) for n in (32, 64)]
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
    with pytest.raises(ValueError, match="num_steps"):
        solve_flow_map(ORACLE.flow_map, jnp.zeros(2), num_steps=0)
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


RESIDUALS = {
    "lsd": lsd, "esd": esd, "psd_midpoint": psd_midpoint, "psd_uniform": psd_uniform, "mean_flow": mean_flow,
    "shortcut": shortcut,
}  # fmt: skip


@pytest.mark.parametrize("residual", RESIDUALS)
def test_flow_maps_learn_a_gaussian(residual):
    flow = flow_map(NET, RESIDUALS[residual], std_0=1.0)
    params, info = fitted(flow, num_steps=1000)
    for num_steps in (1, 4):
        mean, std = moments(drawn(flow, params, 4000, num_steps=num_steps))
        np.testing.assert_allclose(mean, MEAN, atol=0.12)
        np.testing.assert_allclose(std, STD, rtol=0.3)
    assert info.terms["diagonal"][-100:].mean() < 0.9 * info.terms["diagonal"][:20].mean()
    times = jnp.float32(0.3), jnp.float32(0.8)
    x = jnp.array([0.5, 0.2])
    np.testing.assert_allclose(flow.flow_map(params, *times, x), ORACLE.flow_map(*times, x), atol=0.2)
    np.testing.assert_allclose(flow.flow_map(params, times[0], times[0], x), x)


@pytest.mark.parametrize("targets", [None, EmpiricalTargets(300), EmpiricalTargets(8, "per_sample")])
def test_flow_matching_learns_a_gaussian(targets):
    flow = flow_matching(NET, targets=targets)
    params, _ = fitted(flow)
    mean, std = moments(drawn(flow, params, 4000))
    np.testing.assert_allclose(mean, MEAN, atol=0.1)
    np.testing.assert_allclose(std, STD, rtol=0.25)
    x = jnp.array([0.5, 0.2])
    np.testing.assert_allclose(
        flow.velocity(params, jnp.float32(0.4), x), ORACLE.velocity(jnp.float32(0.4), x), atol=0.3
    )


def test_reference_points_take_variance_from_the_target():
    flows = flow_matching(NET), empirical_flow_matching(NET, 1024)
    losses = [fit(jax.random.key(0), flow, DATA, num_steps=100)[1].losses[-30:].mean() for flow in flows]
    assert losses[1] < 0.5 * losses[0]


def test_conditions_other_paths_and_learned_weights():
    flow = flow_map(NET, interpolant=trigonometric, learned_weight=True)
    params, _ = fitted(flow, (DATA, CLASSES), 500)
    of_second = jnp.tile(jnp.array([0.0, 1.0]), (1000, 1))
    right = drawn(flow, params, 1000, of_second, num_steps=2)
    left = drawn(flow, params, 1000, 1 - of_second, num_steps=2)
    assert float((right[:, 0] > 1).mean()) > 0.8
    assert float((left[:, 0] > 1).mean()) < 0.2


def test_guidance_pushes_away_from_the_others():
    flow = flow_map(NET, max_guidance=3.0)
    params, _ = fitted(flow, (DATA, CLASSES), 800)
    asked = jnp.tile(jnp.array([0.0, 1.0]), (1000, 1))
    means = [float(drawn(guide(flow, a), params, 1000, asked, num_steps=4)[:, 0].mean()) for a in (1.0, 3.0)]
    assert means[1] > means[0] + 0.1


def test_pairs_are_kept_together():
    """Sources that are the targets leave nothing to do."""
    flow = flow_map(NET)
    params, _ = fitted(flow, FlowData(DATA, x_0=DATA), 300, ema_decay=0.9)
    moved = drawn(flow, params, 100, x_0=DATA[:100])
    assert float(jnp.abs(moved - DATA[:100]).mean()) < 0.05


def test_the_same_key_gives_the_same_and_compiles_once():
    first, _ = fitted(flow := flow_map(NET), num_steps=20)
    before = fit_program.take_steps._cache_size()
    second, _ = fitted(flow_map(NET), num_steps=20)
    assert fit_program.take_steps._cache_size() == before
    jax.tree.map(np.testing.assert_array_equal, first, second)
    samples = [drawn(flow, first, 16) for _ in range(2)]
    np.testing.assert_array_equal(*samples)
    assert not np.array_equal(samples[0], sample(jax.random.key(2), flow, first, 16))


@pytest.mark.usefixtures("x64")
def test_in_double_precision():
    data = jnp.asarray(np.asarray(DATA[:64]), jnp.float64)
    params, _ = fitted(flow_map(NET), data, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(params.network)} <= {jnp.dtype("float32"), jnp.dtype("float64")}
    assert params.std_0.dtype == jnp.float64


# --- guidance, and choices that are functions -------------------------------------------------------------------------

AT = jnp.float32(0.3), jnp.array([0.5, 0.2]), jnp.array([0.0, 1.0])  # t, x, cond


def unfitted(flow, cond=CLASSES):
    """Parameters none of which is zero."""
    params = flow.learner.init(jax.random.key(0), flow.learner.prepare(jax.random.key(0), (DATA, cond)))
    return params._replace(network=jittered(params.network, 0.3))


def test_a_guided_velocity():
    """v(x; 0) + a (v(x; c) - v(x; 0)); of strength 1 that of the condition, of 0 that of none."""
    flow = flow_matching(NET, condition_dropout=0.2)
    params, (t, x, cond) = unfitted(flow), AT
    with_condition, without = flow.velocity(params, t, x, cond), flow.velocity(params, t, x, 0 * cond)
    assert float(jnp.abs(with_condition - without).max()) > 0.1
    for a in (0.0, 1.0, 2.5):
        found = guide(flow, a)
        np.testing.assert_allclose(
            found.velocity(params, t, x, cond), without + a * (with_condition - without), rtol=1e-5
        )
        assert found.flow_map is None
    with pytest.raises(ValueError, match="cond: expected a condition to be guided by, got None"):
        found.velocity(params, t, x)


def test_a_guided_map():
    """The network is told the strength in units of the largest, after the condition; unguided it is 1."""
    flow = flow_map(NET, max_guidance=4.0)
    params, (t, x, cond) = unfitted(flow), AT
    for a, found in (
        (1.0, flow),
        (1.0, guide(flow, 1.0)),
        (3.0, guide(flow, 3.0)),
        (2.0, guide(guide(flow, 3.0), 2.0)),
    ):
        of_network = lambda s, t: NET.apply(params.network["field"], jnp.stack([s, t]), x, jnp.append(cond, a / 4))  # noqa: B023
        np.testing.assert_allclose(found.velocity(params, t, x, cond), of_network(t, t), rtol=1e-6)
        np.testing.assert_allclose(
            found.flow_map(params, t, 0.9, x, cond), flow_map_step(t, 0.9, x, of_network(t, 0.9)), rtol=1e-6
        )
    with pytest.raises(ValueError, match=r"strength: expected at most max_guidance, 4\.0, got 4\.5"):
        guide(flow, 4.5)


@pytest.mark.parametrize("flow", [flow_matching(NET, condition_dropout=0.2), flow_map(NET, max_guidance=4.0)])
def test_a_strength_may_be_traced(flow):
    params = unfitted(flow)
    of = lambda a: drawn(guide(flow, a), params, 2, jnp.eye(2), num_steps=3)
    compiled = jax.jit(of)
    for a in (1.0, 3.0):
        np.testing.assert_allclose(compiled(a), of(a), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of(1.0), drawn(flow, params, 2, jnp.eye(2), num_steps=3), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(of(3.0) - of(1.0)).max()) > 1e-2


@pytest.mark.parametrize("flow", [flow_matching(NET), flow_map(NET)])
def test_a_flow_without_guidance(flow):
    with pytest.raises(ValueError, match="flow: expected one with condition_dropout or max_guidance"):
        guide(flow, 2.0)


def test_conditions_are_dropped_as_often_as_asked():
    batch = lambda share: flow_matching(NET, condition_dropout=share, batch_size=4096).learner.sample(
        jax.random.key(0), flow_data((DATA, CLASSES), 1.0)
    )
    (path, cond), (plain, all_known) = batch(0.3), batch(0.0)
    dropped = (cond == 0).all(1)
    assert float(dropped.mean()) == pytest.approx(0.3, abs=5 * (0.21 / 4096) ** 0.5)
    np.testing.assert_array_equal(cond[~dropped], all_known[~dropped])
    np.testing.assert_array_equal(path.x_t, plain.x_t)


def test_a_coupling_and_times_of_ones_own():
    """Sources and targets of a batch in the same order, all at one time."""
    rank = lambda x: jnp.argsort(jnp.argsort(x[:, 0]))
    in_order = lambda key, x_0, x_1: jnp.argsort(x_1[:, 0])[rank(x_0)]
    at_quarter = lambda key, num: jnp.full(num, 0.25)
    data = flow_data(DATA, 1.0)
    batch = lambda **choices: flow_matching(NET, batch_size=64, **choices).learner.sample(jax.random.key(3), data)[0]
    path, plain = batch(coupling=in_order, times=at_quarter), batch()
    np.testing.assert_array_equal(rank(path.x_0), rank(path.x_1))
    np.testing.assert_array_equal(np.sort(path.x_1[:, 0]), np.sort(plain.x_1[:, 0]))
    np.testing.assert_array_equal(path.x_0, plain.x_0)
    np.testing.assert_array_equal(path.t, 0.25)
    np.testing.assert_allclose(path.x_t, 0.75 * path.x_0 + 0.25 * path.x_1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path.dx_t, path.x_1 - path.x_0, rtol=1e-5, atol=1e-6)
    key_of = []
    batch(coupling=lambda key, x_0, x_1: (key_of.append(key), jnp.arange(len(x_0)))[1])
    assert jnp.issubdtype(key_of[0].dtype, jax.dtypes.prng_key)


def test_a_residual_of_ones_own():
    """An error alone is asked for as it is, and gives what the same one gives by its name; one of another law does not."""
    losses = lambda residual: fitted(flow_map(NET, residual), num_steps=20)[1].losses
    np.testing.assert_array_equal(losses(lambda v, s, t, x: lagrangian(v, s, t, x)), losses(lsd))
    first_order = lambda v, s, t, x: v(s, t, x) - jax.lax.stop_gradient(v(s, s, x))
    info = fitted(flow_map(NET, first_order), num_steps=20)[1]
    assert np.isfinite(info.losses).all()
    assert (info.losses != losses(lsd)).any()


def test_what_sample_takes():
    flow = flow_map(NET, std_0=1.0)
    params = unfitted(flow)
    x_0 = 0.1 * DATA[:3]
    by_map = sample(None, flow, params, cond=CLASSES[:3], x_0=x_0, num_steps=2)
    by_velocity = sample(None, flow, params, cond=CLASSES[:3], x_0=x_0, num_steps=8, solver=diffrax.Euler())
    for k in range(3):
        half = flow.flow_map(params, 0.0, 0.5, x_0[k], CLASSES[k])
        np.testing.assert_allclose(by_map[k], flow.flow_map(params, 0.5, 1.0, half, CLASSES[k]), rtol=1e-5, atol=1e-6)
        x = x_0[k]
        for i in range(8):
            x = x + flow.velocity(params, jnp.float32(i / 8), x, CLASSES[k]) / 8
        np.testing.assert_allclose(by_velocity[k], x, rtol=1e-4, atol=1e-5)
    assert drawn(flow, params, cond=CLASSES[:5]).shape == (5, 2)
    plain = flow_matching(NET)
    params = unfitted(plain, None)
    heun = {"num_steps": 50, "solver": diffrax.Heun()}
    np.testing.assert_array_equal(drawn(plain, params, 4), drawn(plain, params, 4, **heun))


@pytest.mark.usefixtures("unchecked")
def test_what_sample_refuses():
    flow = flow_matching(NET)
    params = unfitted(flow, None)
    with pytest.raises(ValueError, match="num: expected how many samples to draw, got None"):
        drawn(flow, params)
    with pytest.raises(ValueError, match=r"temperature: expected None for a flow, got 0\.5"):
        drawn(flow, params, 3, temperature=0.5)
    with pytest.raises(ValueError, match="params: expected those of a fitted flow, got dict"):
        drawn(flow, params.network, 3)
    with pytest.raises(ValueError, match="key: expected one to draw sources with, or x_0, got None"):
        sample(None, flow, params, 3)
    with pytest.raises(ValueError, match="x_0: expected a start for each sample"):
        drawn(flow, params, 4, x_0=DATA[:3])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flow_map(NET, diagonal_fraction=1.0), r"diagonal_fraction: expected a fraction in \(0, 1\), got 1\.0"),
        (lambda: flow_map(NET, batch_size=1), "batch_size: expected enough"),
        (lambda: flow_map(NET, std_0=0.0), r"std_0: expected a positive standard deviation, got 0\.0"),
        (lambda: flow_map(NET, psd_midpoint, max_guidance=2.0), "max_guidance: expected a residual that takes a teacher"),
        (lambda: flow_map(NET, functools.partial(lagrangian, teacher=None), max_guidance=0.5), "max_guidance: expected a s"),
        (lambda: flow_map(NET, psd_midpoint._replace(stop="bracket")), "stop: expected one of teacher, point, none, got 'b"),
        (lambda: flow_map(NET, psd_midpoint._replace(gamma=1.5)), r"gamma: expected a number in \[0, 1\], or None, got 1\.5"),
        (lambda: flow_map(NET, lsd._replace(error=lambda v, s, t, x: x, stop="point")), "stop: expected None for an error"),
        (lambda: fitted(flow_map(NET, max_guidance=2.0)), "max_guidance: expected conditions"),
        (lambda: fitted(flow_map(NET), DATA.at[7, 1].set(jnp.nan)), "data: 1 of 4096 points are not finite"),
        (lambda: fitted(flow_map(NET), DATA[:, 0]), r"data: expected points \[num, dim\]"),
        (lambda: fitted(flow_map(NET), FlowData(DATA, x_0=DATA[:3])), "x_0: expected a source for each"),
        (lambda: fitted(flow_map(NET), (DATA, DATA[:3])), "cond: expected a vector for each"),
        (lambda: flow_matching(NET, std_0=-1.0), r"std_0: expected a positive standard deviation, got -1\.0"),
        (lambda: flow_matching(NET, condition_dropout=1.0), r"condition_dropout: expected a probability in \[0, 1\), got 1\.0"),
        (lambda: flow_matching(NET, targets=EmpiricalTargets(8, "mine")), "sharing: expected 'per_sample' or 'shared', got 'm"),
        (lambda: flow_matching(NET, targets=EmpiricalTargets(300), coupling=min), "coupling: expected None with targets"),
        (lambda: fitted(empirical_flow_matching(NET, 300), DATA[:64]), "num_reference_points: expected at most 64"),
        (
            lambda: fitted(empirical_flow_matching(NET, 0, sharing="per_sample")),
            "num_reference_points: expected at least 1, got 0",
        ),
        (lambda: fitted(empirical_flow_matching(NET, 300), FlowData(DATA, x_0=DATA)), "targets: expected None with conditions"),
        (lambda: fitted(flow_matching(NET, coupling=min), (DATA, CLASSES)), "coupling: expected None with conditions"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_many_points_are_drawn_in_batches():
    """Of one size, filled up with the first: nobody is lost, and no point depends on the others."""
    cond = jnp.eye(2)[jnp.arange(len(DATA)) % 2]
    for flow, num_steps in ((flow_map(NET), 3), (flow_matching(NET), 5)):
        params, _ = fitted(flow, (DATA, cond), 20)
        num = 2 * IN_CACHE + 1
        x_0 = jax.random.normal(jax.random.key(1), (num, 2))
        asked = jnp.eye(2)[jnp.arange(num) % 2]
        draw = lambda part: sample(None, flow, params, None, asked[part], x_0=x_0[part], num_steps=num_steps)  # noqa: B023
        together = draw(slice(None))
        assert together.shape == (num, 2)
        for part in (slice(0, num // 3), slice(2 * num // 3, num)):
            np.testing.assert_allclose(draw(part), together[part], rtol=1e-5, atol=1e-6)


# --- one gate for what comes in ---------------------------------------------------------------------------------------

METHODS = {"velocity": flow_matching, "map": flow_map}
ALTERNATING = jnp.eye(2)[jnp.arange(40) % 2]


def short(flow, data=DATA[:40], **choices):
    return fit(jax.random.key(0), flow, data, num_steps=20, **choices)[0]


@pytest.fixture(scope="module", params=METHODS)
def conditioned(request):
    flow = METHODS[request.param](TimeMLP([8]), batch_size=16)  # a list of widths is as good as a tuple
    return flow, short(flow, (DATA[:40], ALTERNATING))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("num", "cond", "message"),
    [
        (2000, np.eye(2), r"cond: expected a vector for each of 2000 samples, got shape \(2, 2\)"),
        (3, np.array([0, 1, 1]), r"cond: expected a vector for each of 3 samples, got shape \(3,\)"),
        (3, [1.0], r"cond: expected a vector for each of 3 samples, got shape \(1,\)"),
        (3, None, "cond: expected 2 numbers for each of 3 samples, as in the fit, got none"),
        (3, np.eye(3), r"cond: expected 2 numbers for each sample, as in the fit, got shape \(3, 3\)"),
        (2, np.array([[1, np.nan], [0, 1]]), "cond: 1 of 2 points are not finite"),
        (2.0, np.eye(2), "num: expected an integer of at least 1, got 2.0"),
        (0, np.zeros((0, 2)), "num: expected at least 1, got 0"),
    ],
)
def test_conditions_are_those_of_the_fit(conditioned, num, cond, message):
    """The last condition was taken for all that were missing (wrong before 0.2)."""
    flow, params = conditioned
    with pytest.raises(ValueError, match=message):
        drawn(flow, params, num, cond)


@pytest.mark.usefixtures("unchecked")
def test_starts_are_those_of_the_samples(conditioned):
    """(wrong before 0.2)"""
    generate = lambda x_0, **choices: sample(None, *conditioned, 2, np.eye(2), x_0=x_0, **choices)
    for x_0 in (jnp.zeros((3, 2)), jnp.zeros((2, 3)), jnp.zeros(2)):
        with pytest.raises(ValueError, match=r"x_0: expected a start for each sample, \(2, 2\), got shape"):
            generate(x_0)
    with pytest.raises(ValueError, match="x_0: 1 of 2 points are not finite"):
        generate(jnp.array([[0.0, jnp.nan], [0.0, 0.0]]))
    np.testing.assert_array_equal(generate([[0, 1], [2, 0]]), generate(jnp.array([[0.0, 1.0], [2.0, 0.0]])))
    with pytest.raises(ValueError, match="num_steps: expected at least 1, got 0"):
        generate(None, num_steps=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", METHODS.values())
def test_data_of_any_kind(method):
    """(wrong before 0.2)"""
    flow = method(TimeMLP((8,)), batch_size=16)
    for data in (np.full((5, 2), 3), np.ones((1, 2), np.uint8), [[1, 2], [1, 2]]):
        params, info = fit(jax.random.key(0), flow, data, num_steps=20)
        assert bool((params.std_0 > 0).all())
        assert np.isfinite(info.losses).all()
        assert bool(jnp.isfinite(drawn(flow, params, 3)).all())
    with pytest.raises(ValueError, match=r"cond: expected none, as in the fit, got shape \(3, 2\)"):
        drawn(flow, params, 3, jnp.ones((3, 2)))
    bytes_, floats = np.arange(80).reshape(40, 2).astype(np.uint8), np.arange(80.0).reshape(40, 2)
    jax.tree.map(np.testing.assert_array_equal, short(flow, bytes_), short(flow, floats))
    for data in (np.zeros((0, 2)), np.zeros((3, 0)), np.zeros(3), "data", [[1, 2], [3]]):
        with pytest.raises(ValueError, match="data: expected"):
            short(flow, data)


@pytest.mark.usefixtures("unchecked")
def test_a_start_of_another_fit(conditioned):
    """(wrong before 0.2)"""
    flow, params = conditioned
    method = flow_matching if flow.flow_map is None else flow_map
    with pytest.raises(ValueError, match="start: expected a fit with 0 numbers as condition, got one with 2"):
        short(flow, start=params)
    with pytest.raises(ValueError, match="start: expected parameters of this network"):
        short(method(TimeMLP((9,)), batch_size=16), (DATA[:40], ALTERNATING), start=params)
    still = short(flow, (DATA[:40], ALTERNATING), start=params, optimizer=optax.sgd(0.0), ema_decay=0.0)
    # it begins where the other ended, and not at the average of anything else
    jax.tree.map(np.testing.assert_array_equal, still.network, params.network)


def test_samples_under_jit_and_vmap(conditioned):
    flow, params = conditioned
    keys = jax.random.split(jax.random.key(1), 2)
    draw = lambda key, params: sample(key, flow, params, 2, jnp.eye(2))
    alone, compiled = draw(keys[1], params), jax.jit(draw)(keys[1], params)
    many = jax.vmap(lambda key: draw(key, params))(keys)
    np.testing.assert_allclose(compiled, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many[1], alone, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(many[0] - many[1]).max()) > 0.1


@pytest.mark.parametrize("method", METHODS.values())
def test_under_the_settings_that_find_mistakes(method):
    """(wrong before 0.2)"""
    settings = {"jax_debug_nans": True, "jax_debug_infs": True, "jax_numpy_rank_promotion": "raise"}
    before = {name: getattr(jax.config, name) for name in settings}
    flow = method(TimeMLP((7,)), batch_size=8)
    few = {} if flow.flow_map else {"num_steps": 2}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        params, _ = fit(jax.random.key(0), flow, DATA[:40], num_steps=200)
        samples = drawn(flow, params, 3, **few)
        with jax.check_tracer_leaks():
            again = drawn(flow, params, 4, **few)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert samples.shape == (3, 2)
    assert again.shape == (4, 2)


def test_the_source_of_reference_points_is_that_of_the_paths():
    """Paths from N(0, 3^2): the target is the exact velocity from that source, at the points where the network is asked."""
    flow = empirical_flow_matching(NET, 40, sharing="per_sample", std_0=3.0, batch_size=16)
    path, _ = flow.learner.sample(jax.random.key(2), flow_data(DATA[:40], std_0=3.0))
    exact = jax.vmap(closed_form_velocity(DATA[:40], source=(0.0, 3.0)))(path.t, path.x_t)
    np.testing.assert_allclose(path.dx_t, exact, rtol=1e-3, atol=1e-3)
    assert 2 < float(path.x_0.std()) < 4


def test_what_is_drawn_for_a_batch_is_drawn_apart():
    """Times, sources and targets of one batch: each joint law is that of independent ones."""
    cond = jnp.concatenate([DATA, DATA[:, :1] > 1], axis=1).astype(jnp.float32)
    learner = flow_matching(NET, batch_size=4096).learner
    path, of_batch = learner.sample(jax.random.key(0), flow_data((DATA, cond), std_0=1.0))
    np.testing.assert_array_equal(of_batch[:, :2], path.x_1)  # a condition stays with its target
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
    wrong = {"num_steps": (0, 2.5), "learning_rate": (0.0,), "ema_decay": (1,)}
    for method in METHODS.values():
        for name, values in wrong.items():
            for value in values:
                with pytest.raises(ValueError, match=f"{name}: expected"):
                    fit(jax.random.key(0), method(NET), DATA, **{name: value})
        with pytest.raises(ValueError, match="batch_size: expected"):
            method(NET, batch_size=-1)
        with pytest.raises(TypeError, match="num_steps"):
            method(NET, num_steps=3)


@pytest.mark.usefixtures("unchecked")
def test_integer_points_have_a_likelihood():
    """(wrong before 0.2)"""
    found = log_likelihood(ORACLE.velocity, np.array([1, 0]), normal_log_density)
    assert float(found) == pytest.approx(float(normal_log_density(jnp.array([1.0, 0.0]), MEAN, STD)), rel=1e-2)
    with pytest.raises(ValueError, match=r"x_1: expected one point \[dim\], got shape \(2, 2\)"):
        log_likelihood(ORACLE.velocity, jnp.zeros((2, 2)), normal_log_density)


@pytest.mark.parametrize("method", METHODS.values())
def test_samples_inside_shard_map(method):
    """Each device makes its part; diffrax's own buffers want `check_vma=False`, jumps do not."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split, flow = jax.sharding.PartitionSpec("d"), method(TimeMLP((8,)), batch_size=16)
    params = short(flow)
    part = lambda x: sample(None, flow, params, x_0=x)
    options = {} if flow.flow_map else {"check_vma": False}
    found = jax.shard_map(part, mesh=mesh, in_specs=split, out_specs=split, **options)(DATA[:4])
    np.testing.assert_allclose(found, part(DATA[:4]), rtol=1e-5, atol=1e-6)
