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
from gfm_jax.methods import forecast_windows, gradient_flow_matching
from gfm_jax.methods.gate import line_search
from gfm_jax.methods.gradient_flow_matching import calibrate
from gfm_jax.methods.gradient_flow_recipe import Recipe
from gfm_jax.methods.intervals import UNIT
from gfm_jax.trajectories import Windows

__all__ = ["Fitted", "learn_fields"]

SHARES = (0.6, 1.0, 1.5, 2.2, 3.2)  # of the way to the forecast: with persistence and two averages 8 candidates
GATED_ROWS = ("persistence", "lawa", "lawa_quarter")


class Fitted(NamedTuple):
    """The recipe and the parameters of a fitted field."""

    recipe: Recipe
    params: object


def learn_fields(exam: Exam, simple: Ledger) -> tuple[Ledger, Fitted]:
    """Fits every field `fit_seeds` times, scores it on the cohorts held out, and returns the last flow map.

    `simple` holds the forecasts among which the gate may choose besides; it looks at images that were held out of training.
    """
    config, ledger, fields = exam.config, Ledger({}, {}, {}), _fields(exam.config)
    gates = [loss_on(group.task, "validation") for group in exam.groups]
    flow_map = None
    for seed, key in enumerate(fit_keys(config)):
        for row, forecaster in fields.items():
            start = flow_map if row == "gfm_function_space" else None
            params = forecaster.fit(key, exam.windows, exam.losses, start=start, **progress(exam, row, seed))
            flow_map = params if row == "gfm_flow_map" else flow_map
            params, forecasts = _calibrated(forecaster, params, exam.groups, exam.asked)
            windows, recipe = exam.asked[config.prefixes[-1]][-1], forecaster.fit.args[0]
            as_compiled = params._replace(half_width=UNIT)  # as it was called for the calibration
            forecast = functools.partial(forecast_windows, recipe, as_compiled, windows)
            ledger.stopwatches[row] = _stopwatch(forecast, len(windows.run))
            for prefix, of_groups in forecasts.items():
                enter(ledger, exam, row, prefix, of_groups)
            if row == "gfm_flow_map":
                last = Fitted(recipe, params)
        for prefix in config.prefixes:
            best = ledger.forecasts["gfm_function_space", prefix]
            others = [[simple.forecasts[row, prefix][i].weights for row in GATED_ROWS] for i in range(len(best))]
            candidates = [_candidates(known, f.weights) for known, f in zip(others, best, strict=True)]
            chosen = [gated(loss, options) for loss, options in zip(gates, candidates, strict=True)]
            enter(ledger, exam, "gfm_gated", prefix, chosen, forwards=candidates[0].shape[1])
        with_gate = lambda forecast=forecast, options=candidates[-1]: (forecast(), gated(gates[-1], options))
        ledger.stopwatches["gfm_gated"] = _stopwatch(with_gate, len(candidates[-1]))
    return ledger, last


def _fields(config) -> dict[str, Forecaster]:
    size = {"num_steps": config.field_steps, "batch_size": config.batch_rows}
    return {  # a velocity is learned in a third of the steps
        "gfm_velocity": gradient_flow_matching("velocity", **size | {"num_steps": config.field_steps // 3}),
        "gfm_flow_map": gradient_flow_matching("flow_map", **size),
        "gfm_function_space": gradient_flow_matching("function_space", function_steps=config.function_steps, **size),
    }


def _calibrated(forecaster, params, groups: list[Cohort], asked: dict[float, list[Windows]]):
    """Intervals from the validation runs, in every cell of optimizer, learning rate and prefix; and all forecasts."""
    windows, rows, labels = [], [], []
    for prefix, parts in asked.items():
        for group, part in zip(groups, parts, strict=True):
            chosen = [i for i, spec in enumerate(group.specs) if spec.split == "validation"]
            windows.append(part)
            rows.append(np.array(chosen, int))
            labels.append([(prefix, group.specs[i].optimizer, group.specs[i].peak_rate) for i in chosen])
    params, forecasts = calibrate(forecaster.fit.args[0], params, windows, rows, labels)
    num = len(groups)
    return params, {prefix: forecasts[i * num : (i + 1) * num] for i, prefix in enumerate(asked)}


def _stopwatch(forecast: Callable, num_runs: int) -> Callable[[], float]:
    """Seconds of one run's forecast once its context is there, from a call for a whole cohort."""

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
