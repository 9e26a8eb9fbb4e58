"""The learned fields: fitted several times, calibrated on the validation runs, and asked about the runs that are held out."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from experiments.gfm.evaluate import Cohort, gated, loss_on
from experiments.gfm.exam import Exam, Ledger, enter, fit_keys, progress
from experiments.run_folder import FITTED
from gfm_jax import forecasting
from gfm_jax.base import Forecaster
from gfm_jax.fitting import fit
from gfm_jax.forecasting import Windows, forecast_windows
from gfm_jax.forecasting.calibration import calibrate_windows
from gfm_jax.forecasting.gate import line_search
from gfm_jax.forecasting.intervals import UNIT
from gfm_jax.saving import save

__all__ = ["learn_flow_maps", "learn_velocities"]

SHARES = (0.6, 1.0, 1.5, 2.2, 3.2)  # of the way to the forecast: with persistence and two averages 8 candidates
GATED_ROWS = ("persistence", "lawa", "lawa_quarter")


def learn_velocities(exam: Exam) -> Ledger:
    """Fits a velocity, and a velocity with the flow map that it makes, `fit_seeds` times each, and scores them on the cohorts
    held out."""
    config, ledger = exam.config, Ledger({}, {}, {})
    methods = {"velocity": forecasting.gradient_flow_matching, "self_distilled": forecasting.self_distilled}
    for name, method in methods.items():
        make = functools.partial(method, batch_size=config.batch_rows)
        for seed, key in enumerate(fit_keys(config)):
            # They are learned in a third of the steps of a flow map.
            _learn(exam, ledger, f"gfm_{name}", make, seed, key, config.field_steps // 3)
    return ledger


def learn_flow_maps(exam: Exam, simple: Ledger) -> tuple[Ledger, PyTree]:
    """Fits a flow map, in weight space and on in function space, `fit_seeds` times, scores both and their gate on the cohorts
    held out, and returns the last one in weight space.

    `simple` holds the forecasts among which the gate may choose besides; it looks at images that were held out of training.
    """
    config, ledger = exam.config, Ledger({}, {}, {})
    in_weight_space = functools.partial(forecasting.flow_map, batch_size=config.batch_rows)
    gates = [loss_on(group.task, "validation") for group in exam.groups]
    for seed, key in enumerate(fit_keys(config)):
        steps = config.field_steps, config.function_steps
        start, flow_map = _learn(exam, ledger, "gfm_flow_map", in_weight_space, seed, key, steps[0])
        _learn(exam, ledger, "gfm_function_space", forecasting.function_space, seed, key, steps[1], start)
        for prefix in config.prefixes:
            best = ledger.forecasts["gfm_function_space", prefix]
            others = [[simple.forecasts[row, prefix][i].weights for row in GATED_ROWS] for i in range(len(best))]
            candidates = [_candidates(known, f.weights) for known, f in zip(others, best, strict=True)]
            chosen = [gated(loss, options) for loss, options in zip(gates, candidates, strict=True)]
            enter(ledger, exam, "gfm_gated", prefix, chosen, forwards=candidates[0].shape[1])
        choose = functools.partial(gated, gates[-1], candidates[-1])
        forecast, seconds = ledger.stopwatches["gfm_function_space"], _stopwatch(choose, len(candidates[-1]))
        ledger.stopwatches["gfm_gated"] = lambda forecast=forecast, seconds=seconds: forecast() + seconds()
    return ledger, flow_map


def _learn(exam, ledger, row, make: Callable[..., Forecaster], seed, key, num_steps, start=None):
    """One fit: its parameters, and those with intervals, which are kept; its forecasts go into the ledger."""
    forecaster = make(losses=exam.lessons.losses)
    windows = exam.lessons.windows if start is None else exam.lessons.whole
    params, _ = fit(key, forecaster, windows, num_steps=num_steps, start=start, **progress(exam, row, seed))
    calibrated, forecasts = _calibrated(params, exam.groups, exam.asked, exam.config.coverage)
    if not jax.process_index():
        (exam.folder.parent / FITTED).mkdir(exist_ok=True)
        save(exam.folder.parent / FITTED / f"{row}-{seed}.safetensors", make(), calibrated)
    for prefix, of_groups in forecasts.items():
        enter(ledger, exam, row, prefix, of_groups)
    windows, as_compiled = exam.asked[exam.config.prefixes[-1]][-1], params._replace(half_width=UNIT)
    forecast = functools.partial(forecast_windows, as_compiled, windows)
    ledger.stopwatches[row] = _stopwatch(forecast, len(windows.run))
    return params, calibrated


def _calibrated(params, groups: list[Cohort], asked: dict[float, list[Windows]], coverage: float):
    """Intervals from the validation runs, widened in cells of optimizer, learning rate and prefix; and all forecasts."""
    windows, rows, labels = [], [], []
    for prefix, parts in asked.items():
        for group, part in zip(groups, parts, strict=True):
            chosen = [i for i, spec in enumerate(group.specs) if spec.split == "validation"]
            windows.append(part)
            rows.append(np.array(chosen, int))
            labels.append([(prefix, group.specs[i].optimizer, group.specs[i].peak_rate) for i in chosen])
    params, forecasts = calibrate_windows(params, windows, rows, labels, coverage)
    num = len(groups)
    return params, {prefix: forecasts[i * num : (i + 1) * num] for i, prefix in enumerate(asked)}


def _stopwatch(forecast: Callable, num_runs: int) -> Callable[[], float]:
    """Seconds of one run's forecast once its features are there, from a call for a whole cohort."""

    def seconds():
        begin = time.perf_counter()
        jax.block_until_ready(forecast())
        return (time.perf_counter() - begin) / num_runs

    return seconds


@jax.jit
def _candidates(simple, best):
    """[runs, 8, dim]: persistence, averages, and points on the way to the forecast in function space."""
    on_the_way = jax.vmap(lambda a, b: line_search(a, b, SHARES), out_axes=1)(simple[0], best)
    return jnp.stack([*simple, *on_the_way], axis=1)
