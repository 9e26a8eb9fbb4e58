"""What is asked of every learned predictor, and what came of it."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from experiments.gfm.config import Config
from experiments.gfm.evaluate import Cohort, Judge, Score, loss_on, observed
from experiments.side_by_side import side_by_side
from gfm_jax.base import Forecast
from gfm_jax.methods.gradient_flow_recipe import Recipe
from gfm_jax.trajectories import Windows

__all__ = ["Exam", "Ledger", "enter", "fit_keys", "prepare", "progress"]


class Ledger(NamedTuple):
    """What has been forecast so far.

    Attributes:
      scores: by (row, prefix), a list of cohorts for each fit.
      forecasts: by (row, prefix), those of the last fit, for every cohort.
      stopwatches: by row, a function that measures the seconds of one forecast; to be called when nothing else runs.
    """

    scores: dict[tuple[str, float], list[list[Score]]]
    forecasts: dict[tuple[str, float], list[Forecast]]
    stopwatches: dict[str, Callable[[], float]]


class Exam(NamedTuple):
    """What there is to learn from, and what is asked.

    Attributes:
      windows, losses: of the cohorts to learn from, each observed at several fractions with the landscape of its loss.
      groups, judges: the cohorts that are held out.
      asked: their windows, by prefix.
      folder: where fits leave checkpoints, from which a run that was stopped goes on.
    """

    config: Config
    windows: list[Windows]
    losses: list[Callable]
    groups: list[Cohort]
    judges: list[Judge]
    asked: dict[float, list[Windows]]
    folder: pathlib.Path


def prepare(config, train: list[Cohort], groups: list[Cohort], judges: list[Judge], folder) -> Exam:
    """Observes every run, and looks around where it was cut: at the loss on images that it was trained on."""
    recipe, part = Recipe(), slice(config.train_images)
    loss_of = {group.network: loss_on(group.task, "train", part) for group in (*train, *groups)}
    work = [(group, recipe.fractions, recipe.withheld) for group in train]
    work += [(group, (prefix,), ()) for prefix in config.prefixes for group in groups]
    windows = list(side_by_side(lambda job: observed(*job, loss_of[job[0].network]), work))
    asked = windows[len(train) :]
    return Exam(
        config=config,
        windows=windows[: len(train)],
        losses=[loss_of[group.network] for group in train],
        groups=groups,
        judges=judges,
        asked={p: asked[i * len(groups) : (i + 1) * len(groups)] for i, p in enumerate(config.prefixes)},
        folder=folder,
    )


def fit_keys(config) -> list[jax.Array]:
    """One key a fit of every learned predictor."""
    return [jax.random.fold_in(jax.random.key(config.seed), seed) for seed in range(config.fit_seeds)]


def progress(exam: Exam, row: str, seed: int) -> dict:
    """Under what name a fit shows its progress, and where it leaves its checkpoints."""
    return {"progress": f"fit {row}, seed {seed}", "folder": exam.folder / f"{row}-{seed}"}


def enter(ledger: Ledger, exam: Exam, row: str, prefix: float, forecasts: list[Forecast], forwards: int = 0) -> None:
    """Enters one fit's forecasts of every cohort into the ledger, with their scores."""
    scores = [judge.score(f, prefix, forwards) for judge, f in zip(exam.judges, forecasts, strict=True)]
    ledger.scores.setdefault((row, prefix), []).append(scores)
    ledger.forecasts[row, prefix] = forecasts
