"""What an observed prefix says about where each weight is going: candidate directions, and features of every part."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfm_jax.base import Context, Layout, Trajectory
from gfm_jax.pytrees import segment_ids
from gfm_jax.trajectories.evidence import Evidence, evidence

__all__ = ["DIRECTIONS", "context", "line_weights", "observe"]

DIRECTIONS = (
    *(f"since_{j}_8" for j in range(8)),  # displacement since each eighth of the prefix
    "since_last",
    "since_second_last",
    "log_slope",  # slope against log time over the last three quarters
    "slope",  # slope against time over the last half
    "average",  # towards the mean of the last eighth
    "optimizer",  # the optimizer's own direction
    "descent",  # against the gradient
)
POOLED = tuple(DIRECTIONS.index(name) for name in ("since_4_8", "since_6_8", "since_second_last"))
TINY = 1e-12


def line_weights(clock: Float[Array, " saves"], inside: Float[Array, " saves"]) -> Float[Array, " saves"]:
    r"""The slope of a least-squares line, as weights on the saves.

    .. math:: \text{slope} = \sum_k a_k w_k, \qquad a_k = \frac{m_k (c_k - \bar c)}{\sum_j m_j (c_j - \bar c)^2}

    Args:
      clock: the time of each save, in any unit.
      inside: 1 for the saves to fit, 0 for the others.

    Returns:
      a, which sums to zero.
    """
    mean = inside @ clock / jnp.maximum(inside.sum(), 1)
    centred = inside * (clock - mean)
    return centred / jnp.maximum(centred @ centred, TINY)


class _Tensors(NamedTuple):
    """Means over the tensors of a layout, [..., dim] -> [tensors, ...], and the way back, [tensors, ...] -> [..., dim]."""

    mean: Callable[[Array], Array]
    rms: Callable[[Array], Array]
    spread_out: Callable[[Array], Array]


def _tensors(layout: Layout) -> _Tensors:
    segment, stops = jnp.asarray(segment_ids(layout)), np.cumsum(layout.sizes)
    slices = [slice(stop - size, stop) for stop, size in zip(stops, layout.sizes, strict=True)]
    mean = lambda x: jnp.stack([x[..., tensor].mean(-1) for tensor in slices])
    return _Tensors(mean, lambda x: jnp.sqrt(mean(x**2)), lambda x: x[segment].T)


def observe(run: Trajectory, last: Int[Array, ""] | int | None = None) -> Context:
    """The context of a run observed up to save `last`; nothing later is read.

    Args:
      run: a run with weights and layout; whatever else was recorded helps.
      last: index of the last observed save, at least 1; by default the run's last.

    Returns:
      Its context; lengths are in units of `scale`, how far each tensor moved in the second half of the prefix.

    Raises:
      ValueError: for fewer than two saves, or without weights or layout.
    """
    return context(evidence(run, last), run.layout)


def context(seen: Evidence, layout: Layout) -> Context:
    """The context that the evidence gives: directions, and features of every coordinate, tensor and run.

    Args:
      seen: what was observed.
      layout: of its weights.

    Returns:
      The context. The directions that come from the saves are linear in them: one product A(step, time) @ moved.
    """
    tensors = _tensors(layout)
    last = seen.seen.sum() - 1
    progress = jnp.where(seen.seen, seen.step / seen.step[last], jnp.inf)
    inside = lambda start: (seen.seen & (progress >= start)).astype(jnp.float32)

    past = jnp.array([jnp.argmin(jnp.abs(progress - j / 8)) for j in range(8)])
    past = jnp.concatenate([past, jnp.maximum(last - jnp.array([1, 2]), 0)])
    saves = jnp.concatenate(
        [
            -jax.nn.one_hot(past, len(seen.step)),
            line_weights(jnp.log(jnp.maximum(seen.time, seen.time[1])), inside(1 / 4))[None],
            line_weights(seen.time / seen.time[last], inside(1 / 2))[None],
        ]
    )
    moved = jnp.concatenate([saves @ seen.moved, seen.average[None]])
    scale = jnp.maximum(tensors.rms(moved[4]), TINY)
    by_optimizer = jnp.stack([seen.optimizer, seen.descent])
    of_unit_size = by_optimizer / jnp.maximum(tensors.spread_out(tensors.rms(by_optimizer)), TINY)
    directions = jnp.concatenate([moved / tensors.spread_out(scale), of_unit_size])

    steps = jnp.diff(seen.moved, axis=0)
    recent = (inside(1 / 2)[:-1] * seen.seen[1:])[:, None]
    mean_step = (recent * steps).sum(0) / recent.sum()
    noise = jnp.sqrt((recent * (steps - mean_step) ** 2).sum(0) / recent.sum())

    ends = jnp.stack([seen.origin, seen.moved[0] + seen.origin])
    relative = jnp.stack([noise, jnp.sqrt(seen.second_moment)])
    coordinate = [
        jnp.arcsinh(directions),
        ends / jnp.maximum(tensors.spread_out(tensors.rms(ends)), TINY)[:1],
        _log_ratio(relative, tensors.spread_out(tensors.rms(relative))),
        jnp.arcsinh(_of_units(directions[jnp.array(POOLED)], layout)),
    ]
    tensor = [
        jnp.log((scale + TINY) / (tensors.rms(seen.origin) + TINY))[:, None],
        _turns(seen, moved, tensors),
        _log_ratio(tensors.rms(noise), scale)[:, None],
        _log_ratio(_speeds(seen, steps, progress, tensors), scale[:, None]),
        _autocorrelation(steps, recent, tensors)[:, None],
        _kind_and_depth(layout),
        jnp.log(jnp.asarray(layout.sizes, jnp.float32))[:, None],
    ]
    segment = jnp.asarray(segment_ids(layout))
    return Context(
        coordinate=jnp.concatenate(coordinate).T,
        tensor=jnp.concatenate(tensor, axis=-1),
        run=seen.run,
        directions=directions.T,
        scale=scale[segment],
        origin=seen.origin,
        segment=segment,
    )


def _log_ratio(a, b):
    return jnp.log((a + 1e-3 * b + TINY) / (b + TINY))


def _of_units(x, layout):
    """Of [k, dim] displacements: for each weight of a matrix [inputs, outputs] the root mean square and the mean over the
    weights of its output unit, and over those of its input unit; zero for vectors. [4 k, dim]."""
    parts, start = [], 0
    for size, shape in zip(layout.sizes, layout.shapes, strict=True):
        own = x[:, start : start + size]
        start += size
        if len(shape) < 2:
            parts.append(jnp.zeros((4 * len(x), size)))
            continue
        own = own.reshape(len(x), -1, shape[-1])
        rms = lambda axis, own=own: jnp.sqrt((own**2).mean(axis, keepdims=True))
        mean = lambda axis, own=own: own.mean(axis, keepdims=True)
        means = [rms(1), mean(1), rms(2), mean(2)]
        parts.append(jnp.concatenate([jnp.broadcast_to(m, own.shape).reshape(len(x), size) for m in means]))
    return jnp.concatenate(parts, axis=-1)


def _turns(seen, moved, tensors):
    """How the displacements of the four quarters of the prefix compare in length, and where they point. [tensors, 8]."""
    until = jnp.concatenate([moved[0:8:2], jnp.zeros_like(moved[:1])])
    quarters = until[:-1] - until[1:]
    lengths = tensors.rms(quarters)
    pairs = [
        (quarters[3], quarters[2]),
        (quarters[2] + quarters[3], quarters[0] + quarters[1]),
        (moved[8], moved[9] - moved[8]),
        (seen.optimizer, moved[4]),
        (seen.descent, moved[4]),
    ]
    left, right = (jnp.stack(side) for side in zip(*pairs, strict=True))
    cosines = tensors.mean(left * right) / (tensors.rms(left) * tensors.rms(right) + TINY)
    return jnp.concatenate([_log_ratio(lengths[:, 1:], lengths[:, :-1]), cosines], axis=-1)


def _speeds(seen, steps, progress, tensors):
    """Root mean square speed, per length of the prefix, of the last two segments and of shares of the prefix. [tensors, 5]."""
    squares = tensors.mean(steps**2) / jnp.maximum(jnp.diff(seen.step), 1e-3) ** 2
    last, until = seen.seen.sum() - 1, progress[1:]
    save = jnp.arange(1, len(progress))
    shares = [until > 7 / 8, (until > 3 / 4) & (until <= 7 / 8), until > 1 / 2]
    when = jnp.stack([save == last, save == last - 1, *(share & seen.seen[1:] for share in shares)]).astype(jnp.float32)
    return jnp.sqrt(squares @ when.T / jnp.maximum(when.sum(1), 1)) * seen.step[last]


def _autocorrelation(steps, recent, tensors):
    """Of each tensor, how far successive steps agree: negative where the run oscillates. [tensors]."""
    successive = (recent[1:] * recent[:-1] * steps[1:] * steps[:-1]).sum(0)
    return tensors.mean(successive) / (tensors.mean((recent * steps**2).sum(0)) + TINY)


def _kind_and_depth(layout):
    """Of each tensor: is it a vector such as a bias, and how deep is its layer, from 0 for the first to 1 for the last."""
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in layout.names))
    depth = [layers.index(name.rpartition("/")[0]) / max(len(layers) - 1, 1) for name in layout.names]
    is_vector = [float(len(shape) < 2) for shape in layout.shapes]
    return jnp.stack([jnp.array(is_vector), jnp.array(depth)], axis=-1)
