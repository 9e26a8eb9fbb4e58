"""Batches of runs divided by run, and forecasts by a fraction or a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import small_runs

import gfm_jax as gfm
from gfm_jax.forecasting import baselines


def test_parts_of_a_batch_are_its_runs():
    runs = small_runs()
    num = len(runs.step)
    first, rest = gfm.split(runs, 3)
    assert first.layout == rest.layout == runs.layout
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), first._replace(layout=None), rest._replace(layout=None))
    for part, whole in zip(jax.tree.leaves(both), jax.tree.leaves(runs._replace(layout=None)), strict=True):
        np.testing.assert_array_equal(part, whole)
    np.testing.assert_array_equal(gfm.take(runs, -1).weights, runs.weights[-1])
    np.testing.assert_array_equal(gfm.take(runs, [2, 0]).loss, np.asarray(runs.loss)[[2, 0]])
    np.testing.assert_array_equal(gfm.take(runs, np.arange(num) % 2 == 1).step, np.asarray(runs.step)[1::2])
    assert len(gfm.split(runs, 0.5)[0].step) == num // 2
    assert len(gfm.take(runs, []).step) == 0


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_part_is_refused():
    runs = small_runs()
    for index in (len(runs.step), [0, -len(runs.step) - 1], [0.5], np.ones(3, bool)):
        with pytest.raises(ValueError, match="index: expected"):
            gfm.take(runs, index)
    for num in (0, len(runs.step), -1, 1.5, 1.0):
        with pytest.raises(ValueError, match="num: expected"):
            gfm.split(runs, num)
    with pytest.raises(ValueError, match="runs: expected a batch of runs"):
        gfm.split(gfm.take(runs, 0), 1)
    with pytest.raises(ValueError, match="runs: expected a Trajectory, got ndarray"):
        gfm.take(np.ones((3, 2)), 0)


def test_under_jit_a_run_is_taken():
    runs = small_runs()
    found = jax.jit(lambda index: gfm.take(runs, index).loss)(jnp.int32(2))
    np.testing.assert_array_equal(found, np.asarray(runs.loss)[2])


@pytest.mark.parametrize("batched", [True, False])
def test_a_forecast_by_fraction_is_that_of_a_prefix(batched):
    runs = small_runs() if batched else gfm.take(small_runs(), 0)
    forecaster, last = baselines.linear(), runs.step.shape[-1] // 2
    fraction = float(np.asarray(runs.step).reshape(-1, runs.step.shape[-1])[0, last] / np.asarray(runs.step).max())
    found = gfm.forecast(forecaster, (), runs, observed=fraction).weights
    expected = forecaster.forecast((), gfm.prefix_of(runs, last), gfm.horizon_at(runs, -1)).weights
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rates", [0.1, [0.1] * 5, np.full(5, 0.1, np.float32)])
def test_the_clock_of_a_run_is_summed_up_from_its_rates(rates):
    step, weights = np.array([0, 10, 20, 30, 40]), np.linspace(0, 1, 5)[:, None] ** 2
    run = gfm.Trajectory(step=step, weights=weights, learning_rate=rates)
    known = run._replace(time=0.1 * step)
    for method in (baselines.linear(), baselines.log_time()):
        found, expected = (gfm.forecast(method, (), one, until=80).weights for one in (run, known))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    falling = gfm.forecasting.as_run(run._replace(learning_rate=[0.5, 0.4, 0.3, 0.2, 0.1]))
    np.testing.assert_allclose(falling.time, [0, 4, 7, 9, 10], rtol=1e-6)
    late = gfm.forecasting.as_run(run._replace(step=step + 100))  # observed from step 100 on
    np.testing.assert_allclose(late.time, 0.1 * (step + 100), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_an_end_that_is_not_said_is_asked_for():
    run = gfm.Trajectory(step=[0, 1, 2], weights=np.ones((3, 1)), learning_rate=0.1)
    with pytest.raises(ValueError, match="until: expected a step beyond the last save, or a fraction `observed`"):
        gfm.forecast(baselines.linear(), (), run)
    with pytest.raises(
        ValueError, match=r"weights: expected real numbers, got object; pytrees become rows by gfm_jax\.ravel"
    ):
        gfm.forecast(baselines.linear(), (), run._replace(weights=[{"w": 1.0}] * 3), until=4)


@pytest.mark.parametrize("recorded", ["learning_rate", "time", "step"])
def test_the_clock_ahead_goes_on_at_the_last_rate(recorded):
    step, rate = np.array([0, 10, 20, 40]), np.array([0.1, 0.1, 0.2, 0.3], np.float32)
    time = np.array([0, 1, 3, 9], np.float32)
    run = gfm.Trajectory(step, None if recorded == "step" else time, np.zeros((4, 2), np.float32))
    run = run._replace(learning_rate=rate if recorded == "learning_rate" else None)
    ahead, between = gfm.horizon_at_step(run, 60), gfm.horizon_at_step(run, 30)
    if recorded == "step":
        assert (float(ahead.time), float(between.time), float(ahead.learning_rate)) == (60, 30, 1)
    else:
        np.testing.assert_allclose([ahead.time, between.time], [9 + 20 * 0.3, 6], rtol=1e-6)
        np.testing.assert_allclose([ahead.learning_rate, between.learning_rate], [0.3, 0.3], rtol=1e-6)
    assert float(gfm.horizon_at_step(run, 20).step) == 20
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), run)
    np.testing.assert_array_equal(gfm.horizon_at_step(batch, 60).time, [ahead.time] * 2)


@pytest.mark.usefixtures("unchecked")
def test_what_is_not_ahead_is_refused():
    run = gfm.take(small_runs(), 0)
    with pytest.raises(ValueError, match="horizon: expected a step beyond the last observed one"):
        gfm.forecast(baselines.linear(), (), run, until=1)
    with pytest.raises(ValueError, match="step: expected a number of updates from 0 on, got nan"):
        gfm.forecast(baselines.linear(), (), run, until=float("nan"))
    with pytest.raises(ValueError, match="observed: expected a fraction"):
        gfm.forecast(baselines.linear(), (), run, observed=1.5)
    with pytest.raises(ValueError, match=r"run\.step: expected known steps"):
        jax.jit(lambda run: gfm.forecast(baselines.linear(), (), run, observed=0.5))(run)


@pytest.mark.usefixtures("unchecked")
def test_rates_ahead_can_be_given():
    """A schedule is summed up from the last save on; a constant one is what a number is, and what is taken without one."""
    step = jnp.array([0, 10, 20])
    run = gfm.Trajectory(step=step, weights=jnp.log1p(step)[:, None] * jnp.ones(2), learning_rate=0.1)
    schedule = optax.cosine_decay_schedule(0.1, 100)
    horizon = gfm.horizon_at_step(run, 60, schedule)
    rates = [float(schedule(k)) for k in range(20, 60)]
    np.testing.assert_allclose([horizon.time, horizon.learning_rate], [2 + sum(rates), rates[-1]], rtol=1e-5)
    plain, by_number = gfm.horizon_at_step(run, 60), gfm.horizon_at_step(run, 60, 0.1)
    np.testing.assert_allclose(jax.tree.leaves(plain), jax.tree.leaves(by_number), rtol=1e-6)
    forecaster = gfm.forecasting.baselines.linear()
    fast, slow = (gfm.forecast(forecaster, (), run, until=60, learning_rate=rate).weights for rate in (0.1, 0.05))
    np.testing.assert_allclose(fast - run.weights[-1], 2 * (slow - run.weights[-1]), rtol=1e-4)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), run._replace(learning_rate=jnp.full(3, 0.1)))
    assert gfm.horizon_at_step(many, 60, schedule).time.shape == (3,)
    for arguments, message in (
        (
            {"until": 60, "learning_rate": -1.0},
            "learning_rate: expected a schedule, or a finite number from 0 on, got -1.0",
        ),
        ({"observed": 0.5, "learning_rate": 0.1}, "learning_rate: expected with `until` and without `observed`"),
        ({"until": 10, "learning_rate": 0.1}, "horizon: expected a step beyond the last observed one"),
    ):
        with pytest.raises(ValueError, match=message):
            gfm.forecast(forecaster, (), run, **arguments)
