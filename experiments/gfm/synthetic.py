"""Linear regression, whose end is known in closed form: how near to it forecasts come, optimizer by optimizer."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from experiments.gfm.evaluate import Cohort, forecast_cohort, observed
from gfm_jax.base import Forecast, OptimizerField
from gfm_jax.fitting import fit
from gfm_jax.forecasting import baselines, flow_map, forecast_windows, save_at
from gfm_jax.forecasting.field_forecaster import FRACTIONS
from gfm_jax.forecasting.optimizer_flow import optimizer_flow
from gfm_jax.optimizers.fields import adam, momentum, rmsprop, sgd
from gfm_jax.runs import gradient_descent_end, heavy_ball_end, least_squares, linear_regression, record, save_steps

__all__ = ["forecast_regressions"]

NUM_STEPS, NUM_SAVES, PREFIX, DIM = 200, 100, 0.2, 8
DECAY = 0.9


class Setting(NamedTuple):
    """An optimizer: as optax has it, as a field, its learning rates, and where it ends in closed form.

    For gradient descent and momentum `end(task, weights, rate)` is the end itself, for the others the minimum that they go to.
    """

    optimizer: Callable[..., optax.GradientTransformation]
    field: OptimizerField
    rates: tuple[float, float]
    end: Callable


def _minimum(task, weights, rate):
    return least_squares(task)[0]


SETTINGS = {
    "gd": Setting(optax.sgd, sgd(), (0.03, 0.3), lambda task, w, rate: gradient_descent_end(task, w, rate, NUM_STEPS)),
    "momentum": Setting(
        functools.partial(optax.sgd, momentum=DECAY),
        momentum(DECAY),
        (0.003, 0.03),
        lambda task, w, rate: heavy_ball_end(task, w, rate, DECAY, NUM_STEPS),
    ),
    "rmsprop": Setting(functools.partial(optax.rmsprop, decay=0.9), rmsprop(0.9), (0.003, 0.03), _minimum),
    "adam": Setting(optax.adam, adam(), (0.01, 0.1), _minimum),
}
SIMPLE = {
    "persistence": baselines.persistence(),
    "lawa": baselines.lawa(),
    "linear": baselines.linear(),
    "log_time": baselines.log_time(),
    "exponential": baselines.exponential(),
    "dmd": baselines.dmd(),
}


def forecast_regressions(folder, config, num_problems: int = 4, num_runs: int = 16) -> None:
    """Fits to runs of some regressions, forecasts runs of others, and adds a table an optimizer."""
    seed, fit_seeds, fit_steps = config.seed, config.fit_seeds, config.synthetic_steps
    keys = jax.random.split(jax.random.key(seed), 2 * num_problems)
    problems = [linear_regression(key, dim=DIM) for key in keys]
    for name in tqdm(config.synthetic, desc="forecast linear regressions"):
        setting = SETTINGS[name]
        learned, unseen = problems[:num_problems], problems[num_problems:]
        train = [_recorded(setting, task, num_runs, seed) for task in learned]
        windows = [observed(cohort, FRACTIONS) for cohort in train]
        field, keys_fit = (
            flow_map(batch_size=1024),
            [jax.random.fold_in(jax.random.key(seed), k) for k in range(fit_seeds)],
        )
        fits = [fit(key, field, windows, num_steps=fit_steps)[0] for key in keys_fit]
        errors = {}  # row: [runs] of every fit
        for task in unseen:
            cohort = _recorded(setting, task, num_runs, seed + 1)
            ends = jax.vmap(functools.partial(setting.end, task))(
                cohort.runs.weights[:, 0], cohort.runs.learning_rate[:, 1]
            )
            rows = {row: [forecast] for row, forecast in _simply(cohort).items()}
            rows["gfm_optimizer_aware"] = [_optimizer_aware(setting, cohort)]
            part = observed(cohort, (PREFIX,))
            rows["gfm_flow_map"] = [forecast_windows(params, part) for params in fits]
            rows["oracle_final"] = [Forecast(cohort.runs.weights[:, -1])]
            for row, forecasts in rows.items():
                scored = [_errors(cohort, forecast, ends) for forecast in forecasts]
                errors.setdefault(row, []).append(scored)
        for row, by_task in errors.items():
            per_fit = np.concatenate(by_task, axis=-1)  # [fits, metrics, runs]
            folder.add(f"synthetic/{name}", row, rel_mse=per_fit[:, 0].mean(-1), to_closed_form=per_fit[:, 1].mean(-1))


def _recorded(setting, task, num_runs, seed) -> Cohort:
    key_runs, key_rates = jax.random.split(jax.random.key(seed))
    low, high = setting.rates
    rates = low * (high / low) ** jax.random.uniform(key_rates, (num_runs, 1)) * jnp.ones(NUM_STEPS)
    saves = save_steps(NUM_STEPS, NUM_SAVES)
    runs = jax.device_get(record(jax.random.split(key_runs, num_runs), task, setting.optimizer, rates, saves))
    return Cohort("linear", task, [None] * num_runs, runs._replace(state=None), [(runs, np.arange(num_runs))])


def _simply(cohort):
    alone = ("exponential", "dmd")  # programs with LAPACK calls compile apart, see stages.py
    together = {row: f for row, f in SIMPLE.items() if row not in alone}
    found = {}
    for program in (together, *({row: SIMPLE[row]} for row in alone)):
        found |= forecast_cohort(program, dict.fromkeys(program, ()), cohort, PREFIX, simple=True)
    return {row: found[row] for row in SIMPLE}


def _optimizer_aware(setting, cohort):
    # All runs with the optimizer's slots: only this forecaster may see them, since it knows what they mean.
    whole = cohort._replace(runs=cohort.batches[0][0])
    forecaster = _optimizer_flow(setting.field)
    return forecast_cohort({"flow": forecaster}, {"flow": ()}, whole, PREFIX, simple=True)["flow"]


@functools.cache  # one forecaster an optimizer, so that it compiles once
def _optimizer_flow(field):
    return optimizer_flow(field, num_steps=round(NUM_STEPS * (1 - PREFIX)))


def _errors(cohort, forecast, ends):
    """(squared error relative to persistence, the same with the end in closed form as the truth), [runs] each."""
    runs, squared = cohort.runs, lambda x: np.asarray((x**2).sum(-1))
    last, final = runs.weights[:, save_at(runs, PREFIX)], runs.weights[:, -1]
    weights, ends = np.asarray(forecast.weights), np.asarray(ends)
    return [squared(weights - final) / squared(last - final), squared(weights - ends) / squared(last - ends)]
