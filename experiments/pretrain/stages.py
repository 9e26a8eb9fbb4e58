"""The stages: record the zoo, fit, judge on what it does not hold, write the forecaster and its card."""

import pathlib

import jax
import numpy as np

from experiments.pretrain.held_out import BASELINES, forecast_family, record_family, score
from experiments.pretrain.learn import learn, method
from experiments.pretrain.problems import PROBLEMS
from experiments.pretrain.zoo import learn_from
from experiments.run_folder import FITTED, RunFolder
from gfm_jax.saving import save

__all__ = ["pretrain"]


def pretrain(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage; what was recorded and fitted stands in the folder, so that a run that was stopped goes on."""
    names = list(config.problems or PROBLEMS)
    folder = RunFolder(out, config)
    checkpoints = folder.path / "checkpoints"
    lessons = learn_from(config, checkpoints / "zoo", names)
    num = sum(len(part.weights) for part in lessons.windows + lessons.held)
    folder.add("zoo", "recorded", problems=len(names), runs=num, windows=sum(len(part.run) for part in lessons.windows))
    fitted = []
    for seed in range(config.fits):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        fitted.append(learn(config, key, lessons, checkpoints / f"fit-{seed}", progress=True))
        (folder.path / FITTED).mkdir(exist_ok=True)
        save(folder.path / FITTED / f"general-{seed}.safetensors", method(config), fitted[-1][1])
    del lessons
    arrays = judge(config, folder, fitted)
    folder.finish("A forecaster for runs that it has never seen", command, arrays, [])


def judge(config, folder, fitted) -> dict[str, np.ndarray]:
    """Adds a table for every family and prefix: simple ways, and the fits, with and without the loss at hand."""
    forecaster, arrays = method(config), {}
    for name in config.held_out:
        family = record_family(config, name)
        for observed in config.observed:
            table = f"{name}/{observed}"
            for row, simple in BASELINES.items():
                found = score(family, forecast_family(simple, (), family, observed), observed)
                folder.add(table, row, **{metric: value.mean() for metric, value in found.items()})
            rows = {"weight space": (0, False), "general": (1, False), "general, curvature": (1, True)}
            for row, (which, curvature) in rows.items():
                each = [
                    score(
                        family, forecast_family(forecaster, fit[which], family, observed, curvature=curvature), observed
                    )
                    for fit in fitted
                ]
                arrays |= {f"{table}/{row}/{metric}": np.stack([found[metric] for found in each]) for metric in each[0]}
                folder.add(table, row, **{metric: [found[metric].mean() for found in each] for metric in each[0]})
            print(folder.table(table), flush=True)
    return arrays
