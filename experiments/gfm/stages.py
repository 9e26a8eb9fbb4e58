"""The stages of the experiment: record, forecast the simple ways, learn, forecast, report."""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from experiments.gfm.evaluate import (
    Cohort,
    Judge,
    Score,
    cohorts,
    forecast_cohort,
    gated,
    loss_on,
    observed,
    seconds_each,
)
from experiments.gfm.figures import draw_all
from experiments.gfm.zoo import SPLITS, make_tasks, record_zoo, run_specs
from experiments.run_folder import RunFolder
from gfm_jax.base import Forecast
from gfm_jax.methods import baselines, forecast_windows, gradient_flow_matching, nowcast
from gfm_jax.methods.gate import line_search
from gfm_jax.methods.gradient_flow_matching import Recipe, calibrate
from gfm_jax.trajectories import save_at

__all__ = ["forecast_runs"]

HELD_OUT = tuple(split for split in SPLITS if split not in ("train", "validation"))
TRIVIAL = {
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
}
SHARES = (
    0.5,
    0.75,
    1.0,
    1.25,
)  # of the way to the forecast: with persistence, two averages and the flow map 8 candidates


def forecast_runs(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage, each with its progress on the screen, and leaves the run folder."""
    folder = RunFolder(out, config)
    tasks, specs = make_tasks(config), run_specs(config)
    held_out = [spec for spec in specs if spec.split != "train"]

    batches = _record(config, tasks, held_out, "record the runs that are held out")
    groups, dropped = cohorts(batches)
    judges = [Judge(cohort) for cohort in groups]
    scores: dict[tuple[str, float], list[list[Score]]] = {}  # (row, prefix): one list of cohorts a seed
    forecasts: dict[tuple[str, float], list[Forecast]] = {}
    print(f"{len(held_out)} runs held out; {dropped} of them diverged or were never trained, and are left out below")
    folder.add("zoo", "held out", runs=len(held_out), dropped=dropped)
    _forecast_simply(config, groups, judges, scores, forecasts)
    for split in HELD_OUT:
        print(_markdown(scores, groups, split, config.prefixes), flush=True)

    training = [spec for spec in specs if spec.split == "train"]
    batches = _record(config, tasks, training, "record the runs to learn from")
    train_groups, dropped = cohorts(batches)
    folder.add("zoo", "train", runs=len(training), dropped=dropped)
    _learn(config, train_groups, groups, judges, scores, forecasts)

    _tabulate(folder, scores, groups, config.prefixes)
    for table in dict.fromkeys(row.table for row in folder.rows):
        print("\n" + folder.table(table))
    arrays = _arrays(scores, forecasts, groups, config.prefixes)
    folder.save_arrays(arrays)
    draw_all(folder.path, arrays)
    folder.finish("Forecasting where training runs end", command)
    print(f"\nreport: {folder.path / 'report.md'} ({time.perf_counter() - folder.start:.0f} s)")


def _record(config, tasks, specs, title):
    with tqdm(total=len(specs), desc=title, unit="run") as bar:
        return record_zoo(config, tasks, specs, bar.update)


def _forecast_simply(config, groups, judges, scores, forecasts):
    seconds = {row: seconds_each(forecaster, (), groups[0], config.prefixes[0]) for row, forecaster in TRIVIAL.items()}
    work = [(prefix, i) for prefix in config.prefixes for i in range(len(groups))]
    # Forecasters that decompose matrices compile one by one: XLA's CPU runtime of jax 0.10 stalls where several batched
    # LAPACK calls of one program wait for the same few threads.
    alone = ("exponential", "rank1", "dmd")
    programs = [{row: f for row, f in TRIVIAL.items() if row not in alone}, *({row: TRIVIAL[row]} for row in alone)]
    made = []
    for prefix, i in tqdm(work, desc="forecast the simple ways", leave=False):
        parts = [forecast_cohort(program, dict.fromkeys(program, ()), groups[i], prefix) for program in programs]
        made.append({row: forecast for part in parts for row, forecast in part.items()})
    for (prefix, i), found in zip(work, made, strict=True):
        for row, forecast in found.items():
            scores.setdefault((row, prefix), [[]])[0].append(judges[i].score(forecast, prefix, seconds=seconds[row]))
            forecasts.setdefault((row, prefix), []).append(forecast)
    for prefix in config.prefixes:
        truth = [Forecast(group.runs.weights[:, -1]) for group in groups]
        scores["oracle_final", prefix] = [[j.score(f, prefix) for j, f in zip(judges, truth, strict=True)]]


def _learn(config, train_groups: list[Cohort], groups, judges, scores, forecasts):
    """Fits every learned predictor `fit_seeds` times, and scores it on the cohorts that are held out."""
    size = {"num_steps": config.field_steps, "batch_size": config.batch_rows}
    fields = {
        "gfm_velocity": gradient_flow_matching("velocity", **size),
        "gfm_flow_map": gradient_flow_matching("flow_map", **size),
        "gfm_function_space": gradient_flow_matching("function_space", function_steps=config.function_steps, **size),
    }
    histories = {}
    for name in config.histories:
        if name == "lfd2":
            histories[name] = baselines.lfd2(config.prefixes)
        else:  # a sequence model spends on each weight what the others spend on eight
            batch = config.batch_rows // 8 if name in ("lstm", "transformer") else config.batch_rows
            histories[name] = getattr(nowcast, name)(num_steps=config.nowcast_steps, batch_size=batch)

    windows = [observed(group, Recipe().fractions) for group in train_groups]
    losses = [loss_on(group.task, "validation") for group in train_groups]
    gates = [loss_on(group.task, "validation") for group in groups]
    test_windows = {prefix: [observed(group, (prefix,)) for group in groups] for prefix in config.prefixes}
    validation = [np.flatnonzero([spec.split == "validation" for spec in group.specs]) for group in groups]

    for seed in range(config.fit_seeds):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        made = {}  # (row, prefix): [(forecast, cost) of every cohort]
        params = {row: f.fit(key, windows, progress=f"fit {row}, seed {seed}") for row, f in histories.items()}
        seconds = {row: seconds_each(f, params[row], groups[0], config.prefixes[0]) for row, f in histories.items()}
        for prefix in config.prefixes:
            for group in groups:
                for row, forecast in forecast_cohort(histories, params, group, prefix).items():
                    made.setdefault((row, prefix), []).append((forecast, {"seconds": seconds[row]}))
        flow_map = None
        for row, forecaster in fields.items():
            recipe = forecaster.fit.args[0]
            start = flow_map if row == "gfm_function_space" else None
            fitted = forecaster.fit(key, windows, losses, start=start, progress=f"fit {row}, seed {seed}")
            flow_map = fitted if row == "gfm_flow_map" else flow_map
            every_test = [part for prefix in config.prefixes for part in test_windows[prefix]]
            fitted = calibrate(recipe, fitted, every_test, validation * len(config.prefixes))
            for prefix in config.prefixes:
                for group, part in zip(groups, test_windows[prefix], strict=True):
                    start_time = time.perf_counter()
                    forecast = jax.block_until_ready(forecast_windows(recipe, fitted, part))
                    cost = {"seconds": (time.perf_counter() - start_time) / len(group.specs)}
                    made.setdefault((row, prefix), []).append((forecast, cost))
        for prefix in config.prefixes:
            for i, gate_loss in enumerate(gates):
                named = [forecasts[row, prefix][i].weights for row in ("persistence", "lawa", "lawa_half_log")]
                flow_map_forecast, best = (
                    made[f"gfm_{o}", prefix][i][0].weights for o in ("flow_map", "function_space")
                )
                candidates = _candidates(named, flow_map_forecast, best)
                made.setdefault(("gfm_gated", prefix), []).append(
                    (gated(gate_loss, candidates), {"forwards": candidates.shape[1]})
                )
        for (row, prefix), parts in made.items():
            results = [j.score(forecast, prefix, **cost) for j, (forecast, cost) in zip(judges, parts, strict=True)]
            scores.setdefault((row, prefix), []).append(results)
            forecasts[row, prefix] = [forecast for forecast, _ in parts]


@jax.jit
def _candidates(simple, flow_map, best):
    """[runs, 8, dim]: persistence, two averages, the flow map, and points on the way to the forecast in function space."""
    on_the_way = jax.vmap(lambda a, b: line_search(a, b, SHARES), out_axes=1)(simple[0], best)
    return jnp.stack([*simple, flow_map, *on_the_way], axis=1)


# --- tables -----------------------------------------------------------------------------------------------------------


def _means(seeds, groups, split):
    """{metric: [its mean over the runs of a split, one a seed]}."""
    inside = [np.array([spec.split == split for spec in group.specs], bool) for group in groups]
    metrics = {}
    for metric in ("rel_mse", "cosine", "test_loss", "test_accuracy", "covered"):
        for results in seeds:
            values = [getattr(r, metric) for r in results]
            if values[0] is not None:
                runs = np.concatenate([v[i] for v, i in zip(values, inside, strict=True)])
                metrics.setdefault(metric, []).append(runs.mean())
    sizes = [i.sum() for i in inside]
    metrics["forwards"] = [results[0].forwards for results in seeds]
    metrics["seconds"] = [np.average([r.seconds for r in results], weights=sizes) for results in seeds]
    return metrics


def _rows(scores, groups, split, prefix):
    """{row: metrics} of one table, with the share of the loss gap between the last observed and the true end closed."""
    rows = {row: _means(seeds, groups, split) for (row, p), seeds in scores.items() if p == prefix}
    start, end = rows["persistence"]["test_loss"][0], rows["oracle_final"]["test_loss"][0]
    for metrics in rows.values():
        metrics["gap_closed"] = [(start - loss) / (start - end) for loss in metrics["test_loss"]]
    oracle = rows.pop("oracle_final")
    return rows | {"oracle_final": oracle}


def _tabulate(folder, scores, groups, prefixes):
    for split in ("validation", *HELD_OUT):
        for prefix in prefixes:
            for row, metrics in _rows(scores, groups, split, prefix).items():
                covered = metrics.pop("covered", None)
                folder.add(f"forecast/{split}/{prefix}", row, **metrics)
                if covered is not None:
                    folder.add(f"calibration/{split}", row, **{f"coverage/{prefix}": covered})


def _markdown(scores, groups, split, prefixes):
    """The table of the simple ways, which is on the screen while the field is being learned."""
    heads = [f"{metric} {prefix:g}" for prefix in prefixes for metric in ("rel_mse", "test_loss")]
    lines = [f"\n| {split} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    tables = [_rows(scores, groups, split, prefix) for prefix in prefixes]
    for row in tables[0]:
        cells = [f"{np.mean(table[row][metric]):.4g}" for table in tables for metric in ("rel_mse", "test_loss")]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _arrays(scores, forecasts, groups, prefixes):
    """What the figures are drawn from: the metrics of every run, and one run with its forecasts."""
    arrays = {"prefixes": np.array(prefixes), "splits": np.array(HELD_OUT)}
    for (row, prefix), seeds in scores.items():
        for metric in ("rel_mse", "cosine", "test_loss", "test_accuracy"):
            runs = [np.concatenate([getattr(r, metric) for r in results]) for results in seeds]
            arrays[f"{metric}/{row}/{prefix}"] = np.stack(runs)
    arrays["rows"] = np.array(list(dict.fromkeys(row for row, _ in scores)))
    arrays["split"] = np.array([spec.split for group in groups for spec in group.specs])
    # Shown: the seed-split run with median error, of the first network, so that the figure flatters nobody.
    group, prefix = groups[0], prefixes[0]
    inside = np.flatnonzero([spec.split == "seed" for spec in group.specs])
    errors = scores["gfm_flow_map", prefix][-1][0].rel_mse[inside]
    shown = inside[np.argsort(errors)[len(errors) // 2]]
    spec, forecast = group.specs[shown], forecasts["gfm_flow_map", prefix][0]
    arrays |= {
        "shown/name": np.array(f"{spec.network}, {spec.optimizer}, {spec.peak_rate:g}, {spec.schedule}"),
        "shown/weights": np.asarray(group.runs.weights[shown]),
        "shown/step": np.asarray(group.runs.step[shown]),
        "shown/last": np.array(save_at(group.runs, prefix)),
    }
    for part in ("weights", "lower", "upper"):
        arrays[f"shown/gfm_flow_map/{part}"] = np.asarray(getattr(forecast, part)[shown])
    return arrays
