"""What an observed prefix says about where each weight is going."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfm_jax.base import Context, Layout, Trajectory
from gfm_jax.pytrees import segment_ids

__all__ = ["DIRECTIONS", "Evidence", "context", "evidence", "line_weights", "observe"]

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
TINY = 1e-12


class Evidence(NamedTuple):
    """The saves up to `last`, and the optimizer's view of that moment; what was not recorded is zero, and so flagged.

    Attributes:
      step, time: the clocks of all saves; those not seen stand still.
      seen: which saves were observed.
      moved: weights less the last observed weights; zero where not seen.
      origin: the last observed weights.
      average: mean over the last eighth of the prefix.
      optimizer, descent: the optimizer's own direction, and the negative gradient.
      second_moment: the running mean of squared gradients.
      run: features of the run.
    """

    step: Float[Array, " saves"]
    time: Float[Array, " saves"]
    seen: Bool[Array, " saves"]
    moved: Float[Array, "saves dim"]
    origin: Float[Array, " dim"]
    average: Float[Array, " dim"]
    optimizer: Float[Array, " dim"]
    descent: Float[Array, " dim"]
    second_moment: Float[Array, " dim"]
    run: Float[Array, " features"]


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


def evidence(run: Trajectory, last: Int[Array, ""] | int | None = None) -> Evidence:
    """Whatever was recorded up to save `last`, in one form; arguments and errors as for `observe`."""
    if run.weights is None or run.layout is None:
        raise ValueError("run: expected a trajectory with weights and a layout, got None for one of them")
    saves, dim = run.weights.shape
    if saves < 2:
        raise ValueError(f"run: expected at least two saves, got {saves}: one snapshot has no direction")
    if run.layout.dim != dim:
        raise ValueError(f"run: its layout describes {run.layout.dim} weights, but it has {dim}")
    last = saves - 1 if last is None else last
    seen = jnp.arange(saves) <= last
    at_last = lambda array: array[last].astype(jnp.float32)
    zero = jnp.zeros(dim)

    origin = at_last(run.weights)
    moved = jnp.where(seen[:, None], run.weights.astype(jnp.float32) - origin, 0)
    step, time = (jnp.where(seen, clock, clock[last]).astype(jnp.float32) for clock in (run.step, run.time))
    progress = step / step[last]
    eighth = seen & (progress > 7 / 8)
    if run.mean_weights is not None:  # the mean over all steps of the eighth, not over its saves alone
        to_average = jnp.where(eighth[:, None], run.mean_weights.astype(jnp.float32) - origin, 0)
    else:
        to_average = jnp.where(eighth[:, None], moved, 0)

    state = run.state or {}
    gradient = zero if run.gradient is None else at_last(run.gradient)
    second_moment = at_last(state["nu"]) if "nu" in state else zero
    first_moment = next((at_last(state[name]) for name in ("mu", "trace") if name in state), gradient)
    preconditioner = jnp.sqrt(second_moment) + 1e-8 if "nu" in state else 1.0

    one = jnp.ones(saves)
    log_loss = jnp.log((one if run.loss is None else run.loss.astype(jnp.float32)) + 1e-6)
    rate = one if run.learning_rate is None else run.learning_rate.astype(jnp.float32)
    half, late = (jnp.argmin(jnp.abs(progress - fraction)) for fraction in (0.5, 0.875))
    flags = ["mu" in state, "nu" in state, "trace" in state, run.gradient is not None, run.loss is not None]
    features = [
        log_loss[last],
        log_loss[last] - log_loss[half],
        log_loss[last] - log_loss[late],
        rate[last] * step[last] / jnp.maximum(time[last], TINY),
        *flags,
    ]
    return Evidence(
        step=step,
        time=time,
        seen=seen,
        moved=moved,
        origin=origin,
        average=to_average.sum(0) / eighth.sum(),
        optimizer=-first_moment / preconditioner,
        descent=-gradient,
        second_moment=second_moment,
        run=jnp.stack([jnp.asarray(feature, jnp.float32) for feature in features]),
    )


def context(seen: Evidence, layout: Layout) -> Context:
    """The context that the evidence gives: directions, and features of every coordinate, tensor and run.

    The directions that come from the saves are linear in them, so that all are one product A(step, time) @ moved.
    """
    segment = jnp.asarray(segment_ids(layout))
    sizes = jnp.asarray(layout.sizes, jnp.float32)
    per_tensor = lambda x: jax.ops.segment_sum(x.T, segment, len(sizes)) / sizes.reshape(-1, *[1] * (x.ndim - 1))
    rms = lambda x: jnp.sqrt(per_tensor(x**2))
    spread_out = lambda x: x[segment].T

    last = seen.seen.sum() - 1
    progress = jnp.where(seen.seen, seen.step / seen.step[last], jnp.inf)
    past = jnp.array([jnp.argmin(jnp.abs(progress - j / 8)) for j in range(8)])
    past = jnp.concatenate([past, jnp.maximum(last - jnp.array([1, 2]), 0)])
    inside = lambda start: (seen.seen & (progress >= start)).astype(jnp.float32)
    saves = jnp.concatenate(
        [
            -jax.nn.one_hot(past, len(seen.step)),
            line_weights(jnp.log(jnp.maximum(seen.time, seen.time[1])), inside(1 / 4))[None],
            line_weights(seen.time / seen.time[last], inside(1 / 2))[None],
        ]
    )
    combined = jnp.concatenate([saves @ seen.moved, seen.average[None]])

    scale = jnp.maximum(rms(combined[4]), TINY)
    optimizer = jnp.stack([seen.optimizer, seen.descent])
    of_unit_size = optimizer / jnp.maximum(spread_out(rms(optimizer)), TINY)
    directions = jnp.concatenate([combined / spread_out(scale), of_unit_size])

    steps = jnp.diff(seen.moved, axis=0)
    recent = (inside(1 / 2)[:-1] * seen.seen[1:])[:, None]
    mean_step = (recent * steps).sum(0) / recent.sum()
    noise = jnp.sqrt((recent * (steps - mean_step) ** 2).sum(0) / recent.sum())
    ends = jnp.stack([seen.origin, seen.moved[0] + seen.origin])
    log_ratio = lambda a, b: jnp.log((a + 1e-3 * b + TINY) / (b + TINY))
    relative = jnp.stack([noise, jnp.sqrt(seen.second_moment)])
    coordinate = [
        jnp.arcsinh(directions),
        ends / jnp.maximum(spread_out(rms(ends)), TINY)[:1],
        log_ratio(relative, spread_out(rms(relative))),
    ]

    until = jnp.concatenate([combined[0:8:2], jnp.zeros_like(combined[:1])])
    quarters = until[:-1] - until[1:]
    lengths = rms(quarters)
    pairs = [
        (quarters[3], quarters[2]),
        (quarters[2] + quarters[3], quarters[0] + quarters[1]),
        (combined[8], combined[9] - combined[8]),
        (seen.optimizer, combined[4]),
        (seen.descent, combined[4]),
    ]
    left, right = (jnp.stack(side) for side in zip(*pairs, strict=True))
    cosines = per_tensor(left * right) / (rms(left) * rms(right) + TINY)
    tensor = [
        jnp.log((scale + TINY) / (rms(seen.origin) + TINY))[:, None],
        log_ratio(lengths[:, 1:], lengths[:, :-1]),
        cosines,
        log_ratio(rms(noise), scale)[:, None],
        _kind_and_depth(layout),
        jnp.log(sizes)[:, None],
    ]
    return Context(
        coordinate=jnp.concatenate(coordinate).T,
        tensor=jnp.concatenate(tensor, axis=-1),
        run=seen.run,
        directions=directions.T,
        scale=scale[segment],
        origin=seen.origin,
        segment=segment,
    )


def _kind_and_depth(layout):
    """Of each tensor: is it a vector such as a bias, and how deep is its layer, from 0 for the first to 1 for the last."""
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in layout.names))
    depth = [layers.index(name.rpartition("/")[0]) / max(len(layers) - 1, 1) for name in layout.names]
    is_vector = [float(len(shape) < 2) for shape in layout.shapes]
    return jnp.stack([jnp.array(is_vector), jnp.array(depth)], axis=-1)
