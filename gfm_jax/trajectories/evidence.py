"""What was observed of a run, in one form whatever was recorded."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfm_jax.base import Trajectory

__all__ = ["Evidence", "evidence"]


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
        moved=moved,
        origin=origin,
        average=to_average.sum(0) / eighth.sum(),
        optimizer=-first_moment / preconditioner,
        descent=-gradient,
        second_moment=second_moment,
        run=_of_run(run, state, step, time, seen, last),
    )


def _of_run(run, state, step, time, seen, last):
    """The loss and how it has lately changed, the learning rate against its mean, and what was recorded."""
    one = jnp.ones(len(step))
    log_loss = jnp.log((one if run.loss is None else run.loss.astype(jnp.float32)) + 1e-6)
    rate = one if run.learning_rate is None else run.learning_rate.astype(jnp.float32)
    at = lambda fraction: jnp.argmin(jnp.abs(step / step[last] - fraction))
    before = [at(0.25), at(0.5), at(0.75), at(0.875), jnp.maximum(last - 2, 0), jnp.maximum(last - 1, 0)]
    flags = ["mu" in state, "nu" in state, "trace" in state, run.gradient is not None, run.loss is not None]
    features = [
        log_loss[last],
        *(log_loss[last] - log_loss[save] for save in before),
        jnp.where(seen, log_loss, jnp.inf).min() - log_loss[last],
        rate[last] * step[last] / jnp.maximum(time[last], 1e-12),
        *flags,
    ]
    return jnp.stack([jnp.asarray(feature, jnp.float32) for feature in features])
