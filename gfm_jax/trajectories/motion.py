"""How parts of the weights have moved, as features that know neither their size nor their place."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Layout
from gfm_jax.pytrees import segment_ids
from gfm_jax.trajectories.evidence import TINY, Evidence

__all__ = ["Motion", "Parts", "log_ratio", "motion", "moved_in", "tensors_of", "whole"]


class Parts(NamedTuple):
    """Means over parts of the weights, [..., dim] -> [parts, ...], and the way back, [parts, ...] -> [..., dim]."""

    mean: Callable[[Array], Array]
    rms: Callable[[Array], Array]
    spread_out: Callable[[Array], Array]


class Motion(NamedTuple):
    """The steps from save to save within a prefix.

    Attributes:
      steps: weights of a save less those of the one before it; zero where not seen.
      recent: 1 for the steps of the second half of the prefix, 0 for the others.
      noise: standard deviation of the recent steps of every weight.
    """

    steps: Float[Array, "steps dim"]
    recent: Float[Array, "steps 1"]
    noise: Float[Array, " dim"]


def tensors_of(layout: Layout) -> Parts:
    """Every tensor of a layout as a part."""
    segment, stops = jnp.asarray(segment_ids(layout)), np.cumsum(layout.sizes)
    slices = [slice(stop - size, stop) for stop, size in zip(stops, layout.sizes, strict=True)]
    return _parts(lambda x: jnp.stack([x[..., tensor].mean(-1) for tensor in slices]), lambda x: x[segment].T)


def whole() -> Parts:
    """All weights as one part."""
    return _parts(lambda x: x.mean(-1)[None], lambda x: x[0][..., None])


def _parts(mean, spread_out):
    return Parts(mean, lambda x: jnp.sqrt(mean(x**2)), spread_out)


def moved_in(seen: Evidence, second_half: Float[Array, " saves"]) -> Motion:
    """The steps that were observed, told from the saves of the second half of the prefix (1) and the others (0)."""
    steps = jnp.diff(seen.moved, axis=0)
    recent = (second_half[:-1] * seen.seen[1:])[:, None]
    mean_step = (recent * steps).sum(0) / recent.sum()
    noise = jnp.sqrt((recent * (steps - mean_step) ** 2).sum(0) / recent.sum())
    return Motion(steps, recent, noise)


def log_ratio(a, b):
    """log(a / b) of lengths, with a floor of a thousandth."""
    return jnp.log((a + 1e-3 * b + TINY) / (b + TINY))


def motion(seen: Evidence, moved: Float[Array, "displacements dim"], steps: Motion, parts: Parts) -> Array:
    """How each part has moved, in units of its way through the second half of the prefix: turns, noise, speeds, whether
    successive steps agree, and how far the optimizer's own steps would carry. [parts, 17].

    Args:
      seen: what was observed.
      moved: displacements since each eighth of the prefix, since the last save and the one before.
      steps: from save to save.
      parts: of the weights.
    """
    scale = jnp.maximum(parts.rms(moved[4]), TINY)
    features = [
        _turns(seen, moved, parts),
        log_ratio(parts.rms(steps.noise), scale)[:, None],
        log_ratio(_speeds(seen, steps.steps, parts), scale[:, None]),
        _autocorrelation(steps, parts)[:, None],
        _strides(seen, scale, parts),
    ]
    return jnp.concatenate(features, axis=-1)


def _turns(seen, moved, parts):
    """How the displacements of the four quarters of the prefix compare in length, and where they point. [parts, 8]."""
    until = jnp.concatenate([moved[0:8:2], jnp.zeros_like(moved[:1])])
    quarters = until[:-1] - until[1:]
    lengths = parts.rms(quarters)
    pairs = [
        (quarters[3], quarters[2]),
        (quarters[2] + quarters[3], quarters[0] + quarters[1]),
        (moved[8], moved[9] - moved[8]),
        (seen.optimizer, moved[4]),
        (seen.descent, moved[4]),
    ]
    left, right = (jnp.stack(side) for side in zip(*pairs, strict=True))
    cosines = parts.mean(left * right) / (parts.rms(left) * parts.rms(right) + TINY)
    return jnp.concatenate([log_ratio(lengths[:, 1:], lengths[:, :-1]), cosines], axis=-1)


def _speeds(seen, steps, parts):
    """Root mean square speed, per length of the prefix, of the last two segments and of shares of the prefix. [parts, 5]."""
    squares = parts.mean(steps**2) / jnp.maximum(jnp.diff(seen.step), 1e-3) ** 2
    last, until = seen.seen.sum() - 1, seen.progress[1:]
    save = jnp.arange(1, len(seen.step))
    shares = [until > 7 / 8, (until > 3 / 4) & (until <= 7 / 8), until > 1 / 2]
    when = jnp.stack([save == last, save == last - 1, *(share & seen.seen[1:] for share in shares)]).astype(jnp.float32)
    return jnp.sqrt(squares @ when.T / jnp.maximum(when.sum(1), 1)) * seen.step[last]


def _autocorrelation(steps, parts):
    """How far successive steps agree: negative where the run oscillates. [parts]."""
    recent, each = steps.recent, steps.steps
    successive = (recent[1:] * recent[:-1] * each[1:] * each[:-1]).sum(0)
    return parts.mean(successive) / (parts.mean((recent * each**2).sum(0)) + TINY)


def _strides(seen, scale, parts):
    """How far the optimizer's own step would carry in as many steps as were observed, and the gradient against the root of
    its mean square, which falls behind after a spike. [parts, 2]."""
    last = seen.seen.sum() - 1
    rate = (seen.time[last] - seen.time[last - 1]) / (seen.step[last] - seen.step[last - 1])
    carried = parts.rms(seen.optimizer) * rate * seen.step[last]
    against = log_ratio(parts.rms(seen.descent), parts.rms(jnp.sqrt(seen.second_moment)))
    return jnp.stack([log_ratio(carried, scale), against], axis=-1)
