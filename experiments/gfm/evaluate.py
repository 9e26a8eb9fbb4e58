"""How good a forecast is: in weight space, in function space, and what it cost."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.gfm.zoo import Batch, RunSpec
from gfm_jax.base import Forecast, Forecaster, Task, Trajectory
from gfm_jax.compiling import quick_jit
from gfm_jax.forecasting import Windows, cut, gate, horizon_at, merge, prefix_of, save_at
from gfm_jax.pytrees import map_rows, unravel

__all__ = [
    "Cohort",
    "Judge",
    "Score",
    "cohorts",
    "forecast_cohort",
    "gated",
    "loss_on",
    "observed",
    "rows_of",
    "stopwatch",
    "trained",
]

MAX_LOSS = 2.0  # a run that ends above this final training loss has not been trained


class Cohort(NamedTuple):
    """Runs of one network, whatever their optimizer, without those that diverged or were never trained.

    Attributes:
      runs: what every forecaster may see of them, as NumPy arrays.
      batches: all that was recorded, by optimizer, each with the indices of the runs that count.
    """

    network: str
    task: Task
    specs: list[RunSpec]
    runs: Trajectory
    batches: list[tuple[Trajectory, np.ndarray]]


class Score(NamedTuple):
    """Of one predictor on the runs of one cohort, [runs] each."""

    rel_mse: np.ndarray
    cosine: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    covered: np.ndarray | None
    forwards: int


def cohorts(batches: Sequence[Batch]) -> tuple[list[Cohort], int]:
    """Cohorts by network, and how many runs are left out of them because they diverged or were never trained."""
    groups, dropped = {}, 0
    for batch in batches:
        kept = trained(batch)
        dropped += len(batch.specs) - len(kept)
        groups.setdefault(batch.specs[0].network, []).append((batch, kept))
    found = []
    for network, parts in groups.items():
        specs = [batch.specs[i] for batch, kept in parts for i in kept]
        common = [batch.trajectory._replace(state=None, gradient=None) for batch, _ in parts]
        common = [
            jax.tree.map(lambda leaf, k=kept: np.asarray(leaf)[k], run)
            for run, (_, kept) in zip(common, parts, strict=True)
        ]
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *common)
        whole = [(batch.trajectory, kept) for batch, kept in parts]
        found.append(Cohort(network, parts[0][0].task, specs, together, whole))
    return found, dropped


def trained(batch: Batch) -> np.ndarray:
    """Indices of the runs of a batch that neither diverged nor were never trained."""
    runs = batch.trajectory
    good = np.asarray(runs.finite) & (np.asarray(runs.loss[:, -1]) <= MAX_LOSS)
    return np.flatnonzero(good[: len(batch.specs)])


def observed(
    cohort: Cohort,
    fractions: Sequence[float],
    feature_dropout: Sequence[Sequence[str]] = (),
    loss: Callable | None = None,
) -> Windows:
    """Every run of a cohort cut at every fraction, with all that was recorded of it and the curvature of a loss, and again
    with parts feature_dropout."""
    windows = [cut(runs, fractions, feature_dropout=feature_dropout, loss=loss) for runs, _ in cohort.batches]
    return merge(windows, [rows_of(part, kept) for part, (_, kept) in zip(windows, cohort.batches, strict=True)])


def rows_of(windows: Windows, runs: np.ndarray) -> np.ndarray:
    """Indices of the windows of some runs, in the order of `cut`: all runs at one cut, all at the next."""
    starts = np.arange(0, len(windows.run), len(windows.weights))
    return (starts[:, None] + runs).ravel()


def forecast_cohort(
    forecasters: dict[str, Forecaster],
    params: dict,
    cohort: Cohort,
    prefix: float,
    *,
    save: int = -1,
    simple: bool = False,
) -> dict[str, Forecast]:
    """Forecasts of a save of every run, by default its end, by every forecaster, in one compiled call for all of them.

    With `simple` the call is compiled quickly rather than well.
    """
    last = save_at(cohort.runs, prefix)
    runs = (prefix_of(cohort.runs, last), horizon_at(cohort.runs, save))
    program = _forecast_quickly_compiled if simple else _forecast_well_compiled
    found = jax.block_until_ready(program(tuple(forecasters.items()), cohort.runs.layout, params, runs))
    return {name: found[name] for name in forecasters}  # in the order asked for, which jit does not keep


def _forecast_all(forecasters, layout, params, runs):
    def one(run):
        prefix = run[0]._replace(layout=layout)
        return {name: forecaster.forecast(params[name], prefix, run[1]) for name, forecaster in forecasters}

    return map_rows(one, runs, batch_size=8)


_forecast_well_compiled = jax.jit(_forecast_all, static_argnums=(0, 1))
# The simple ways take longer to optimise than to run.
_forecast_quickly_compiled = quick_jit(_forecast_all, static_argnums=(0, 1))


def stopwatch(forecaster: Forecaster, params, cohort: Cohort, prefix: float) -> Callable[[], float]:
    """Compiles the forecast of one run, and returns a function that says how many seconds it takes: the median of several."""
    last = save_at(cohort.runs, prefix)
    first = jax.tree.map(lambda leaf: leaf[0], cohort.runs)
    run = (prefix_of(first, last), horizon_at(first, -1))
    forecast = jax.jit(forecaster.forecast).lower(params, *run).compile()

    def seconds():
        times = []
        for _ in range(7):
            start = time.perf_counter()
            jax.block_until_ready(forecast(params, *run))
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    return seconds


def loss_on(task: Task, split: str, part: slice = slice(None)) -> Callable:
    """The task's loss over a split, or a part of it, as a function of flat weights."""
    like = jax.eval_shape(task.init, jax.random.key(0))
    data = jax.tree.map(lambda array: array[part], task.data[split])
    return lambda weights: task.evaluate(unravel(like, weights), data)["loss"]


class Judge:
    """Scores forecasts of one cohort; its evaluation on the test set compiles once."""

    def __init__(self, cohort: Cohort) -> None:
        task, like = cohort.task, jax.eval_shape(cohort.task.init, jax.random.key(0))
        test = lambda weights: task.evaluate(unravel(like, weights), task.data["test"])
        self.cohort = cohort
        self.test = jax.jit(lambda weights: map_rows(test, weights, batch_size=16))

    def score(self, forecast: Forecast, prefix: float, forwards: int = 0) -> Score:
        runs = self.cohort.runs
        last, final = runs.weights[:, save_at(runs, prefix)], runs.weights[:, -1]
        forecast = jax.tree.map(np.asarray, forecast)
        moved, forecast_moved = final - last, forecast.weights - last
        squared = lambda x: (x**2).sum(-1)
        dot = (moved * forecast_moved).sum(-1)
        evaluated = self.test(forecast.weights)
        covered = None
        if forecast.lower is not None:
            covered = np.mean((forecast.lower <= final) & (final <= forecast.upper), axis=-1)
        return Score(
            rel_mse=squared(forecast_moved - moved) / squared(moved),
            cosine=dot / np.sqrt(np.maximum(squared(moved) * squared(forecast_moved), 1e-24)),
            test_loss=np.asarray(evaluated["loss"]),
            test_accuracy=np.asarray(evaluated["accuracy"]),
            covered=covered,
            forwards=forwards,
        )


@functools.partial(jax.jit, static_argnums=0)
def gated(loss: Callable, candidates: jax.Array) -> Forecast:
    """For every run, of its candidates [runs, candidates, dim] that of least loss."""
    return Forecast(map_rows(lambda options: gate.choose(loss, options)[0], candidates, batch_size=4))
