"""What users hand to forecasts and fits: each case was a NaN, a wrong number, a crash or a silent loss before 0.2."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import batch_of, put, run_of, small_runs

import gfm_jax as gfm
from gfm_jax.base import Horizon, Layout
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.forecasting import (
    baselines,
    calibrate,
    check_forecast,
    cut,
    draw_pairs,
    flow_map,
    function_space,
    gradient_flow_matching,
    horizon_at,
    measure_curvature,
    nowcast,
    observe,
    prefix_of,
    self_distilled,
)
from gfm_jax.runs import linear_regression, open_recording, record, record_to_disk, save_steps

FIELD = {"batch_size": 64, "widths": (8,), "fractions": (0.3, 0.5), "feature_dropout": (("mu",),)}
METHODS = {"flow_map": flow_map, "velocity": gradient_flow_matching, "self_distilled": self_distilled}


def first(runs):
    return jax.tree.map(lambda leaf: leaf[0], runs)


@functools.cache
def field(name="flow_map"):
    """A field that was fitted for a few steps, so that its forecasts move."""
    forecaster = METHODS[name](**FIELD)
    return forecaster, short_fit(forecaster, [small_runs()])


def short_fit(forecaster, runs, **options):
    return fit(jax.random.key(0), forecaster, runs, num_steps=20, **options)[0]


def forecast(run, last, forecaster=None, params=()):
    forecaster, params = (forecaster, params) if forecaster else field()
    return forecaster.forecast(params, prefix_of(run, last), horizon_at(run, -1)).weights


def regressions(rates, saves=save_steps(64, 16), num_runs=8, optimizer=optax.sgd):  # eight: one program for all fits
    rates = np.broadcast_to(rates, (num_runs, len(rates))) if np.ndim(rates) == 1 else rates
    task = linear_regression(jax.random.key(0), dim=4, num_examples=16)
    return record(jax.random.split(jax.random.key(1), num_runs), task, optimizer, rates, saves)


# --- values that training reaches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log_time", "lawa_half_log", "field"])
def test_a_warm_up_from_zero_is_as_one_from_nearly_zero(name):
    """(wrong before 0.2)"""
    forecaster, params = field() if name == "field" else (getattr(baselines, name)(), ())
    ends = []
    for start in (0.0, 1e-4):
        rates = optax.warmup_cosine_decay_schedule(start, 0.05, 10, 64)(np.arange(64))
        run = first(regressions(rates, save_steps(64, 24, "log"), num_runs=1))
        assert (float(run.time[1]) == 0) == (start == 0)
        ends.append(np.asarray(forecast(run, 12, forecaster, params)))
    assert np.isfinite(ends[0]).all()
    np.testing.assert_allclose(ends[0], ends[1], atol=0.05)
    assert np.abs(ends[0] - np.asarray(run.weights[12])).max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_runs_whose_rate_decayed_to_zero_can_be_fitted_to(name):
    """(wrong before 0.2)"""
    rates = np.concatenate([np.linspace(0.05, 0, 32), np.zeros(32)])
    runs = regressions(rates)
    forecaster = METHODS[name](**FIELD)
    params = short_fit(forecaster, [runs])
    at_rest = forecaster.forecast(params, prefix_of(runs, 12), horizon_at(runs, -1)).weights
    np.testing.assert_array_equal(at_rest, runs.weights[:, 12])


def test_pairs_of_a_run_at_rest_have_no_weight(key):
    """(wrong before 0.2)"""
    rest = np.ones((4, 9, 3), np.float32)
    moves = rest * np.arange(9)[:, None]
    runs = batch_of(run_of(w) for w in (*rest, *moves))
    pairs = draw_pairs(key, cut(runs, (0.5,)), 64, 1.0, 1.0)
    resting = np.asarray(pairs.place[0]) < 4
    np.testing.assert_array_equal(pairs.weight[resting], 0)
    np.testing.assert_allclose(pairs.weight[~resting] * pairs.x_t[~resting] ** 2, 1, rtol=1e-5)


@pytest.mark.parametrize(
    "steps", [[0, 500], [0, 1, 10, 100], [0, 1, 3, 8, 22, 62, 173, 486], [0, 10, 20, 30, 40, 100], [7, 9, 500]]
)
def test_few_and_log_spaced_saves_are_enough(steps):
    """(wrong before 0.2)"""
    weights = np.random.default_rng(0).normal(size=(len(steps), 4)).cumsum(0)
    run = run_of(weights, step=steps, rate=0.002)
    seen = observe(run)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen))
    ahead = Horizon(*(jnp.float32(x) for x in (1361, 1361 * 0.002, 0.002)))
    forecaster, params = field()
    end = forecaster.forecast(params, run, ahead).weights
    assert np.isfinite(end).all()
    # Where the last gap is more than half of the prefix, noise is that of the last step alone: none.
    if len(steps) < 7:
        assert float(seen.tensor["noise"].squeeze()) < np.log(2e-3)


def test_an_empty_tensor_changes_nothing():
    """(wrong before 0.2)"""
    run = run_of(np.random.default_rng(0).normal(size=(9, 6)).cumsum(0))
    names, shapes = ("a/kernel", "b/kernel"), ((2, 2), (2,))
    plain = observe(run._replace(layout=Layout(names, shapes)))
    empty = observe(run._replace(layout=Layout((*names, "b/none"), (*shapes, (0, 3)))))
    for part in ("coordinate", "directions", "scale", "run"):
        chex.assert_trees_all_close(getattr(empty, part), getattr(plain, part), rtol=1e-5, atol=1e-6)
    of_two = jax.tree.map(lambda leaf: leaf[:2], empty.tensor)
    chex.assert_trees_all_close(of_two, plain.tensor, rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite(empty.tensor)


def test_a_loss_of_any_sign_orders_as_it_should():
    """(wrong before 0.2)"""
    run = run_of(np.random.default_rng(0).normal(size=(9, 4)).cumsum(0))
    falling = [np.linspace(high, low, 9) for high, low in ((3, 1), (1, -1), (-1, -3))]
    told = [float(observe(run._replace(loss=jnp.asarray(loss))).run["loss"]) for loss in falling]
    assert told == sorted(told, reverse=True)
    assert told[0] == pytest.approx(np.log(1 + 1e-6), abs=1e-5)
    assert told[2] == pytest.approx(2 * np.log(1e-6) - np.log(3 + 1e-6), rel=1e-5)


def test_clocks_do_not_depend_on_their_unit_or_their_rounding():
    """(wrong before 0.2)"""
    values = np.linspace(0, 1, 17)[:, None] * np.array([1.0, -2.0])
    tiny = run_of(values, rate=1e-9)
    np.testing.assert_allclose(forecast(tiny, 8, baselines.linear()), values[-1], rtol=1e-4)
    still = tiny._replace(time=jnp.minimum(tiny.time, tiny.time[4]))  # rates of 0 from save 4 on
    np.testing.assert_array_equal(forecast(still, 8, baselines.linear()), tiny.weights[8])
    assert np.abs(observe(still).directions["slope"]).max() == 0  # over the last half


def test_features_of_time_follow_time_and_those_of_steps_steps():
    """At rates that fall time and steps are two clocks: log(t / n) of each, by hand."""
    from gfm_jax.forecasting.field import horizon_features

    now, then = (Horizon(*map(jnp.float32, moment)) for moment in ((10, 2.0, 0.2), (30, 3.0, 0.05)))
    expected = {"log_steps": np.log(3), "log_time": np.log(1.5), "time": 0.5, "rate": 0.25, "mean_rate": (1 / 20) / 0.2}
    chex.assert_trees_all_close(horizon_features(now, then), expected, rtol=1e-5)
    zero = Horizon(*map(jnp.float32, (10, 0.0, 0.0)))  # (wrong before 0.2): all rates were 0 until now
    cut_off = {"log_steps": np.log(3), "log_time": np.log(1e6), "time": 1e6 - 1, "rate": 1e3, "mean_rate": 1e3}
    chex.assert_trees_all_close(horizon_features(zero, then), cut_off, rtol=1e-3)


def test_how_far_the_optimizer_would_carry_is_told_in_time_and_log_slopes_too():
    """One weight, saves at steps 0, 8, 12, 16 at rates that fall: features of the motion by hand."""
    step, time = np.array([0, 8, 12, 16]), np.array([0.0, 4.0, 5.0, 5.5])
    run = run_of(np.array([[0.0], [3.0], [5.0], [6.0]]), step=step)
    run = run._replace(time=jnp.asarray(time), gradient=jnp.array([[1.0], [1.0], [1.0], [2.0]]))
    seen = observe(run)
    # Descent 2 at the last rate, (5.5 - 5) / 4 a step, for 16 steps, over the way of the second half.
    assert float(seen.tensor["carried"].squeeze()) == pytest.approx(np.log(2 * 0.125 * 16 / 3 + 1e-3), abs=1e-3)
    inside = time >= 4  # the last three quarters of the steps
    slope = np.polyfit(np.log(time[inside]), np.array([0.0, 3, 5, 6])[inside], 1)[0]
    assert float((seen.directions["log_slope"] * seen.scale).squeeze()) == pytest.approx(slope, rel=1e-3)


# --- values that cannot mean anything -----------------------------------------------------------------------------------

BAD_PREFIXES = {
    "weights": (lambda run: {"weights": put(run.weights, (2, 1), jnp.inf)}, "prefix.weights: expected finite weights"),
    "huge": (lambda run: {"weights": 1e20 * run.weights}, "prefix.weights: expected the largest between 1e-08 and 1e"),
    "tiny": (lambda run: {"weights": 1e-20 * run.weights}, "prefix.weights: expected the largest between"),
    "loss": (lambda run: {"loss": put(run.loss, 1, jnp.nan)}, "prefix.loss: expected finite numbers"),
    "gradient": (lambda run: {"gradient": put(run.gradient, (1, 3), jnp.nan)}, "prefix: expected finite numbers in 'gradient'"),
    "slot": (lambda run: {"state": run.state | {"nu": put(run.state["nu"], 1, jnp.inf)}}, "finite numbers in 'nu'"),
    "rate": (lambda run: {"learning_rate": put(run.learning_rate, 0, -1.0)}, "learning_rate: expected numbers from 0"),
    "steps": (lambda run: {"step": put(run.step, 3, 0)}, "prefix.step: expected numbers from 0 on, each larger"),
    "time": (lambda run: {"time": put(run.time, 3, 0.0)}, "prefix.time: expected finite times from 0 on that never fall"),
    "shape": (lambda run: {"loss": run.loss[:-1]}, r"prefix.loss: expected shape \(11,\), as the weights have it, got \(10,\)"),
    "state": (lambda run: {"state": (1, 2)}, "prefix.state: expected a dict"),
    "masked": (lambda run: {"weights": np.ma.masked_array(run.weights, run.weights > 0)}, "got a masked array"),
    "ragged": (lambda run: {"weights": [[1.0, 2.0], [3.0]]}, "prefix.weights: .* got rows of different lengths"),
    "complex": (lambda run: {"weights": run.weights + 1j}, "prefix.weights: expected real numbers, got complex64"),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD_PREFIXES)
def test_a_bad_prefix_is_refused_alone_and_in_a_batch(name):
    """(wrong before 0.2)"""
    change, message = BAD_PREFIXES[name]
    run = first(small_runs())
    prefix, horizon = prefix_of(run, 10), horizon_at(run, -1)
    bad = prefix._replace(**change(prefix))
    forecaster, params = field()
    for ask in (forecaster, baselines.persistence(), nowcast.wnn()):
        with pytest.raises(ValueError, match=message):
            ask.forecast(params if ask is forecaster else (), bad, horizon)
    # In a batch the bad run is named; in a trace its forecast is NaN, and the others are not.
    if name not in ("shape", "state", "complex", "masked", "ragged"):
        batch = jax.tree.map(lambda a, b: jnp.stack([a, b]), prefix, bad)
        both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), horizon)
        with pytest.raises(ValueError, match=f"{message}.*runs of the batch: 1$"):
            forecaster.forecast(params, batch, both)
        mapped = jax.vmap(lambda prefix, end: baselines.persistence().forecast((), prefix, end).weights)(batch, both)
        np.testing.assert_array_equal(mapped[0], prefix.weights[-1])
        assert np.isnan(mapped[1]).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3.0}, "horizon: expected a step beyond the last observed one"),
        ({"step": jnp.nan}, "horizon: expected a step beyond"),
        ({"time": 0.0}, "horizon: expected a time that does not lie before the last observed one"),
        ({"time": jnp.nan}, "horizon: expected a time"),
        ({"learning_rate": -1.0}, "horizon: expected a learning rate from 0 on"),
        ({"time": 60.0}, "horizon: expected its time as the sum of learning rates"),  # in steps
        ({"step": jnp.ones(3)}, r"horizon.step: expected one number, got shape \(3,\)"),
    ],
)
def test_a_bad_horizon_is_refused(change, message):
    """(wrong before 0.2)"""
    run = first(small_runs())
    horizon = horizon_at(run, -1)._replace(**change)
    for forecaster, params in (field(), (baselines.log_time(), ())):
        with pytest.raises(ValueError, match=message):
            forecaster.forecast(params, prefix_of(run, 10), horizon)


def test_numbers_and_lists_do_as_well():
    """(wrong before 0.2)"""
    run = first(small_runs())
    prefix, horizon = prefix_of(run, 10), horizon_at(run, -1)
    plain = field()[0].forecast(field()[1], prefix, horizon).weights
    listed = prefix._replace(
        step=prefix.step.tolist(), time=prefix.time.tolist(), learning_rate=float(prefix.learning_rate[0])
    )
    numbers = Horizon(*(float(part) for part in horizon))
    np.testing.assert_allclose(field()[0].forecast(field()[1], listed, numbers).weights, plain, rtol=1e-4, atol=1e-5)
    bare = prefix._replace(time=None, learning_rate=None)
    in_steps = Horizon(horizon.step, horizon.step, 1.0)
    line = forecast(run_of(np.linspace(0, 1, 9)[:, None])._replace(time=None), 4, baselines.linear())
    np.testing.assert_allclose(line, 1, rtol=1e-5)
    assert np.isfinite(field()[0].forecast(field()[1], bare, in_steps).weights).all()


# --- one run and a batch of runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["persistence", "lawa", "linear", "log_time", "dmd", "field", "tensor"])
def test_a_batch_is_forecast_run_by_run(name):
    """(wrong before 0.2)"""
    if name == "tensor":
        forecaster = flow_map(head="tensor", **FIELD)
        params = short_fit(forecaster, small_runs())  # a batch that stands by itself
    else:
        forecaster, params = field() if name == "field" else (getattr(baselines, name)(), ())
    runs = small_runs()
    batch = forecaster.forecast(params, prefix_of(runs, 10), horizon_at(runs, -1)).weights
    for i in (0, 5):
        run = jax.tree.map(lambda leaf, i=i: leaf[i], runs)
        one = forecaster.forecast(params, prefix_of(run, 10), horizon_at(run, -1)).weights
        np.testing.assert_allclose(batch[i], one, rtol=1e-5, atol=1e-6)


def test_a_batch_is_no_run():
    """(wrong before 0.2)"""
    runs = small_runs()
    for ask in (observe, lambda run: measure_curvature(run, jnp.sum)):
        with pytest.raises(ValueError, match=r"run: expected one run \[saves, dim\], got \(6, 21, 39\)"):
            ask(runs)
    with pytest.raises(ValueError, match=r"runs\[0\]: expected a batch of runs"):
        fit(jax.random.key(0), baselines.lfd2(), [first(runs)])


def test_saves_count_from_the_end_as_well():
    """(wrong before 0.2)"""
    run = first(small_runs())
    np.testing.assert_array_equal(prefix_of(run, -1).weights, run.weights)
    np.testing.assert_array_equal(observe(run, -3).origin, run.weights[-3])
    np.testing.assert_array_equal(horizon_at(run, -2).step, run.step[-2])
    for call in (prefix_of, horizon_at, observe):
        with pytest.raises(ValueError, match="expected the index of one of 21 saves"):
            call(run, 21)
    with pytest.raises(ValueError, match="expected the index of one of 21 saves, 1 at least"):
        observe(run, 0)


# --- fits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["field", "wnn", "lfd2"])
def test_a_fit_leaves_out_runs_that_diverged_and_names_them(name):
    """(wrong before 0.2)"""
    rates = np.full((9, 64), 0.01)
    rates[5] = 50.0
    runs = regressions(rates, num_runs=9)
    assert not runs.finite[5]
    forecaster = {
        "field": with_defaults(flow_map(**FIELD), num_steps=20),
        "wnn": with_defaults(nowcast.wnn(batch_size=32), num_steps=5),
        "lfd2": baselines.lfd2(),
    }[name]
    with pytest.warns(UserWarning, match=r"runs\[0\]: 1 of 9 runs are not sound \(5\)"):
        params, _ = fit(jax.random.key(0), forecaster, [runs])
    good = jax.tree.map(lambda leaf: leaf[np.delete(np.arange(9), 5)], runs._replace(layout=None))
    good = good._replace(layout=runs.layout)
    expected, _ = fit(jax.random.key(0), forecaster, [good])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(params), jax.tree.leaves(expected))
    with pytest.raises(ValueError, match=r"runs\[0\].weights: expected finite weights"):
        fit(jax.random.key(0), forecaster, [jax.tree.map(lambda leaf: leaf[5:6], runs)])


def test_calibration_leaves_out_what_diverged_too():
    """(wrong before 0.2)"""
    runs = small_runs()
    bad = runs._replace(weights=put(runs.weights, (2, -1), jnp.nan))
    with pytest.warns(UserWarning, match=r"runs\[0\]: 1 of 6"):
        params = calibrate(field()[1], bad, fractions=(0.3, 0.5), coverage=0.8)
    assert np.isfinite(params.half_width.value).all()
    with pytest.raises(ValueError, match="windows of finite numbers, got others of the runs 2"):
        short_fit(field()[0], [cut(bad, (0.3,))])


def test_a_run_that_never_moved_is_fitted_to_as_well():
    """(wrong before 0.2)"""
    rates = np.full((8, 64), 0.01)
    rates[3] = 0.0
    runs = regressions(rates)
    learned = (with_defaults(method, num_steps=5) for method in (flow_map(**FIELD), nowcast.introspection()))
    for forecaster in (*learned, baselines.lfd2()):
        params, _ = fit(jax.random.key(0), forecaster, [runs])
        ends = forecaster.forecast(params, prefix_of(runs, 12), horizon_at(runs, -1)).weights
        assert np.isfinite(ends).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: short_fit(flow_map(), [], calibratoin=1), TypeError, "calibratoin"),
        (lambda: nowcast.wnn(num_stepz=5), TypeError, "num_stepz"),
        (lambda: short_fit(baselines.lfd2(), [], start=()), ValueError, "num_steps, start: expected None for a method"),
        (lambda: short_fit(flow_map(**FIELD), []), ValueError, "runs: expected one or more batches"),
        (lambda: short_fit(flow_map(**FIELD), 3), ValueError, "runs: expected one or more batches"),
        (lambda: fit(jax.random.key(0), flow_map(), [], num_steps=0), ValueError, "num_steps: expected a whole number"),
        (lambda: flow_map(widths=()), ValueError, "widths: expected those of at least one hidden layer"),
        (lambda: flow_map(widths=(0,)), ValueError, "widths: expected at least 1, got 0"),
        (lambda: gradient_flow_matching(path_noise=-1.0), ValueError, "path_noise: expected at least 0, got -1"),
        (
            lambda: gradient_flow_matching(num_solver_steps=0),
            ValueError,
            "num_solver_steps: expected at least 1, got 0",
        ),
        (lambda: function_space(num_runs=0), ValueError, "num_runs: expected at least 1, got 0"),
        (lambda: function_space(weight=-1.0), ValueError, "weight: expected at least 0, got -1"),
        (lambda: nowcast.lstm(batch_size=0), ValueError, "batch_size: expected at least 1, got 0"),
        (lambda: flow_map(batch_size=0), ValueError, "batch_size: expected at least 1, got 0"),
        (lambda: flow_map(now_probability=1.5), ValueError, r"now_probability: expected a probability in \[0, 1\]"),
        (lambda: flow_map(final_probability=-1), ValueError, r"final_probability: expected a probability in \[0, 1\]"),
        (
            lambda: cut(small_runs(), (0.5,), feature_dropout=(("gradeint",),)),
            ValueError,
            "feature_dropout: expected names among",
        ),
        (lambda: cut(small_runs(), ()), ValueError, "fractions: expected at least one"),
        (lambda: check_forecast((), ()), ValueError, "prefix: expected a Trajectory, got tuple"),
    ],
)
def test_nothing_is_swallowed(call, error, message):
    """(wrong before 0.2)"""
    with pytest.raises(error, match=message):
        call()


def test_lists_are_as_good_as_tuples():
    """(wrong before 0.2)"""
    listed = flow_map(**FIELD | {"widths": [8], "fractions": [0.3, 0.5], "feature_dropout": [["mu"]]})
    jax.tree.map(np.testing.assert_array_equal, short_fit(listed, small_runs()), field()[1])


def test_parameters_of_another_field_are_refused():
    """(wrong before 0.2)"""
    params, ends = field()[1], (prefix_of(first(small_runs()), 10), horizon_at(first(small_runs()), -1))
    for other in (flow_map(head="tensor"), gradient_flow_matching()):
        with pytest.raises(
            ValueError, match=r"params: expected those of FieldKind.*, got FieldKind\(head='coordinate', num_"
        ):
            other.forecast(params, *ends)
        with pytest.raises(ValueError, match=r"start: expected FieldKind.* of widths .*, got FieldKind"):
            short_fit(other, small_runs(), start=params)
    with pytest.raises(ValueError, match=r"start: expected .* of widths \(16, 8\), got .* of widths \(8,\)"):
        short_fit(flow_map(widths=(16, 8)), small_runs(), start=params)


@pytest.mark.parametrize("name", METHODS)
def test_a_field_is_read_as_it_was_written_and_forecasts_what_was_recorded(name, tmp_path):
    forecaster, params = field(name)
    calibrated = calibrate(params, small_runs(), fractions=(0.3, 0.5), coverage=0.8)
    again, same = gfm.load(gfm.save(tmp_path / "field.safetensors", forecaster, calibrated))
    record_to_disk(tmp_path / "runs", 6, lambda rows: gfm.take(small_runs(), rows), chunk=3, recipe={})
    opened = open_recording(tmp_path / "runs")
    ends = [
        f.forecast(p, prefix_of(runs, 10), horizon_at(runs, -1))
        for f, p, runs in ((forecaster, calibrated, small_runs()), (again, same, opened))
    ]
    assert ends[1].upper is not None
    jax.tree.map(np.testing.assert_array_equal, *ends)
    jax.tree.map(np.testing.assert_array_equal, params, short_fit(again, opened))
    alone = forecast(open_recording(tmp_path / "runs", runs=2, parts=("weights",)), 10, again, same)
    assert alone.shape == ends[0].weights[2].shape
    assert np.isfinite(alone).all()


def test_saves_at_other_fractions_are_no_batch():
    """(wrong before 0.2)"""
    runs = batch_of(run_of(np.ones((9, 3)), step=step) for step in (np.arange(9), np.arange(9) ** 2))
    with pytest.raises(ValueError, match="runs: expected saves at like fractions of all runs of a batch, got run 1"):
        cut(runs, (0.5,))


@pytest.mark.parametrize(
    "setting", [{"jax_numpy_rank_promotion": "raise"}, {"jax_debug_nans": True, "jax_debug_infs": True}]
)
def test_strict_settings_of_jax(setting):
    """Ranks that do not match are an error, or NaN and infinity are: fits and forecasts pass. (wrong before 0.2)"""
    run = run_of(np.random.default_rng(0).normal(size=(9, 4)).cumsum(0).astype(np.float32))
    before = {name: getattr(jax.config, name) for name in setting}
    try:
        for name, value in setting.items():
            jax.config.update(name, value)
        for name in ("lawa_half_log", "exponential", "rank1", "dmd"):
            assert np.isfinite(forecast(run, 6, getattr(baselines, name)())).all()
        forecaster = gradient_flow_matching(**FIELD | {"feature_dropout": (), "fractions": (0.5,)})
        params, _ = fit(jax.random.key(0), forecaster, [small_runs()], num_steps=2)
        assert np.isfinite(forecast(run, 6, forecaster, params)).all()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
