"""What was observed of a run, in one form whatever was recorded."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfm_jax.base import Trajectory

__all__ = ["Evidence", "evidence"]

TINY = 1e-12


class Evidence(NamedTuple):
    """The saves up to `last`, and the optimizer's view of that moment; what was not recorded is zero, and so flagged.

    Attributes:
      step, time: the clocks of all saves; those not seen stand still.
      seen: which saves were observed.
      progress: share of the observed steps at each save; infinite where not seen.
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
    progress: Float[Array, " saves"]
    moved: Float[Array, "saves dim"]
    origin: Float[Array, " dim"]
    average: Float[Array, " dim"]
    optimizer: Float[Array, " dim"]
    descent: Float[Array, " dim"]
    second_moment: Float[Array, " dim"]
    run: Float[Array, " features"]


def evidence(run: Trajectory, last: Int[Array, ""] | int | None = None) -> Evidence:
    """Whatever was recorded up to save `last`, in one form; nothing later is read.

    Args:
      run: a run with weights and layout; whatever else was recorded helps.
      last: index of the last observed save, at least 1; by default the run's last.

    Raises:
      ValueError: for fewer than two saves, or without weights or layout.
    """
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
    progress = jnp.where(seen, step / step[last], jnp.inf)
    eighth = seen & (step > 7 / 8 * step[last])
    if run.mean_weights is not None:  # the mean over all steps of the eighth, not over its saves alone
        to_average = jnp.where(eighth[:, None], run.mean_weights.astype(jnp.float32) - origin, 0)
    else:
        to_average = jnp.where(eighth[:, None], moved, 0)

    state = run.state or {}
    gradient = zero if run.gradient is None else at_last(run.gradient)
    second_moment = at_last(state["nu"]) if "nu" in state else zero
    first_moment = next((at_last(state[name]) for name in ("mu", "trace") if name in state), gradient)
    preconditioner = jnp.sqrt(second_moment) + 1e-8 if "nu" in state else 1.0
    return Evidence(
        step=step,
        time=time,
        seen=seen,
        progress=progress,
        moved=moved,
        origin=origin,
        average=to_average.sum(0) / eighth.sum(),
        optimizer=-first_moment / preconditioner,
        descent=-gradient,
        second_moment=second_moment,
        run=_of_run(run, state, time, progress, last),
    )


def _of_run(run, state, time, progress, last):
    """The loss and the gradient and how they have lately changed, the learning rate against its mean, and what was
    recorded."""
    one = jnp.ones(len(progress))
    log_loss = jnp.log((one if run.loss is None else run.loss.astype(jnp.float32)) + 1e-6)
    square = one if run.gradient is None else (run.gradient.astype(jnp.float32) ** 2).mean(-1)
    rate = one if run.learning_rate is None else run.learning_rate.astype(jnp.float32)
    before = [jnp.argmin(jnp.abs(progress - share)) for share in (0.25, 0.5, 0.75, 0.875)]
    before += [jnp.maximum(last - 2, 0), jnp.maximum(last - 1, 0)]
    levels, gradients = (_levels(x, progress, last) for x in (log_loss, jnp.log(square + TINY)))
    flags = ["mu" in state, "nu" in state, "trace" in state, run.gradient is not None, run.loss is not None]
    features = [
        log_loss[last],
        *(log_loss[last] - log_loss[save] for save in before),
        jnp.where(progress <= 1, log_loss, jnp.inf).min() - log_loss[last],
        levels[-1],
        *jnp.diff(levels),
        jnp.where((progress > 7 / 8) & (progress <= 1), log_loss, -jnp.inf).max() - levels[-1],
        *jnp.diff(gradients),
        jnp.log(square[last] + TINY) - gradients[-1],
        rate[last] * run.step[last].astype(jnp.float32) / jnp.maximum(time[last], TINY),
        *flags,
    ]
    return jnp.stack([jnp.asarray(feature, jnp.float32) for feature in features])


def _levels(x, progress, last):
    """Means over four shares of the prefix, from its second quarter to its last eighth; where a share holds no save, the
    last value."""
    bounds = jnp.array([1 / 4, 1 / 2, 3 / 4, 7 / 8, 1])
    inside = (progress > bounds[:-1, None]) & (progress <= bounds[1:, None])
    count = inside.sum(1)
    return jnp.where(count > 0, jnp.where(inside, x, 0).sum(1) / jnp.maximum(count, 1), x[last])
