"""The stages: record the zoo, fit, judge on what it does not hold, write the forecaster and its card."""

import pathlib

import jax
import numpy as np

from experiments.pretrain.config import check
from experiments.pretrain.held_out import BASELINES, forecasts_of, record_family, score
from experiments.pretrain.learn import learn, method
from experiments.pretrain.problems import HELD_OUT, PROBLEMS
from experiments.pretrain.zoo import learn_from
from experiments.run_folder import FITTED, RunFolder
from gfm_jax.forecasting.names import fingerprint_of_names
from gfm_jax.saving import save

__all__ = ["pretrain"]

LIMITS = (
    "fitted to networks of 200 to 50,000 weights and runs of 500 to 1,500 steps, observed from 12 to 80 % of the run",
    "classification only: images of at most 28 x 28 pixels, synthetic classes, characters",
    "no run of more than one task, none that goes on after a change of its data or loss",
    "intervals hold on average over the weights of runs like those of the zoo",
)


def pretrain(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage; what was recorded and fitted stands in the folder, so that a run that was stopped goes on."""
    check(config, PROBLEMS, HELD_OUT, BASELINES)
    names = list(config.problems or PROBLEMS)
    for name in (*config.held_out, *names):  # data that are missing are told before anything is recorded
        (HELD_OUT | PROBLEMS)[name].make()
    num = sum(len(PROBLEMS[name].optimizers) for name in names) * (config.num_runs + max(config.num_runs // 4, 2))
    print(f"records {num} runs, fits {config.fits} times; the preset laptop takes some three hours on two cores")
    folder = RunFolder(out, config)
    checkpoints = folder.path / "checkpoints"
    training = learn_from(config, checkpoints / "zoo", names)
    for row, parts in (
        ("to fit to", training.windows),
        ("for the intervals", training.held),
        ("whole", training.whole),
    ):
        runs, windows = (
            sum(map(len, counts)) for counts in ([np.unique(p.run) for p in parts], [p.run for p in parts])
        )
        folder.add("zoo", row, problems=len(parts), runs=runs, windows=windows)
    fitted = []
    for seed in range(config.fits):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        fitted.append(learn(config, key, training, checkpoints / f"fit-{seed}", progress=True))
        (folder.path / FITTED).mkdir(exist_ok=True)
        save(folder.path / FITTED / f"general-{seed}.safetensors", method(config), fitted[-1][1])
    del training
    arrays = evaluate(config, folder, fitted)
    folder.write_json(f"{FITTED}/general.json", card(config, folder))
    folder.finish("A forecaster for runs that it has never seen", command, arrays, [])


def card(config, folder: RunFolder) -> dict:
    """What ships beside the parameters."""
    tables = {}
    for row in folder.rows:
        if row.table != "zoo":
            spread = {} if row.std is None else {"std": round(row.std, 5)}
            found = {"value": round(row.value, 5), **spread, "num_fits": row.num_seeds}
            tables.setdefault(row.table, {}).setdefault(row.row, {})[row.metric] = found
    names = config.problems or PROBLEMS
    return {
        "name": "general",
        "about": "a flow map of training, fitted in weight space and then on in function space",
        "command": f"python -m experiments.pretrain --preset {config.preset}",
        "commit": folder.commit,
        "seed": config.seed,
        "licence": "Apache-2.0",
        "features_sha256": fingerprint_of_names(),
        "zoo": {name: _of_problem(PROBLEMS[name]) for name in names},
        "runs_a_problem_and_optimizer": config.num_runs,
        "splits": "by run: the last fifth of the runs of a problem and optimizer for the intervals, the others for the "
        "fit; the families below are no problems of the zoo, and nothing was chosen by them",
        "metrics": tables,
        "limits": LIMITS,
    }


def _of_problem(problem):
    return {
        "optimizers": problem.optimizers,
        "steps": problem.num_steps,
        "saves": problem.saves[0],
        "spacing": problem.saves[1],
    }


def evaluate(config, folder, fitted) -> dict[str, np.ndarray]:
    """Adds a table for every family and prefix: simple ways, and the fits, with and without the loss at hand."""
    forecaster, arrays = method(config), {}
    for name in config.held_out:
        family = record_family(config, name, folder.path / "checkpoints" / "held_out")
        for observed in config.observed:
            table = f"{name}/{observed}"
            for row in config.simple:
                found = score(family, forecasts_of(BASELINES[row], family, observed)(()), observed)
                folder.add(table, row, **{metric: value.mean() for metric, value in found.items()})
            alone, curved = (forecasts_of(forecaster, family, observed, curvature=c) for c in (False, True))
            rows = {"weight space": (alone, 0), "general": (alone, 1), "general, curvature": (curved, 1)}
            for row, (forecast, which) in rows.items():
                each = [score(family, forecast(fit[which]), observed) for fit in fitted]
                arrays |= {f"{table}/{row}/{metric}": np.stack([found[metric] for found in each]) for metric in each[0]}
                folder.add(table, row, **{metric: [found[metric].mean() for found in each] for metric in each[0]})
            print(folder.table(table), flush=True)
    return arrays
