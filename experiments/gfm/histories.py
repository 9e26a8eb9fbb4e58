"""Predictors that learn from other runs, but look at nothing of a run except each weight's own history."""

from experiments.gfm.evaluate import forecast_cohort, stopwatch
from experiments.gfm.exam import Exam, Ledger, enter, fit_keys, progress
from experiments.side_by_side import side_by_side
from gfm_jax.base import Forecaster
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.forecasting import baselines, nowcast

__all__ = ["HISTORIES", "learn_histories"]

HISTORIES = ("lfd2", "introspection", "wnn", "lstm", "transformer")
SEQUENCES = ("lstm", "transformer")


def learn_histories(exam: Exam) -> Ledger:
    """Fits each of them `fit_seeds` times, and scores it on the cohorts held out."""
    config, ledger, histories = exam.config, Ledger({}, {}, {}), _predictors(exam.config)
    for seed, key in enumerate(fit_keys(config)):
        windows = exam.lessons.windows
        params = {row: fit(key, f, windows, **progress(exam, row, seed))[0] for row, f in histories.items()}
        if seed == 0:  # how long a forecast takes does not hang on what was learned
            for row, forecaster in histories.items():
                ledger.stopwatches[row] = stopwatch(forecaster, params[row], exam.groups[0], config.prefixes[0])
        forecast = lambda work, params=params: forecast_cohort(histories, params, *work)
        for prefix in config.prefixes:
            parts = list(side_by_side(forecast, [(group, prefix) for group in exam.groups]))
            for row in histories:
                enter(ledger, exam, row, prefix, [part[row] for part in parts])
    return ledger


def _predictors(config) -> dict[str, Forecaster]:
    histories = {}
    for name in config.histories:
        if name == "lfd2":
            histories[name] = baselines.lfd2(config.prefixes)
        else:  # a sequence model spends on each weight what the others spend on four
            batch = config.batch_rows // 4 if name in SEQUENCES else config.batch_rows
            forecaster = getattr(nowcast, name)(batch_size=batch)
            histories[name] = with_defaults(forecaster, num_steps=config.nowcast_steps)
    return histories
