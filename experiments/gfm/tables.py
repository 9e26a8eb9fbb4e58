"""From scores of single runs to the rows of the tables, and to the arrays behind the figures."""

import numpy as np
from jaxtyping import PyTree

from experiments.gfm.evaluate import Cohort, forecast_cohort
from experiments.gfm.exam import Exam, Ledger
from experiments.gfm.zoo import SPLITS
from gfm_jax.forecasting import baselines, forecast_windows, save_at

__all__ = ["HELD_OUT", "arrays_of", "markdown", "tabulate"]

HELD_OUT = tuple(split for split in SPLITS if split not in ("train", "validation"))
METRICS = ("rel_mse", "cosine", "test_loss", "test_accuracy")


def _means(seeds, groups, split):
    """{metric: [its mean over the runs of a split, one a seed]}."""
    inside = [np.array([spec.split == split for spec in group.specs], bool) for group in groups]
    metrics = {}
    for metric in (*METRICS, "covered"):
        for results in seeds:
            values = [getattr(r, metric) for r in results]
            if values[0] is not None:
                runs = np.concatenate([v[i] for v, i in zip(values, inside, strict=True)])
                metrics.setdefault(metric, []).append(runs.mean())
    metrics["forwards"] = [results[0].forwards for results in seeds]
    return metrics


def _rows(ledger: Ledger, groups: list[Cohort], split: str, prefix: float):
    """{row: metrics} of one table, with the share of the loss gap between the last observed and the true end closed."""
    rows = {row: _means(seeds, groups, split) for (row, p), seeds in ledger.scores.items() if p == prefix}
    start, end = rows["persistence"]["test_loss"][0], rows["oracle_final"]["test_loss"][0]
    for metrics in rows.values():
        metrics["gap_closed"] = [(start - loss) / (start - end) for loss in metrics["test_loss"]]
    oracle = rows.pop("oracle_final")
    return rows | {"oracle_final": oracle}


def tabulate(folder, ledger: Ledger, groups: list[Cohort], prefixes) -> None:
    """Adds a table for every split and prefix, the coverage of the intervals, and the seconds of a forecast."""
    seconds = {row: stopwatch() for row, stopwatch in ledger.stopwatches.items()}
    for split in ("validation", *HELD_OUT):
        for prefix in prefixes:
            for row, metrics in _rows(ledger, groups, split, prefix).items():
                covered = metrics.pop("covered", None)
                folder.add(
                    f"forecast/{split}/{prefix}", row, **metrics, seconds=seconds.get(row, 0.0)
                )  # 0: the oracle's
                if covered is not None:
                    folder.add(f"calibration/{split}", row, **{f"coverage/{prefix}": covered})


def markdown(ledger: Ledger, groups: list[Cohort], split: str, prefixes) -> str:
    """The table of the simple ways, which is on the screen while the field is being learned."""
    heads = [f"{metric} {prefix:g}" for prefix in prefixes for metric in ("rel_mse", "test_loss")]
    lines = [f"\n| {split} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    tables = [_rows(ledger, groups, split, prefix) for prefix in prefixes]
    for row in tables[0]:
        cells = [f"{np.mean(table[row][metric]):.4g}" for table in tables for metric in ("rel_mse", "test_loss")]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arrays_of(ledger: Ledger, exam: Exam, prefixes, flow_map: PyTree) -> dict[str, np.ndarray]:
    """What the figures are drawn from: the metrics of every run, errors by horizon, and one run with its forecasts."""
    groups = exam.groups
    arrays = {"prefixes": np.array(prefixes), "splits": np.array(HELD_OUT)}
    for (row, prefix), seeds in ledger.scores.items():
        for metric in METRICS:
            runs = [np.concatenate([getattr(r, metric) for r in results]) for results in seeds]
            arrays[f"{metric}/{row}/{prefix}"] = np.stack(runs)
    rows = dict.fromkeys(row for row, _ in ledger.scores)
    arrays["rows"] = np.array([*(row for row in rows if row != "oracle_final"), "oracle_final"])
    arrays["split"] = np.array([spec.split for group in groups for spec in group.specs])
    group, prefix = next(group for group in groups if any(spec.split == "seed" for spec in group.specs)), prefixes[0]
    inside = np.flatnonzero([spec.split == "seed" for spec in group.specs])
    arrays |= _by_horizon(group, exam.asked[prefix][groups.index(group)], inside, prefix, flow_map)
    # Shown: the seed-split run with median error, so that the figure flatters nobody.
    errors = ledger.scores["gfm_flow_map", prefix][-1][groups.index(group)].rel_mse[inside]
    shown = inside[np.argsort(errors)[len(errors) // 2]]
    spec, forecast = group.specs[shown], ledger.forecasts["gfm_flow_map", prefix][groups.index(group)]
    arrays |= {
        "shown/name": np.array(f"{spec.network}, {spec.optimizer}, {spec.peak_rate:g}, {spec.schedule}"),
        "shown/weights": np.asarray(group.runs.weights[shown]),
        "shown/step": np.asarray(group.runs.step[shown]),
        "shown/last": np.array(save_at(group.runs, prefix)),
        "shown/coverage": np.array(exam.config.coverage),
    }
    for part in ("weights", "lower", "upper"):
        arrays[f"shown/gfm_flow_map/{part}"] = np.asarray(getattr(forecast, part)[shown])
    return arrays


def _by_horizon(group: Cohort, window, inside, prefix, flow_map: PyTree, num: int = 8):
    """Relative squared error of forecasts of nearer and farther saves, [horizons, runs], from one prefix."""
    simple = {"lawa": baselines.lawa(), "lawa_half_log": baselines.lawa_half_log(), "log_time": baselines.log_time()}
    last, final = save_at(group.runs, prefix), group.runs.step.shape[1] - 1
    saves = np.unique(np.round(np.geomspace(last + 1, final, num)).astype(int))
    weights, squared = group.runs.weights, lambda x: (np.asarray(x)[inside] ** 2).sum(-1)
    errors = {}
    for save in saves:
        found = forecast_cohort(simple, dict.fromkeys(simple, ()), group, prefix, save=int(save), simple=True)
        found["gfm_flow_map"] = forecast_windows(flow_map, window, int(save))
        for row, forecast in found.items():
            error = squared(forecast.weights - weights[:, save]) / squared(weights[:, last] - weights[:, save])
            errors.setdefault(f"horizon/{row}", []).append(error)
    return {"horizon/step": group.runs.step[0, saves]} | {name: np.stack(rows) for name, rows in errors.items()}
