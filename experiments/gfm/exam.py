"""What is asked of every learned predictor, and what came of it."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from experiments.gfm.config import Config
from experiments.gfm.evaluate import Cohort, Judge, Score, observed
from experiments.gfm.lessons import Lessons
from experiments.side_by_side import side_by_side
from gfm_jax.base import Forecast
from gfm_jax.forecasting import Windows

__all__ = ["Exam", "Ledger", "enter", "fit_keys", "observe_all", "progress"]


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
      lessons: what there is to learn from.
      groups, judges: the cohorts that are held out.
      asked: their windows, by prefix.
      folder: where fits leave checkpoints, from which a run that was stopped goes on.
    """

    config: Config
    lessons: Lessons
    groups: list[Cohort]
    judges: list[Judge]
    asked: dict[float, list[Windows]]
    folder: pathlib.Path


def observe_all(config, groups: list[Cohort], loss_of: dict[str, Callable]) -> dict[float, list[Windows]]:
    """Windows of every cohort, by prefix, with the curvature of the loss where each run was cut."""
    work = [(prefix, group) for prefix in config.prefixes for group in groups]
    look = lambda job: observed(job[1], job[:1], (), loss_of[job[1].network])
    windows, num = list(side_by_side(look, work)), len(groups)
    return {prefix: windows[i * num : (i + 1) * num] for i, prefix in enumerate(config.prefixes)}


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
