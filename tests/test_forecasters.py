"""The contract that every forecaster keeps, and what each is exact for."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import LAYOUT, draw_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import batch_of, put, run_of, small_runs

import gfm_jax as gfm
from gfm_jax.base import Forecaster
from gfm_jax.fit_program import take_steps
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.forecasting import (
    FieldKind,
    baselines,
    cut,
    flow_map,
    function_space,
    gradient_flow_matching,
    horizon_at,
    init_field,
    nowcast,
    observe,
    prefix_of,
    self_distilled,
)
from gfm_jax.forecasting.nowcast import past_saves
from gfm_jax.forecasting.objectives import Draws, draw_moves, lagrangian_residual


def mean_square(weights):
    return jnp.mean(weights**2)


FIELD = {"widths": (8,), "fractions": (0.3, 0.5), "losses": mean_square}
LEARNED = {
    "introspection": nowcast.introspection(batch_size=64),
    "wnn": nowcast.wnn(batch_size=64),
    "lstm": nowcast.lstm(batch_size=64),
    "transformer": nowcast.transformer(batch_size=64),
    "velocity": gradient_flow_matching(batch_size=64, **FIELD),
    "flow_map": flow_map(batch_size=64, **FIELD),
    "self_distilled": self_distilled(batch_size=64, **FIELD),
    "flow_map_tensor": flow_map(head="tensor", batch_size=64, **FIELD),
    "function_space": function_space(**FIELD),
}
FORECASTERS = {
    "persistence": baselines.persistence(),
    "lawa": baselines.lawa(),
    "lawa_half_log": baselines.lawa_half_log(),
    "linear": baselines.linear(),
    "log_time": baselines.log_time(),
    "log_time_steps": baselines.log_time("step"),
    "sqrt_time": baselines.sqrt_time(),
    "exponential": baselines.exponential(),
    "rank1": baselines.rank1(),
    "dmd": baselines.dmd(),
    "lfd2": baselines.lfd2(every=1),
}
FORECASTERS |= {name: with_defaults(forecaster, num_steps=20) for name, forecaster in LEARNED.items()}


@functools.cache
def fitted(name):
    start = fitted("flow_map") if name == "function_space" else None
    return fit(jax.random.key(0), FORECASTERS[name], [small_runs()], start=start)[0]


@pytest.fixture
def run():
    return jax.tree.map(lambda leaf: leaf[0], small_runs())


@pytest.mark.parametrize("name", FORECASTERS)
def test_contract(name, run):
    forecaster, params = FORECASTERS[name], fitted(name)
    assert isinstance(forecaster, Forecaster)
    prefix, horizon = prefix_of(run, 10), horizon_at(run, -1)
    forecast = forecaster.forecast(params, prefix, horizon)
    assert forecast.weights.shape == run.weights.shape[-1:]
    assert bool(jnp.isfinite(forecast.weights).all())
    # bad input; under jit and vmap, and of weights alone: test_forecasts_are_finite_and_one
    with pytest.raises(ValueError, match="one snapshot"):
        forecaster.forecast(params, prefix_of(run, 0), horizon)
    with pytest.raises(ValueError, match="horizon"):
        forecaster.forecast(params, prefix, horizon_at(run, 10))
    with pytest.raises(ValueError, match="finite"):
        forecaster.forecast(params, prefix._replace(weights=put(prefix.weights, (0, 0), jnp.inf)), horizon)


@pytest.mark.parametrize("name", FORECASTERS)
def test_other_architecture(name):
    """Fitted on one network, used on another."""
    other = jax.tree.map(lambda leaf: leaf[0], small_runs(optax.sgd, (6, 5, 3)))
    forecast = FORECASTERS[name].forecast(fitted(name), prefix_of(other, 10), horizon_at(other, -1))
    assert forecast.weights.shape == other.weights.shape[-1:]
    assert bool(jnp.isfinite(forecast.weights).all())


def path(values, rate=0.1):
    """A run of one tensor whose weights are `values` of the saves, in two different proportions."""
    return run_of(np.stack([values, -2.0 * np.asarray(values)], axis=-1).astype(np.float32), rate=rate)


def end_of(name, run, last):
    return FORECASTERS[name].forecast((), prefix_of(run, last), horizon_at(run, -1)).weights


STEPS = np.arange(41.0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("linear", 3 + 0.5 * STEPS),
        ("rank1", 3 + 0.5 * STEPS),
        ("dmd", 3 + 0.5 * STEPS),
        ("log_time", np.log(np.maximum(STEPS, 1))),
        ("log_time_steps", np.log(np.maximum(STEPS, 1))),
        ("sqrt_time", np.sqrt(STEPS)),
        ("exponential", 2 - 0.9**STEPS),
        ("dmd", 2 - 0.9**STEPS),
    ],
)
def test_exact_for_its_own_law(name, values):
    run = path(values)
    np.testing.assert_allclose(end_of(name, run, 20), run.weights[-1], rtol=2e-3, atol=2e-3)


def test_dmd_follows_a_spiral_in():
    """Two coupled modes: exact for dynamic mode decomposition, out of reach of one exponential a mode."""
    spiral = np.array([[0.9, 0.2], [-0.2, 0.9]])
    points = [np.array([1.0, 0.0])]
    for _ in range(40):
        points.append(spiral @ points[-1])
    run = run_of(np.array(points, np.float32))
    end = baselines.dmd(rank=2).forecast((), prefix_of(run, 20), horizon_at(run, -1)).weights
    np.testing.assert_allclose(end, run.weights[-1], atol=1e-2)


def test_dmd_never_expands():
    run = path(1.2**STEPS)
    persistence = np.abs(np.asarray(run.weights[-1] - run.weights[20]))
    ahead = np.abs(np.asarray(end_of("dmd", run, 20) - run.weights[20]))
    assert (ahead < persistence).all()  # straight on at most, instead of e-folding every five steps


def test_lawa_is_the_mean_of_the_last_five():
    run = path(np.sin(STEPS))
    np.testing.assert_allclose(end_of("lawa", run, 20), run.weights[16:21].mean(0), atol=1e-6)
    quarter = baselines.lawa(1 / 4).forecast((), prefix_of(run, 19), horizon_at(run, -1)).weights
    np.testing.assert_allclose(quarter, run.weights[15:20].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="num_last"):
        baselines.lawa(0)


def test_persistence_is_the_last_save():
    run = path(np.sin(STEPS))
    np.testing.assert_array_equal(end_of("persistence", run, 20), run.weights[20])


def test_lfd2_finds_the_map():
    """Runs that obey w_m = w_n + a (w_n - w_0) + b w_n for a = .4, b = -.2, observed at one half."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 21, 30)).astype(np.float32)
    weights[:, -1] = weights[:, 10] + 0.4 * (weights[:, 10] - weights[:, 0]) - 0.2 * weights[:, 10]
    runs = batch_of(map(run_of, weights))
    params, _ = fit(jax.random.key(0), baselines.lfd2((0.5,), every=1), [runs])
    np.testing.assert_allclose(params[0], [0.4, -0.2], atol=0.02)


def test_a_past_is_seen_at_even_shares_of_its_steps():
    even, log = 10.0 * np.arange(81), np.array([0.0, 1, 2, 4, 8, 16, 32, 64])
    expected = [2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40]  # 2.5 is as near to 2 as to 3
    assert past_saves(jnp.array(even), 40, 16).tolist() == expected
    assert past_saves(jnp.array(log), 6, 4).tolist() == [4, 5, 5, 6]  # steps 8, 16, 24, 32


def test_jumps_are_learned_from_velocities():
    """Weights that move as log(time), from adjacent saves alone: no jump of the path is shown to a self-distilled map.

    In the flow's clock that is no straight line; a map whose velocity is off by the ratio of the clocks would err by .25.
    """
    rng = np.random.default_rng(0)
    time = 0.1 * np.maximum(np.arange(41.0), 1)[:, None]
    weights = rng.normal(size=(64, 1, 20)) + rng.normal(size=(64, 1, 20)) * np.log(time)
    runs = batch_of(map(run_of, weights.astype(np.float32)))
    seen, unseen = (jax.tree.map(lambda leaf, part=part: leaf[part], runs) for part in (slice(0, 48), slice(48, 64)))
    forecaster = self_distilled(batch_size=256, widths=(32,), feature_dropout=())
    params, _ = fit(jax.random.key(0), forecaster, [seen], num_steps=400)
    forecast = forecaster.forecast(params, prefix_of(unseen, 8), horizon_at(unseen, -1)).weights
    error = forecast - unseen.weights[:, -1]
    moved = unseen.weights[:, 8] - unseen.weights[:, -1]
    assert float((error**2).sum() / (moved**2).sum()) < 0.02


@pytest.mark.parametrize(("pull", "push"), [(0.0, 0.7), (0.7, 0.0)])
def test_lagrangian_residual_of_a_known_field(pull, push):
    """v_{s,t} = a leaves none; of v_{s,t}(x) = k x, X moves on with k x where the velocity is k X: -k^2 (t - s) x is left."""
    step = draw_moves(Draws(64, 0.75, 0.5), jax.random.key(0), [cut(small_runs(), (0.3,))])[0]
    field = init_field(jax.random.key(1), FieldKind("coordinate"), (8,), step)
    bias = field.network["params"]["output"]["bias"]
    field.network["params"]["output"]["bias"] = bias.at[0].set(pull).at[-2].set(push)
    slope = jax.tree.map(jnp.ones_like, step.t)
    step = step._replace(x_s=jnp.full_like(step.x_s, 2.0))
    residual = jax.jit(jax.vmap(functools.partial(lagrangian_residual, field)))(step, slope)
    elapsed = step.now.time / step.s.time - step.now.time / step.t.time  # t - s in the flow's clock
    np.testing.assert_allclose(residual, -(pull**2) * elapsed * 2.0 * step.now.time / step.t.time, rtol=1e-4, atol=1e-6)


def test_an_untrained_field_stands_still(run):
    """The last layer starts at zero: persistence."""
    for name in ("flow_map", "velocity", "self_distilled"):
        params = fitted(name)
        output = jax.tree.map(np.zeros_like, params.network["params"]["output"])
        still = params._replace(network={"params": params.network["params"] | {"output": output}})
        forecast = FORECASTERS[name].forecast(still, prefix_of(run, 10), horizon_at(run, -1))
        np.testing.assert_allclose(forecast.weights, run.weights[10], atol=1e-6)
    step = draw_moves(Draws(2048, 0.75, 0.5), jax.random.key(0), [cut(small_runs(), (0.3,))])[0]
    started = init_field(jax.random.key(1), FieldKind("coordinate"), (8,), step).network["params"]["output"]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(started))


def test_without_layout_only_a_fitted_size_is_accepted(run):
    params, forecaster = fitted("flow_map"), FORECASTERS["flow_map"]
    prefix, horizon = prefix_of(run, 10), horizon_at(run, -1)
    known = forecaster.forecast(params, prefix._replace(layout=None), horizon).weights
    np.testing.assert_allclose(known, forecaster.forecast(params, prefix, horizon).weights)
    short = prefix._replace(layout=None, **{"weights": prefix.weights[:, :-1], "mean_weights": None})
    short = short._replace(gradient=None, state=None)
    with pytest.raises(ValueError, match="no layout"):
        forecaster.forecast(params, short, horizon)
    assert jnp.isfinite(
        baselines.dmd().forecast((), short, horizon).weights
    ).all()  # what was fitted to no run takes any


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: baselines.exponential(0), "rank: expected at least 1, got 0"),
        (lambda: baselines.dmd(0), "rank: expected at least 1, got 0"),
        (lambda: baselines.dmd(start=1), r"start: expected a fraction of the prefix in \[0, 1\), got 1"),
        (lambda: baselines.lawa_half_log(0), "num_last: expected a number of saves"),
        (lambda: baselines.log_time("hours"), "clock: expected 'time' or 'step', got 'hours'"),
    ],
)
def test_choices_of_baselines_are_checked_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: flow_map(head="neuron"), "head: expected 'coordinate' or 'tensor', got 'neuron'"),
        (lambda: fit(jax.random.key(0), function_space(), [small_runs()]), "losses: expected one for each batch"),
        (
            lambda: baselines.linear("hours").forecast((), prefix_of(first_run(), 10), horizon_at(first_run(), -1)),
            "clock",
        ),
    ],
)
def test_bad_choices(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def first_run():
    return jax.tree.map(lambda leaf: leaf[0], small_runs())


# --- equal choices are one program, and are written down --------------------------------------------------------------

ANEW = {
    "velocity": lambda: gradient_flow_matching(batch_size=64, **FIELD | {"widths": [8], "losses": [mean_square]}),
    "flow_map": lambda: flow_map(batch_size=64, **FIELD | {"fractions": [0.3, 0.5]}),
    "self_distilled": lambda: self_distilled(batch_size=64, **FIELD),
    "function_space": lambda: function_space([mean_square], widths=[8], fractions=(0.3, 0.5)),
    "wnn": lambda: nowcast.wnn(batch_size=64, fractions=list(nowcast.FRACTIONS)),
}


@pytest.mark.parametrize("name", ANEW)
def test_a_second_fit_with_equal_choices_compiles_nothing(name):
    first, again = fitted(name), ANEW[name]()
    before = take_steps._cache_size()
    start = fitted("flow_map") if name == "function_space" else None
    second, _ = fit(jax.random.key(0), again, [small_runs()], num_steps=20, start=start)
    assert take_steps._cache_size() == before
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", FORECASTERS)
def test_saved_and_loaded_forecasters_forecast_the_same(name, run, tmp_path):
    forecaster, params = FORECASTERS[name], fitted(name)
    path = gfm.save(tmp_path / "forecaster.safetensors", forecaster, params)
    own = "losses" in dict(forecaster.learner.config.choices)  # no file holds a function
    again, same = gfm.load(path, forecaster if own else None)
    forecasts = [
        f.forecast(p, prefix_of(run, 10), horizon_at(run, -1)) for f, p in ((forecaster, params), (again, same))
    ]
    jax.tree.map(np.testing.assert_array_equal, *forecasts)


# --- whatever a run looks like: finite, and the same eager, mapped and jitted ------------------------------------------

ALL = ("mean_weights", "gradient", "learning_rate", "loss", "mu", "nu", "trace")
SHAPES = [(2, ()), (9, ALL)]  # saves, and what was recorded beside the weights
NUM_RUNS = 32  # of an example: 512 runs through every forecaster
EXAMPLES = settings(max_examples=8, deadline=None, derandomize=True)
ALONE = ("exponential", "rank1", "dmd")  # decompositions wait for one another's threads in one program on a CPU
GROUPS = {name: (name,) for name in ALONE} | {"others": tuple(name for name in FORECASTERS if name not in ALONE)}


@functools.cache
def programs(names):
    """Two forecasts of a batch by every forecaster: as users call it, and mapped and jitted by hand."""
    params = {name: fitted(name) for name in names}
    asked = {name: FORECASTERS[name].forecast for name in names}

    @jax.jit
    def mapped(prefix, horizon):
        one = lambda prefix, horizon: {name: asked[name](params[name], prefix, horizon).weights for name in names}
        return jax.vmap(one)(prefix, horizon)

    eager = lambda prefix, horizon: {name: asked[name](params[name], prefix, horizon).weights for name in names}
    return eager, mapped


@pytest.mark.parametrize(("num_saves", "parts"), SHAPES, ids=["2 saves", "9 saves"])
@pytest.mark.parametrize("group", GROUPS)
def test_forecasts_are_finite_and_one(group, num_saves, parts):
    """The same as users call it and mapped and jitted by hand (wrong before 0.2)."""
    eager, mapped = programs(GROUPS[group])

    @given(st.integers(0, 2**32 - 1))
    @EXAMPLES
    def check(seed):
        prefix, horizon = draw_runs(np.random.default_rng(seed), NUM_RUNS, num_saves, parts)
        first, second = eager(prefix, horizon), mapped(prefix, horizon)
        for name in GROUPS[group]:
            a, b = np.asarray(first[name]), np.asarray(second[name])
            assert np.isfinite(a).all(), f"{name}: not finite, runs {np.flatnonzero(~np.isfinite(a).all(1))}"
            # Relative to how far the run and its forecast move, and to the spacing of float32.
            origin = prefix.weights[:, -1:]
            moved = np.abs(prefix.weights - origin).max((1, 2)) + np.abs(a - origin[:, 0]).max(1)
            off = np.abs(a - b).max(1) / (moved + 1e-3 * np.abs(prefix.weights).max((1, 2)) + 1e-30)
            assert off.max() < 2e-3, f"{name}: {off.max():.2g} apart, run {off.argmax()}"

    check()


@pytest.mark.parametrize("num_saves", [2, 9])
def test_features_are_finite_and_one(num_saves):
    """(wrong before 0.2)"""
    together = jax.jit(jax.vmap(observe))

    @given(st.integers(0, 2**32 - 1))
    @EXAMPLES
    def check(seed):
        prefix, _ = draw_runs(np.random.default_rng(seed), NUM_RUNS, num_saves, ALL)
        seen = together(prefix)
        chex.assert_tree_all_finite(seen)
        one = jax.tree.map(lambda leaf: leaf[3], prefix._replace(layout=None))._replace(layout=LAYOUT)
        fourth = jax.tree.map(lambda leaf: leaf[3], seen)
        chex.assert_trees_all_close(fourth, observe(one), rtol=2e-3, atol=2e-3)

    check()
