"""The learned fields: fitted several times, calibrated on the validation runs, and asked about the runs that are held out."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gfm.evaluate import Cohort, gated, loss_on
from experiments.gfm.exam import Exam, Ledger, enter, fit_keys, progress
from gfm_jax.base import Forecaster
from gfm_jax.forecasting import Windows, forecast_windows, gradient_flow_matching
from gfm_jax.forecasting.gate import line_search
from gfm_jax.forecasting.gradient_flow_matching import calibrate
from gfm_jax.forecasting.intervals import UNIT
from gfm_jax.forecasting.recipe import Recipe

__all__ = ["Fitted", "learn_flow_maps", "learn_velocities"]

SHARES = (0.6, 1.0, 1.5, 2.2, 3.2)  # of the way to the forecast: with persistence and two averages 8 candidates
GATED_ROWS = ("persistence", "lawa", "lawa_quarter")


class Fitted(NamedTuple):
    """The recipe and the parameters of a fitted field."""

    recipe: Recipe
    params: object


def learn_velocities(exam: Exam) -> Ledger:
    """Fits a velocity, and a velocity with the flow map that it makes, `fit_seeds` times each, and scores them on the cohorts
    held out."""
    config, ledger = exam.config, Ledger({}, {}, {})
    for objective in ("velocity", "self_distilled"):
        # They are learned in a third of the steps of a flow map.
        forecaster = gradient_flow_matching(objective, **_size(config) | {"num_steps": config.field_steps // 3})
        for seed, key in enumerate(fit_keys(config)):
            _learn(exam, ledger, f"gfm_{objective}", forecaster, seed, key)
    return ledger


def learn_flow_maps(exam: Exam, simple: Ledger) -> tuple[Ledger, Fitted]:
    """Fits a flow map, in weight space and on in function space, `fit_seeds` times, scores both and their gate on the cohorts
    held out, and returns the last one in weight space.

    `simple` holds the forecasts among which the gate may choose besides; it looks at images that were held out of training.
    """
    config, ledger = exam.config, Ledger({}, {}, {})
    in_weight_space = gradient_flow_matching("flow_map", **_size(config))
    in_function_space = gradient_flow_matching("function_space", function_steps=config.function_steps, **_size(config))
    gates = [loss_on(group.task, "validation") for group in exam.groups]
    for seed, key in enumerate(fit_keys(config)):
        start, flow_map = _learn(exam, ledger, "gfm_flow_map", in_weight_space, seed, key)
        _learn(exam, ledger, "gfm_function_space", in_function_space, seed, key, start)
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


def _size(config):
    return {"num_steps": config.field_steps, "batch_size": config.batch_rows}


def _learn(exam, ledger, row, forecaster: Forecaster, seed, key, start=None):
    """One fit: its parameters, and those with intervals; its forecasts go into the ledger."""
    recipe, lessons = forecaster.fit.args[0], exam.lessons
    windows = lessons.windows if start is None else lessons.whole
    params = forecaster.fit(key, windows, lessons.losses, start=start, **progress(exam, row, seed))
    calibrated, forecasts = _calibrated(recipe, params, exam.groups, exam.asked)
    for prefix, of_groups in forecasts.items():
        enter(ledger, exam, row, prefix, of_groups)
    windows, as_compiled = exam.asked[exam.config.prefixes[-1]][-1], params._replace(half_width=UNIT)
    forecast = functools.partial(forecast_windows, recipe, as_compiled, windows)
    ledger.stopwatches[row] = _stopwatch(forecast, len(windows.run))
    return params, Fitted(recipe, calibrated)


def _calibrated(recipe, params, groups: list[Cohort], asked: dict[float, list[Windows]]):
    """Intervals from the validation runs, in every cell of optimizer, learning rate and prefix; and all forecasts."""
    windows, rows, labels = [], [], []
    for prefix, parts in asked.items():
        for group, part in zip(groups, parts, strict=True):
            chosen = [i for i, spec in enumerate(group.specs) if spec.split == "validation"]
            windows.append(part)
            rows.append(np.array(chosen, int))
            labels.append([(prefix, group.specs[i].optimizer, group.specs[i].peak_rate) for i in chosen])
    params, forecasts = calibrate(recipe, params, windows, rows, labels)
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
