"""The families that the zoo does not hold: recorded once, forecast by everything, judged by weights, loss and coverage."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretrain.problems import HELD_OUT
from experiments.pretrain.zoo import WEIGHTS_ALONE, draw_runs, train_loss
from gfm_jax.base import Forecast, Forecaster, Task, Trajectory
from gfm_jax.forecasting import baselines, horizon_at, measure_curvature, prefix_of, save_at
from gfm_jax.forecasting.windows import hide
from gfm_jax.pytrees import map_rows, unravel

__all__ = ["BASELINES", "Family", "forecast_family", "record_family", "score"]

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
    """Runs of one network, data set and optimizer that nothing was fitted to."""

    name: str
    task: Task
    runs: Trajectory


def record_family(config, name: str, problem=None) -> Family:
    """Records the runs of a family, of weights and loss alone."""
    problem = problem or HELD_OUT[name]
    task, (optimizer,) = problem.make(), problem.optimizers[:1]
    number = sorted(HELD_OUT).index(name) if name in HELD_OUT else len(HELD_OUT)
    runs = draw_runs(config, problem, optimizer, task, config.held_out_runs, seed=[config.seed, 10**6 + number])
    return Family(name, task, jax.device_get(hide(runs, ("gradient", "state", "mean_weights"))))


def forecast_family(forecaster: Forecaster, params, family: Family, observed: float, *, curvature=False) -> Forecast:
    """Forecasts of the ends of all runs from their weights alone, or with the curvature of the training loss at the cut."""
    runs, last = hide(family.runs, WEIGHTS_ALONE), save_at(family.runs, observed)
    loss = train_loss(family.task)

    def one(run):
        prefix, horizon = run
        prefix = prefix._replace(layout=family.runs.layout)
        return forecaster.forecast(params, measure_curvature(prefix, loss) if curvature else prefix, horizon)

    return jax.jit(lambda runs: map_rows(one, runs, batch_size=1))((prefix_of(runs, last), horizon_at(runs, -1)))


def score(family: Family, forecast: Forecast, observed: float) -> dict[str, np.ndarray]:
    """Of every run: relative error, test loss and accuracy at the forecast, and the coverage of its intervals."""
    weights, last = family.runs.weights, save_at(family.runs, observed)
    start, end = weights[:, last], weights[:, -1]
    like = jax.eval_shape(family.task.init, jax.random.key(0))
    num = len(jax.tree.leaves(family.task.data["test"])[0])
    evaluated = _evaluate(family, like, forecast.weights, min(500, num))
    found = {
        "relative_error": np.sum((forecast.weights - end) ** 2, -1) / np.sum((start - end) ** 2, -1),
        "loss": evaluated["loss"],
        "accuracy": evaluated["accuracy"],
    }
    if forecast.lower is not None:
        found["coverage"] = np.mean((forecast.lower <= end) & (end <= forecast.upper), -1)
    return {name: np.asarray(value) for name, value in found.items()}


def _evaluate(family, like, weights, batch):
    """Batch by batch: the statistics of BatchNorm are those of 500 examples, which is what refreshed ones would be."""
    data = jax.tree.map(
        lambda x: jnp.asarray(x[: len(x) // batch * batch]).reshape(-1, batch, *x.shape[1:]), family.task.data["test"]
    )
    of_batch = lambda weights, part: family.task.evaluate(unravel(like, weights), part)

    def of_run(weights):
        return jax.tree.map(jnp.mean, jax.lax.map(lambda part: of_batch(weights, part), data))

    return jax.jit(lambda weights: jax.lax.map(of_run, weights))(jnp.asarray(weights))
