"""Nowcasters: networks that look at nothing but one weight's own history."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gfm_jax.base import Defaults, Forecast, Forecaster, Learner, config_of
from gfm_jax.checks import check_count
from gfm_jax.forecasting.displacement import relative_l1
from gfm_jax.forecasting.draws import draw_pairs
from gfm_jax.forecasting.features import observe
from gfm_jax.forecasting.forecaster import forecaster_of
from gfm_jax.forecasting.windows import cut_all
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


class OfSequence(nn.Module):
    """The whole history as a sequence, by an LSTM or a Transformer."""

    model: nn.Module

    @nn.compact
    def __call__(self, history, ahead):
        steps = jnp.diff(history, axis=-1, prepend=history[..., :1])
        channels = jnp.stack([history, steps, jnp.broadcast_to(ahead[..., None], history.shape)], axis=-1)
        return self.model(channels)[..., 0]


FRACTIONS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6)


def nowcaster_optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Adam on a cosine, gradients scaled to a norm of at most 1."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    )


DEFAULTS = Defaults(num_steps=1000, learning_rate=2e-3, optimizer=nowcaster_optimizer, ema_decay=0.99)


def introspection(
    *, fractions: Sequence[float] = FRACTIONS, num_points: int = 16, batch_size: int = 2048
) -> Forecaster:
    """Introspection: one hidden layer on four points of a weight's history.

    Args:
      fractions: fractions of a run that are observed in training, each in (0, 1).
      num_points: points of the history, at least 1.
      batch_size: weights in a batch, at least 1.

    Returns:
      A forecaster, fitted by `fit(key, forecaster, runs)` to a batch of runs, or to several of one layout each.

    Raises:
      ValueError: for fewer than one point or weight.

    >>> params = jax.eval_shape(introspection().learner.init, jax.random.key(0), None)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # 5 -> 100 -> 1
    701
    """
    return _nowcaster("introspection", Introspection(), fractions, num_points, batch_size)


def wnn(*, fractions: Sequence[float] = FRACTIONS, num_points: int = 16, batch_size: int = 2048) -> Forecaster:
    """The Weight Nowcaster Network's two streams, on the last five points, fitted to the runs given.

    Args, returns, raises: as `introspection`.

    >>> params = jax.eval_shape(wnn().learner.init, jax.random.key(0), None)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # 5 -> 32 and 4 -> 32, then 65 -> 32 -> 1
    2497
    """
    return _nowcaster("wnn", TwoStreams(), fractions, num_points, batch_size)


def lstm(*, fractions: Sequence[float] = FRACTIONS, num_points: int = 8, batch_size: int = 2048) -> Forecaster:
    """An LSTM over a weight's history, at half as many points as the others see: each costs it more.

    Args, returns, raises: as `introspection`.

    >>> params = jax.eval_shape(lstm().learner.init, jax.random.key(0), None)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # four gates of 3 + 16 -> 16, then 16 -> 1
    1297
    """
    return _nowcaster("lstm", OfSequence(LSTM(width=16)), fractions, num_points, batch_size)


def transformer(*, fractions: Sequence[float] = FRACTIONS, num_points: int = 8, batch_size: int = 2048) -> Forecaster:
    """A Transformer over a weight's history, at half as many points as the others see: each costs it more.

    Args, returns, raises: as `introspection`.

    >>> params = jax.eval_shape(transformer().learner.init, jax.random.key(0), None)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # one block of width 16
    2465
    """
    return _nowcaster("transformer", OfSequence(Transformer(width=16)), fractions, num_points, batch_size)


def past_saves(step: Float[Array, " saves"], last, num_points: int) -> Int[Array, " num_points"]:
    """The saves nearest to even fractions of the steps up to save `last`; of two that are as near, the earlier."""
    fractions = jnp.arange(1, num_points + 1) / num_points
    nearest = jnp.ceil(jnp.interp(fractions * step[last], step, jnp.arange(len(step))) - 0.5)
    return jnp.minimum(nearest.astype(jnp.int32), last)


def _nowcaster(name: str, network: nn.Module, fractions, num_points: int, batch_size: int) -> Forecaster:
    """A forecaster of each weight from `num_points` even points of its history and the log of the horizon.

    Lengths are in units of how far the weight's tensor has lately moved, errors relative to how far the run moved: the same
    units and the same loss as the fields of this library have.
    """
    fractions = tuple(fractions)
    num_points, batch_size = check_count("num_points", num_points), check_count("batch_size", batch_size)
    points = functools.partial(past_saves, num_points=num_points)

    def sample(key, windows):
        keys = jax.random.split(key, len(windows))
        num = max(batch_size // len(windows), 1)
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

    learner = Learner(
        init=lambda key, windows: network.init(key, jnp.zeros((1, num_points)), jnp.zeros(1)),
        sample=sample,
        loss=loss,
        config=config_of(
            f"forecasting.nowcast.{name}", fractions=fractions, num_points=num_points, batch_size=batch_size
        ),
        defaults=DEFAULTS,
        prepare=lambda key, runs: cut_all(runs, fractions),
    )

    def forecast(params, prefix, horizon):
        weights = prefix.weights.astype(jnp.float32)
        unit = observe(prefix).scale
        saves = points(prefix.step.astype(jnp.float32), len(prefix.step) - 1)
        past = ((weights[saves] - weights[-1][None]) / unit[None]).T  # [dim, num_points], in units
        ahead = jnp.broadcast_to(jnp.log(horizon.step / prefix.step[-1]), unit.shape)
        return Forecast(weights[-1] + unit * jnp.asarray(network.apply(params, past, ahead)))

    return forecaster_of(learner, forecast)
