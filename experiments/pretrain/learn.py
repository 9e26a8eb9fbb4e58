"""The fit: in weight space, then on in both spaces at once."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.pretrain.zoo import TrainingSet
from gfm_jax import forecasting
from gfm_jax.base import Forecaster, Learner, config_of
from gfm_jax.fitting import fit
from gfm_jax.forecasting.calibration import calibrate_windows
from gfm_jax.forecasting.field_forecaster import Params

__all__ = ["Data", "both_spaces", "learn", "method"]


class Data(NamedTuple):
    """Windows of some weights of all runs, and of all weights of some runs."""

    windows: list
    whole: list


def method(config) -> Forecaster:
    """The forecaster that ships."""
    return forecasting.flow_map(head=config.head, widths=config.widths, batch_size=config.batch_size)


def both_spaces(config, losses) -> Learner:
    r"""Learns from the loss at forecast weights of some runs, without forgetting what it learned from the weights of all:

    .. math:: \log \frac{L(\hat w)}{L(w_n)} + \lambda e + E\,\mathrm{huber}(\sqrt\omega (X_{s,t}(x_s) - x_t))
    """
    of_weights = method(config).learner
    of_losses = forecasting.function_space(
        losses, head=config.head, widths=config.widths, num_runs=config.function_runs, weight=config.weight
    ).learner

    def sample(key, data):
        keys = jax.random.split(key)
        return of_weights.sample(keys[0], data.windows), of_losses.sample(keys[1], data.whole)

    def loss(params, key, batch):
        keys = jax.random.split(key)
        parts = of_weights.loss(params, keys[0], batch[0])[0], of_losses.loss(params, keys[1], batch[1])[0]
        return parts[0] + parts[1], {"weights": parts[0], "losses": parts[1]}

    return Learner(
        init=lambda key, data: of_weights.init(key, data.windows),
        sample=sample,
        loss=loss,
        config=config_of("experiments.pretrain.both_spaces", weights=of_weights.config, losses=of_losses.config),
        defaults=of_losses.defaults,
        frozen=of_losses.frozen,
    )


def learn(config, key, training: TrainingSet, folder, progress) -> tuple[Params, Params]:
    """Fits once: the parameters in weight space, and those in both spaces, both with intervals from the runs held out."""
    key_weights, key_both = jax.random.split(key)
    start, _ = fit(
        key_weights,
        method(config),
        training.windows,
        num_steps=config.field_steps,
        folder=folder / "weights",
        progress=progress,
    )
    start = start._replace(layouts=())  # those of the zoo say nothing of a user's network
    data = Data(training.windows, training.whole)
    params, _ = fit(
        key_both,
        both_spaces(config, training.losses),
        data,
        num_steps=config.function_steps,
        start=start,
        folder=folder / "both",
        progress=progress,
    )
    return tuple(with_intervals(config, fitted, training) for fitted in (start, params))


def with_intervals(config, params: Params, training: TrainingSet) -> Params:
    """Intervals from the runs of the zoo that it was not fitted to."""
    rows = [np.arange(len(part.run)) for part in training.held]
    return calibrate_windows(params, training.held, rows, coverage=config.coverage)[0]
