"""Intervals: calibrated on runs that were not fitted to, they cover what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import put

from gfm_jax.base import Trajectory
from gfm_jax.fitting import fit
from gfm_jax.forecasting import calibrate, cut, flow_map, forecast_windows, gradient_flow_matching, self_distilled
from gfm_jax.forecasting.calibration import calibrate_windows
from gfm_jax.forecasting.intervals import UNIT, conformal
from gfm_jax.pytrees import layout_of

SAVES, DIM = 21, 64


def random_walks(key, num_runs, spread=1.0):
    """Weights whose steps are Gaussian: what comes after the prefix is known to be Gaussian around its last save."""
    steps = spread * jax.random.normal(key, (num_runs, SAVES - 1, DIM))
    weights = np.concatenate([np.zeros((num_runs, 1, DIM), np.float32), np.cumsum(steps, 1)], 1)
    clock = np.broadcast_to(np.arange(SAVES), (num_runs, SAVES))
    return Trajectory(clock, np.float32(0.1) * clock, weights, layout=layout_of({"w": np.zeros(DIM)}))


@functools.cache
def walker():
    forecaster = flow_map(batch_size=256, widths=(32,), feature_dropout=())
    keys = jax.random.split(jax.random.key(0), 3)
    params, _ = fit(keys[0], forecaster, [random_walks(keys[1], 64)], num_steps=600)
    return params, random_walks(keys[2], 64)


def coverage(params, windows):
    forecast, end = forecast_windows(params, windows), windows.weights[windows.run, -1]
    return float(jnp.mean((forecast.lower <= end) & (end <= forecast.upper)))


@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_covers_a_known_gaussian(fraction):
    params, runs = walker()
    windows = cut(runs, (0.5,))
    calibrated, (forecast,) = calibrate_windows(params, [windows], [np.arange(64)], coverage=fraction)
    np.testing.assert_allclose(forecast.upper, forecast_windows(calibrated, windows).upper, rtol=1e-5, atol=1e-5)
    of_runs = calibrate(params, runs, fractions=(0.5,), coverage=fraction)
    jax.tree.map(np.testing.assert_array_equal, of_runs, calibrated)
    fresh = cut(random_walks(jax.random.key(9), 128), (0.5,))
    assert abs(coverage(calibrated, fresh) - fraction) < 0.03
    # The steps are independent: the best forecast is the last save, and its error sqrt(10) times a step, known exactly.
    forecast = forecast_windows(calibrated, fresh)
    quantile = {0.5: 0.6745, 0.9: 1.6449}[fraction]
    half_width = float(jnp.mean(forecast.upper - forecast.weights))
    assert abs(half_width / (quantile * np.sqrt(10.0)) - 1) < 0.15


@pytest.mark.parametrize("method", [flow_map, gradient_flow_matching, self_distilled])
def test_a_field_learns_how_far_off_it_will_be(method):
    """Of a random walk m steps ahead the expected error is sqrt(2 m / pi) steps: no forecast can do better."""
    forecaster = method(batch_size=1024, widths=(32,), feature_dropout=())
    params, _ = fit(jax.random.key(0), forecaster, [random_walks(jax.random.key(1), 64)], num_steps=600)
    for fraction, ahead in ((0.25, 15), (0.75, 5)):
        windows = cut(random_walks(jax.random.key(2), 64), (fraction,))
        forecast = forecast_windows(params._replace(half_width=UNIT), windows)
        expected = float(jnp.mean(forecast.upper - forecast.weights))
        # Untrained it would be the scale: 1.5 and 2.5, where 3.1 and 1.8 are right.
        assert expected == pytest.approx(np.sqrt(2 * ahead / np.pi), rel=0.25)


def test_covers_the_worst_group():
    params, _ = walker()
    # The second half of every run is rougher than its first in one group only: its errors are larger than foretold.
    calm, rough = random_walks(jax.random.key(3), 40), random_walks(jax.random.key(4), 40)
    after = jnp.where(jnp.arange(SAVES)[:, None] > 10, 3.0, 1.0)
    last = rough.weights[:, 10:11]
    rough = rough._replace(weights=jnp.where(after > 1, last + 3 * (rough.weights - last), rough.weights))
    windows = [cut(runs, (0.5,)) for runs in (calm, rough)]
    rows, labels = [np.arange(40)] * 2, [["calm"] * 40, ["rough"] * 40]
    pooled, _ = calibrate_windows(params, windows, rows)
    grouped, _ = calibrate_windows(params, windows, rows, labels)
    assert coverage(pooled, windows[1]) < 0.87
    assert abs(coverage(grouped, windows[1]) - 0.9) < 0.01
    assert coverage(grouped, windows[0]) > 0.97


def test_a_width_for_every_horizon():
    """What was foretold too well at one prefix does not widen the intervals of another; between them they are on a line."""
    params, _ = walker()
    runs = random_walks(jax.random.key(5), 64)
    near = runs._replace(
        weights=put(
            runs.weights, np.s_[:, 17:], runs.weights[:, 16:17] + 4 * (runs.weights[:, 17:] - runs.weights[:, 16:17])
        )
    )
    windows = [cut(runs, (0.5,)), cut(near, (0.8,))]
    calibrated, _ = calibrate_windows(params, windows, [np.arange(64)] * 2)
    np.testing.assert_allclose(calibrated.half_width.ahead, [np.log(20 / 16), np.log(20 / 10)], rtol=1e-5)
    for part in windows:
        assert abs(coverage(calibrated, part) - 0.9 * 65 / 64) < 0.002
    early = cut(random_walks(jax.random.key(6), 128), (0.5,))
    assert abs(coverage(calibrated, early) - 0.9) < 0.03
    middle = cut(runs, (0.65,))
    unit = calibrated._replace(half_width=calibrated.half_width._replace(value=jnp.ones(2)))
    widths = [np.asarray(f.upper - f.weights) for f in (forecast_windows(p, middle) for p in (calibrated, unit))]
    expected = np.interp(np.log(20 / 13), *calibrated.half_width)
    np.testing.assert_allclose(widths[0] / widths[1], expected, rtol=1e-3)


def errors_of_runs(rng, num_runs, num_weights=50):
    """Of every run all errors are of one size, which differs from run to run by far."""
    return rng.lognormal(0.0, 1.0, (num_runs, 1)) * np.abs(rng.standard_normal((num_runs, num_weights)))


@pytest.mark.parametrize("num_runs", [9, 14])
def test_covers_new_runs_at_the_probability_asked_for(num_runs):
    """Over calibrations and new runs, between coverage and coverage + 1/(K + 1); the quantile of all weights covers less."""
    rng = np.random.default_rng(0)
    covered, pooled = [], []
    for _ in range(1500):
        errors, fresh = errors_of_runs(rng, num_runs), errors_of_runs(rng, 20)
        covered.append(np.mean(fresh <= np.asarray(conformal(list(errors), [0.7] * num_runs, range(num_runs)).value)))
        pooled.append(np.mean(fresh <= np.quantile(errors, 0.9)))
    error = np.std(covered) / np.sqrt(len(covered))
    assert 0.9 - 3 * error < np.mean(covered) < 0.9 + 1 / (num_runs + 1) + 3 * error
    assert np.mean(pooled) < 0.89


def test_every_run_counts_once():
    """However many weights it has, and at however many moments it was cut."""
    small, large = [np.linspace(0, 1, 10)] * 10, [np.full(1000, 9.0)]
    value = float(conformal(small + large, [0.7] * 11, range(11), coverage=0.8).value[0])
    assert value == 1.0  # .8 * 12/11 = .873 of the mass, of which the ten runs have .909
    once = conformal(small + large, [0.7] * 11, range(11), coverage=0.5)
    twice = conformal([*small, *large, *large], [0.7] * 12, [*range(11), 10], coverage=0.5)
    np.testing.assert_array_equal(once.value, twice.value)


def test_horizons_with_few_runs_go_together():
    errors = np.abs(np.random.default_rng(0).standard_normal((12, 40)))
    apart = conformal(list(errors), [0.2] * 6 + [0.3] * 4 + [0.9] * 2, range(12))
    np.testing.assert_allclose(apart.ahead, [(0.2 * 6 + 0.3 * 4 + 0.9 * 2) / 12], rtol=1e-6)
    np.testing.assert_array_equal(apart.value, conformal(list(errors), [0.5] * 12, range(12)).value)


@pytest.mark.usefixtures("unchecked")
def test_bad_calibrations():
    errors = np.ones((5, 3))
    with pytest.raises(ValueError, match="coverage: expected a fraction"):
        conformal(list(errors), [0.7] * 5, range(5), coverage=90)
    with pytest.raises(
        ValueError, match=r"at least 9 to cover 0.9 of a new one, or a coverage of at most 0.833, got 5"
    ):
        conformal(list(errors), [0.7] * 5, range(5))
    with pytest.raises(ValueError, match=r"at least 9 .*, got 0"):
        conformal([], [], [])
    with pytest.raises(ValueError, match="of the forecasts 4"):
        conformal([*errors[:4], np.array([np.nan])], [0.7] * 5, range(5), coverage=0.5)
