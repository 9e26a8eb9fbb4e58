"""Nowcasters: networks that look at nothing but one weight's own history."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gfm_jax.base import Forecast, Forecaster, Learner
from gfm_jax.checks import check_choices, check_count
from gfm_jax.fitting import fit
from gfm_jax.forecasting.displacement import relative_l1
from gfm_jax.forecasting.features import observe
from gfm_jax.forecasting.forecaster import forecaster_of
from gfm_jax.forecasting.windows import cut_all, draw_pairs
from gfm_jax.networks import LSTM, MLP, Transformer

__all__ = ["introspection", "lstm", "transformer", "wnn"]


class Introspection(nn.Module):
    """Four points of the history through one hidden layer of 100 (Sinha et al., arXiv 1704.04959)."""

    @nn.compact
    def __call__(self, history: Float[Array, "*n length"], ahead: Float[Array, "*n"]):
        length = history.shape[-1]
        points = history[..., jnp.array([0, length * 4 // 10, length * 7 // 10, length - 1])]
        return MLP((100, 1), zero_output=True)(jnp.concatenate([points, ahead[..., None]], -1))[..., 0]


class TwoStreams(nn.Module):
    """Weights and their differences through a stream each, then together (Weight Nowcaster Network, ICML 2023)."""

    width: int = 32

    @nn.compact
    def __call__(self, history, ahead):
        recent = history[..., -5:]
        weights = nn.relu(nn.Dense(self.width, name="weights")(recent))
        differences = nn.relu(nn.Dense(self.width, name="differences")(jnp.diff(recent, axis=-1)))
        together = jnp.concatenate([weights, differences, ahead[..., None]], -1)
        return MLP((self.width, 1), zero_output=True)(together)[..., 0]


class Sequence(nn.Module):
    """The whole history as a sequence, by an LSTM or a Transformer."""

    model: nn.Module

    @nn.compact
    def __call__(self, history, ahead):
        steps = jnp.diff(history, axis=-1, prepend=history[..., :1])
        channels = jnp.stack([history, steps, jnp.broadcast_to(ahead[..., None], history.shape)], axis=-1)
        return self.model(channels)[..., 0]


class Schooling(NamedTuple):
    """How a nowcaster is fitted: fractions of a run observed, points of history, steps, batch and learning rate."""

    fractions: tuple[float, ...] = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
    num_points: int = 16
    num_steps: int = 1000
    batch_size: int = 2048
    peak_rate: float = 2e-3


def introspection(**schooling) -> Forecaster:
    """Introspection: one hidden layer on four points of a weight's history."""
    return _nowcaster(Introspection(), _schooling(schooling))


def wnn(**schooling) -> Forecaster:
    """The Weight Nowcaster Network's two streams, on the last five points, fitted to the runs given."""
    return _nowcaster(TwoStreams(), _schooling(schooling))


def lstm(**schooling) -> Forecaster:
    """An LSTM over a weight's history, at half as many points as the others see: each costs it more."""
    return _nowcaster(Sequence(LSTM(width=16)), _schooling({"num_points": 8} | schooling))


def transformer(**schooling) -> Forecaster:
    """A Transformer over a weight's history, at half as many points as the others see: each costs it more."""
    return _nowcaster(Sequence(Transformer(width=16)), _schooling({"num_points": 8} | schooling))


def past_saves(step: Float[Array, " saves"], last, num_points: int) -> Int[Array, " num_points"]:
    """The saves nearest to even fractions of the steps up to save `last`; of two that are as near, the earlier."""
    fractions = jnp.arange(1, num_points + 1) / num_points
    nearest = jnp.ceil(jnp.interp(fractions * step[last], step, jnp.arange(len(step))) - 0.5)
    return jnp.minimum(nearest.astype(jnp.int32), last)


def _schooling(choices) -> Schooling:
    check_choices(Schooling, choices)
    schooling = Schooling(**choices)
    for name in ("num_points", "num_steps", "batch_size"):
        check_count(name, getattr(schooling, name))
    if not schooling.peak_rate > 0:
        raise ValueError(f"peak_rate: expected a positive number, got {schooling.peak_rate}")
    return schooling


def _nowcaster(network: nn.Module, schooling: Schooling) -> Forecaster:
    """A forecaster of each weight from `num_points` even points of its history and the log of the horizon.

    Lengths are in units of how far the weight's tensor has lately moved, errors relative to how far the run moved: the same
    units and the same loss as the fields of this library have.
    """
    for name in ("num_points", "num_steps", "batch_size"):
        if getattr(schooling, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(schooling, name)}")
    points = functools.partial(past_saves, num_points=schooling.num_points)

    def sample(key, windows):
        keys = jax.random.split(key, len(windows))
        num = max(schooling.batch_size // len(windows), 1)
        parts = []
        for key, part in zip(keys, windows, strict=True):
            pairs = draw_pairs(key, part, num, 1.0, 0.5)
            run, last, coordinate = (index[:, None] for index in pairs.place)
            saves = jax.vmap(points)(part.clock.step[run[:, 0]], last[:, 0])
            past = part.weights[run, saves, coordinate] - pairs.features.origin[:, None]
            ahead = jnp.log(pairs.t.step / pairs.now.step)
            parts.append((past / pairs.features.scale[:, None], ahead, pairs.x_t, pairs.weight))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def loss(params, key, batch):
        past, ahead, target, weight = batch
        return relative_l1(network.apply(params, past, ahead), target, weight), {}

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(schooling.peak_rate, schooling.num_steps)),
    )

    init = lambda key, windows: network.init(key, jnp.zeros((1, schooling.num_points)), jnp.zeros(1))
    learner = Learner(init, sample, loss)

    def fit_to(key, runs, losses=None, *, folder=None, mesh=None, progress=False):
        del losses
        windows = cut_all(runs, schooling.fractions)
        options = {"folder": folder, "mesh": mesh, "progress": progress}
        return fit(key, learner, windows, optimizer=optimizer, num_steps=schooling.num_steps, **options)[0]

    def forecast(params, prefix, horizon):
        weights = prefix.weights.astype(jnp.float32)
        unit = observe(prefix).scale
        saves = points(prefix.step.astype(jnp.float32), len(prefix.step) - 1)
        past = ((weights[saves] - weights[-1][None]) / unit[None]).T  # [dim, num_points], in units
        ahead = jnp.broadcast_to(jnp.log(horizon.step / prefix.step[-1]), unit.shape)
        return Forecast(weights[-1] + unit * jnp.asarray(network.apply(params, past, ahead)))

    return forecaster_of(fit_to, forecast)
