"""Every learned predictor: fitted several times to the runs to learn from, and asked about those that are held out."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gfm.evaluate import (
    Cohort,
    Judge,
    Score,
    forecast_cohort,
    gated,
    loss_on,
    observed,
    seconds_each,
)
from gfm_jax.base import Forecast, Forecaster
from gfm_jax.methods import baselines, forecast_windows, gradient_flow_matching, nowcast
from gfm_jax.methods.gate import line_search
from gfm_jax.methods.gradient_flow_matching import Recipe, calibrate
from gfm_jax.trajectories import Windows

__all__ = ["Ledger", "learn"]

SHARES = (0.6, 1.0, 1.5, 2.2, 3.2)  # of the way to the forecast: with persistence and two averages 8 candidates
SEQUENCES = ("lstm", "transformer")


class Ledger(NamedTuple):
    """What has been forecast so far: scores by (row, prefix), a list of cohorts for each fit, and the last forecasts."""

    scores: dict[tuple[str, float], list[list[Score]]]
    forecasts: dict[tuple[str, float], list[Forecast]]


class Fields(NamedTuple):
    """The recipe and the parameters of a fitted field."""

    recipe: Recipe
    params: object


def learn(config, train: list[Cohort], groups: list[Cohort], judges: list[Judge], ledger: Ledger, folder) -> Fields:
    """Fits every learned predictor `fit_seeds` times, scores it on the cohorts held out, and returns the last flow map.

    Fits leave checkpoints in `folder`, from which a run that was stopped goes on.
    """
    fields, histories = _predictors(config)
    recipe = Recipe()
    windows = [observed(group, recipe.fractions, recipe.withheld) for group in train]
    # The field in function space sees images that the runs were trained on, the gate those that were held out of training.
    losses = [loss_on(group.task, "train", slice(config.function_images)) for group in train]
    gates = [loss_on(group.task, "validation") for group in groups]
    test = {prefix: [observed(group, (prefix,)) for group in groups] for prefix in config.prefixes}

    seconds = {}
    for seed in range(config.fit_seeds):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        about = lambda row, seed=seed: {"progress": f"fit {row}, seed {seed}", "folder": folder / f"{row}-{seed}"}
        made = {}  # (row, prefix): [(forecast, cost) of every cohort]
        params = {row: f.fit(key, windows, **about(row)) for row, f in histories.items()}
        for row in histories.keys() - seconds.keys():  # timed once: the time does not hang on what was learned
            seconds[row] = seconds_each(histories[row], params[row], groups[0], config.prefixes[0])
        for prefix in config.prefixes:
            for group in groups:
                for row, forecast in forecast_cohort(histories, params, group, prefix).items():
                    made.setdefault((row, prefix), []).append((forecast, {"seconds": seconds[row]}))
        flow_map = None
        for row, forecaster in fields.items():
            start = flow_map if row == "gfm_function_space" else None
            fitted = forecaster.fit(key, windows, losses, start=start, **about(row))
            flow_map = fitted if row == "gfm_flow_map" else flow_map
            fitted, forecasts = _calibrated(forecaster, fitted, groups, test)
            cost = {"seconds": _seconds(forecaster, fitted, test[config.prefixes[-1]][-1])}
            for prefix, of_groups in forecasts.items():
                made[row, prefix] = [(forecast, cost) for forecast in of_groups]
            if row == "gfm_flow_map":
                last = Fields(forecaster.fit.args[0], fitted)
        for prefix in config.prefixes:
            made["gfm_gated", prefix] = [
                _gate(gates[i], {row: ledger.forecasts[row, prefix][i] for row in GATED_ROWS}, best)
                for i, (best, _) in enumerate(made["gfm_function_space", prefix])
            ]
        for (row, prefix), parts in made.items():
            results = [j.score(forecast, prefix, **cost) for j, (forecast, cost) in zip(judges, parts, strict=True)]
            ledger.scores.setdefault((row, prefix), []).append(results)
            ledger.forecasts[row, prefix] = [forecast for forecast, _ in parts]
    return last


def _predictors(config) -> tuple[dict[str, Forecaster], dict[str, Forecaster]]:
    """The fields, and the predictors that look at nothing but a weight's own history."""
    size = {"num_steps": config.field_steps, "batch_size": config.batch_rows}
    fields = {  # a velocity is learned in a third of the steps
        "gfm_velocity": gradient_flow_matching("velocity", **size | {"num_steps": config.field_steps // 3}),
        "gfm_flow_map": gradient_flow_matching("flow_map", **size),
        "gfm_function_space": gradient_flow_matching("function_space", function_steps=config.function_steps, **size),
    }
    histories = {}
    for name in config.histories:
        if name == "lfd2":
            histories[name] = baselines.lfd2(config.prefixes)
        else:  # a sequence model spends on each weight what the others spend on four
            batch = config.batch_rows // 4 if name in SEQUENCES else config.batch_rows
            histories[name] = getattr(nowcast, name)(num_steps=config.nowcast_steps, batch_size=batch)
    return fields, histories


def _calibrated(forecaster, fitted, groups: list[Cohort], test: dict[float, list[Windows]]):
    """Intervals from the validation runs, in every cell of optimizer, learning rate and prefix; and all forecasts."""
    windows, rows, labels = [], [], []
    for prefix, parts in test.items():
        for group, part in zip(groups, parts, strict=True):
            chosen = [i for i, spec in enumerate(group.specs) if spec.split == "validation"]
            windows.append(part)
            rows.append(np.array(chosen, int))
            labels.append([(prefix, group.specs[i].optimizer, group.specs[i].peak_rate) for i in chosen])
    fitted, forecasts = calibrate(forecaster.fit.args[0], fitted, windows, rows, labels)
    num = len(groups)
    return fitted, {prefix: forecasts[i * num : (i + 1) * num] for i, prefix in enumerate(test)}


def _seconds(forecaster, fitted, windows: Windows) -> float:
    """Of one run's forecast once its context is there, from a second call for a whole cohort."""
    begin = time.perf_counter()
    jax.block_until_ready(forecast_windows(forecaster.fit.args[0], fitted, windows))
    return (time.perf_counter() - begin) / len(windows.run)


GATED_ROWS = ("persistence", "lawa", "lawa_quarter")


def _gate(loss, simple: dict[str, Forecast], best: Forecast) -> tuple[Forecast, dict]:
    candidates = _candidates([forecast.weights for forecast in simple.values()], best.weights)
    return gated(loss, candidates), {"forwards": candidates.shape[1]}


@jax.jit
def _candidates(simple, best):
    """[runs, 8, dim]: persistence, averages, and points on the way to the forecast in function space."""
    on_the_way = jax.vmap(lambda a, b: line_search(a, b, SHARES), out_axes=1)(simple[0], best)
    return jnp.stack([*simple, *on_the_way], axis=1)
