"""The families that the zoo does not hold: recorded once, forecast by everything, judged by weights, loss and coverage."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gfm.evaluate import loss_on
from experiments.pretrain.problems import HELD_OUT, PROBLEMS
from experiments.pretrain.zoo import WEIGHTS_ALONE, draw_runs
from gfm_jax.base import Forecast, Forecaster, Procedure, Task, Trajectory
from gfm_jax.compiling import quick_jit
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.files import replacing
from gfm_jax.forecasting import baselines, horizon_at, measure_curvature, prefix_of, save_at
from gfm_jax.forecasting.windows import hide
from gfm_jax.pytrees import layout_of, map_rows, unravel

__all__ = ["BASELINES", "Family", "forecasts_of", "record_family", "score"]

RECORDED = ("step", "time", "weights", "learning_rate", "loss")
BASELINES = {
    "persistence": baselines.persistence(),
    "lawa": baselines.lawa(),
    "lawa_quarter": baselines.lawa(1 / 4),
    "lawa_half": baselines.lawa(1 / 2),
    "lawa_half_log": baselines.lawa_half_log(),
    "linear": baselines.linear(),
    "log_time": baselines.log_time(),
    "sqrt_time": baselines.sqrt_time(),
    "exponential": baselines.exponential(),
    "rank1": baselines.rank1(),
    "dmd": baselines.dmd(),
}


class Family(NamedTuple):
    """Runs of one network, data set and optimizer that nothing was fitted to.

    Attributes:
      task: that was trained.
      runs: all that was recorded.
      evaluate: `(weights [runs, dim]) -> {"loss", "accuracy"}` on the test set, [runs] each.
    """

    task: Task
    runs: Trajectory
    evaluate: Callable


def record_family(config, name: str, folder: pathlib.Path) -> Family:
    """Runs of a family, of weights and loss alone: of one that the zoo does not hold, or, to choose by, of a problem of it that
    nothing was fitted to. They are recorded once, into `folder`."""
    problem = HELD_OUT[name] if name in HELD_OUT else PROBLEMS[name]
    task, optimizer, path = problem.make(), problem.optimizers[0], folder / f"{name}.npz"
    like = jax.eval_shape(task.init, jax.random.key(0))
    if not path.exists():
        number = 10**6 + [*HELD_OUT, *PROBLEMS].index(name)
        runs, good = draw_runs(config, problem, optimizer, task, config.held_out_runs, seed=[config.seed, number])
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, **{part: np.asarray(getattr(runs, part))[good] for part in RECORDED})
    with np.load(path) as file:
        runs = Trajectory(**{part: file[part] for part in RECORDED}, layout=layout_of(like))
    return Family(task, runs, _evaluator(task, like))


def forecasts_of(forecaster: Forecaster, family: Family, observed: float, *, curvature: bool = False) -> Callable:
    """`(params) -> forecasts` of the ends of all runs, from their weights alone, or with the curvature of the training loss at
    the cut."""
    runs, last = hide(family.runs, WEIGHTS_ALONE), save_at(family.runs, observed)
    loss = loss_on(family.task, "train", slice(512))

    def one(params, run):
        prefix, horizon = run
        prefix = prefix._replace(layout=family.runs.layout)
        return forecaster.forecast(params, measure_curvature(prefix, loss) if curvature else prefix, horizon)

    cuts = prefix_of(runs, last), horizon_at(runs, -1)
    # The simple ways take longer to optimise than to run.
    compiled = quick_jit if isinstance(forecaster.learner, Procedure) else jax.jit
    all_runs = compiled(lambda params, cuts: map_rows(lambda run: one(params, run), cuts, batch_size=1))
    return lambda params: all_runs(params, cuts)


def score(family: Family, forecast: Forecast, observed: float) -> dict[str, np.ndarray]:
    """Of every run: relative error, test loss and accuracy at the forecast, and the coverage of its intervals."""
    weights = family.runs.weights
    start, end = weights[:, save_at(family.runs, observed)], weights[:, -1]
    found = {
        "relative_error": np.sum((forecast.weights - end) ** 2, -1) / np.sum((start - end) ** 2, -1),
        **family.evaluate(forecast.weights),
    }
    if forecast.lower is not None:
        found["coverage"] = np.mean((forecast.lower <= end) & (end <= forecast.upper), -1)
    return {name: np.asarray(value) for name, value in found.items()}


def _evaluator(task, like, batch=500):
    """Batch by batch: statistics of BatchNorm over 500 examples are what refreshed ones would be."""
    batches = jax.tree.map(
        lambda x: jnp.asarray(x[: len(x) // batch * batch]).reshape(-1, batch, *x.shape[1:]), task.data["test"]
    )

    def of_run(weights):
        return jax.tree.map(jnp.mean, jax.lax.map(lambda part: task.evaluate(unravel(like, weights), part), batches))

    return jax.jit(fast_in_loops(lambda weights: jax.lax.map(of_run, weights)))
