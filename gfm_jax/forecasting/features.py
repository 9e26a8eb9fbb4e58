"""What an observed prefix says about where each weight is going: candidate directions, and features of every part."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from gfm_jax.base import Features, Layout, Trajectory
from gfm_jax.forecasting.evidence import HUGE, TINY, Evidence, complete, evidence, root
from gfm_jax.forecasting.inputs import as_run, save_index
from gfm_jax.forecasting.motion import grams, lengths, log_ratio, motion, recent_steps, since
from gfm_jax.forecasting.names import KRYLOV, OF_UNITS, POOLED
from gfm_jax.pytrees import depths, output_axes, segment_ids

__all__ = ["features_of", "from_first_motion", "line_weights", "observe"]

STILL = 1e-5  # of its size: a clock that moves less over a stretch stands still to float32
PACED = ("since_4_8", "since_7_8", "since_second_last")


@jax.default_matmul_precision("highest")
def line_weights(clock: Float[Array, " saves"], inside: Float[Array, " saves"]) -> Float[Array, " saves"]:
    r"""The slope of a least-squares line, as weights on the saves.

    .. math:: \text{slope} = \sum_k a_k w_k, \qquad a_k = \frac{m_k (c_k - \bar c)}{\sum_j m_j (c_j - \bar c)^2}

    Args:
      clock: the time of each save, in any unit.
      inside: 1 for the saves to fit, 0 for the others.

    Returns:
      a, which sums to zero; zeros where the clock stands still.

    >>> clock, weights = jnp.array([0.0, 1.0, 2.0]), jnp.array([5.0, 8.0, 11.0])
    >>> round(float(line_weights(clock, jnp.ones(3)) @ weights), 3)
    3.0
    """
    # Since the last save and in units of the whole stretch, so that rounding and the unit of the clock do not matter.
    since_last = clock - clock[-1]
    span = jnp.max(inside * jnp.abs(since_last))
    moves = span > STILL * jnp.max(inside * jnp.abs(clock))
    unit = jnp.where(moves, span, 1)
    clock = since_last / unit
    mean = inside @ clock / jnp.maximum(inside.sum(), 1)
    centred = inside * (clock - mean)
    return jnp.where(moves, centred / (jnp.maximum(centred @ centred, TINY) * unit), 0)


def from_first_motion(time: Float[Array, " saves"], seen: Bool[Array, " saves"]) -> Float[Array, " saves"]:
    """Times from the first positive one on, whose logarithm is finite: as long as rates are 0 nothing moves.

    Args:
      time: of each save, from 0 on.
      seen: which saves were observed.

    >>> from_first_motion(jnp.array([0.0, 0.0, 2.0, 3.0]), jnp.ones(4, bool)).tolist()
    [2.0, 2.0, 2.0, 3.0]
    """
    first = jnp.where(seen & (time > 0), time, time.max()).min()
    return jnp.maximum(time, jnp.where(first > 0, first, 1))


def observe(run: Trajectory, last: Int[Array, ""] | int | None = None) -> Features:
    r"""The features of a run observed up to save `last`, by name; nothing later is read.

    Use it to look at what a forecast goes by; forecasters call it themselves. The directions from the saves are linear in them,

    .. math:: d_k = \sum_j A_{kj} (w_{j+1} - w_j) / \text{scale}

    Args:
      run: a run with weights and layout; whatever else was recorded helps.
      last: index of the last observed save, at least 1, or negative from the end; by default the run's last.

    Returns:
      Its features; lengths are in units of `scale`: how far each tensor moves in half the length of the prefix, at the
      pace of its second half, its last eighth or its last two saves, whichever is the least. So a spike of the loss does
      not remain the measure of a run that has since come to rest.

    Raises:
      ValueError: for fewer than two saves, a batch of runs, an index that is out of range, or without weights or layout.

    >>> weights = jnp.arange(9.0)[:, None] * jnp.ones(2)
    >>> layout = Layout(("bias",), ((2,),))
    >>> seen = observe(Trajectory(step=jnp.arange(9), time=0.1 * jnp.arange(9), weights=weights, layout=layout))
    >>> seen.directions["since_4_8"] * seen.scale
    Array([4., 4.], dtype=float32)
    """
    run = as_run(run)
    if run.weights is None or run.layout is None:
        raise ValueError("run: expected a trajectory with weights and a layout, got None for one of them")
    if run.weights.ndim != 2:
        raise ValueError(f"run: expected one run [saves, dim], got {run.weights.shape}; map over a batch with jax.vmap")
    saves = len(run.weights)
    if saves < 2:
        raise ValueError(f"run: expected at least two saves, got {saves}: one snapshot has no direction")
    last = save_index(saves, saves - 1 if last is None else last, least=1)
    return _observe_traced(run, last) if isinstance(last, Tracer) else _observe(run, last)


def _observe_traced(run, last):
    return features_of(evidence(complete(run, last), last), run.layout)


_observe = jax.jit(
    _observe_traced, static_argnums=1
)  # where called on its own: op by op it would take ten times as long


@jax.default_matmul_precision("highest")
def features_of(seen: Evidence, layout: Layout) -> Features:
    """The features that the evidence gives: of every coordinate, tensor and run, and the directions.

    Args:
      seen: what was observed.
      layout: of its weights.

    Returns:
      The features. The directions that come from the saves are linear in them: one product A(step, time) @ steps.
    """
    last = seen.seen.sum() - 1
    inside = lambda start: (seen.seen & (seen.progress >= start)).astype(jnp.float32)

    past = {f"since_{j}_8": jnp.argmin(jnp.abs(seen.progress - j / 8)) for j in range(8)}
    past |= {"since_last": jnp.maximum(last - 1, 0), "since_second_last": jnp.maximum(last - 2, 0)}
    time = seen.time / jnp.where(seen.time[last] > 0, seen.time[last], 1)
    saves = {name: -jax.nn.one_hot(save, len(seen.step)) for name, save in past.items()}
    saves["log_slope"] = line_weights(jnp.log(from_first_motion(seen.time, seen.seen)), inside(1 / 4))
    saves["slope"] = line_weights(time, inside(1 / 2))
    saves |= {f"average_since_{j}_8": inside(j / 8) / inside(j / 8).sum() for j in (4, 6)}
    by_steps = {name: since(weights) for name, weights in saves.items()}
    moved = dict(zip(by_steps, jnp.stack([*by_steps.values()]) @ seen.steps, strict=True)) | {"average": seen.average}
    segment = jnp.asarray(segment_ids(layout))
    rms = lambda x: root(_means(x**2, layout))  # over every tensor
    of_weights = lambda x: x[..., segment]
    gram = grams(seen, layout)
    age = jnp.stack([1 - seen.progress[past[name]] for name in PACED])[:, None]
    length = lengths(gram, jnp.stack([by_steps[name] for name in PACED]))[:, :-1]
    pace = jnp.where(age > 0, 0.5 * length / jnp.maximum(age, TINY), HUGE)
    scale = jnp.maximum(pace.min(0), 1e-4 * length[0] + TINY)
    of_unit_size = lambda x: x / jnp.maximum(of_weights(rms(x)), TINY)
    directions = {name: displacement / of_weights(scale) for name, displacement in moved.items()}
    by_optimizer = of_unit_size(jnp.stack([seen.optimizer, seen.descent]))
    directions |= dict(zip(("optimizer", "descent"), by_optimizer, strict=True))
    directions |= dict(zip(KRYLOV, of_unit_size(seen.krylov), strict=True))

    recent = recent_steps(seen)
    recent = recent / recent.sum()
    noise = root(recent @ (seen.steps - (recent @ seen.steps)[None]) ** 2)
    weight = jnp.maximum(of_weights(rms(seen.origin)), TINY)
    relative = lambda x: log_ratio(x, of_weights(rms(x)))
    of_units = jnp.arcsinh(_of_units(jnp.stack([directions[name] for name in POOLED]), layout))
    motions = motion(seen, by_steps, gram)
    tensor = {
        "scale": jnp.log((scale + TINY) / (rms(seen.origin) + TINY)),
        **{name: parts[:-1] for name, parts in motions.items()},
        "is_vector": jnp.array([float(len(shape) < 2) for shape in layout.shapes]),
        "depth": jnp.array(depths(layout)),  # of its layer, from 0 for the first to 1 for the last
        "size": jnp.log(jnp.maximum(jnp.asarray(layout.sizes, jnp.float32), 1)),
    }
    coordinate = {
        **{f"arcsinh_{name}": jnp.arcsinh(direction) for name, direction in directions.items()},
        "last_weight": seen.origin / weight,
        "first_weight": seen.first / weight,
        "noise": relative(noise),
        "second_moment": relative(root(seen.second_moment)),
        **dict(zip(OF_UNITS, of_units, strict=True)),
    }
    run = seen.run | {name: parts[-1] for name, parts in motions.items()}
    return Features(coordinate, tensor, run, directions, of_weights(scale), seen.origin, segment)


def _means(x, layout):
    """Means over every tensor, [..., dim] -> [..., tensors]."""
    stops = np.cumsum(layout.sizes)
    sums = [x[..., stop - size : stop].sum(-1) / max(size, 1) for size, stop in zip(layout.sizes, stops, strict=True)]
    return jnp.stack(sums, -1)


def _of_units(x, layout):
    """Of [k, dim] displacements: for each weight of a matrix the root mean square and the mean over the weights of its output
    unit, and over those of its input unit; zero for vectors. [4 k, dim]."""
    parts, start = [], 0
    for size, shape, axis in zip(layout.sizes, layout.shapes, output_axes(layout), strict=True):
        own = x[:, start : start + size]
        start += size
        if len(shape) < 2:
            parts.append(jnp.zeros((4 * len(x), size)))
            continue
        # A kernel of a convolution has its window among the inputs: [.., in, out], or [out, in, ..].
        own = own.reshape(len(x), *((-1, shape[-1]) if axis else (shape[0], size // max(shape[0], 1))))
        over_inputs, over_outputs = (1, 2) if axis else (2, 1)
        rms = lambda axis, own=own: root((own**2).mean(axis, keepdims=True))
        mean = lambda axis, own=own: own.mean(axis, keepdims=True)
        means = [rms(over_inputs), mean(over_inputs), rms(over_outputs), mean(over_outputs)]
        parts.append(jnp.concatenate([jnp.broadcast_to(m, own.shape).reshape(len(x), size) for m in means]))
    return jnp.concatenate(parts, axis=-1)
