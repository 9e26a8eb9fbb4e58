"""Cuts of runs: an observed prefix, and a horizon ahead of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gfm_jax.base import Horizon, Trajectory
from gfm_jax.checks import is_traced
from gfm_jax.forecasting.inputs import as_run, save_index

__all__ = ["horizon_at", "horizon_at_step", "prefix_of", "save_at"]


def save_at(run: Trajectory, fraction: float) -> int:
    """Index of the save nearest to a fraction of the run's steps: a Python integer, from steps that are known.

    Args:
      run: [saves, ...], or [runs, saves, ...], of which the first counts.
      fraction: in (0, 1).

    Raises:
      ValueError: where the fraction is outside (0, 1), or leaves fewer than two saves or none ahead.

    >>> save_at(Trajectory(step=jnp.array([0, 10, 40, 70, 100]), time=None), 0.5)
    2
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a fraction of the run in (0, 1), got {fraction}")
    steps = np.asarray(run.step).reshape(-1, run.step.shape[-1])[0]
    index = int(np.abs(steps / steps[-1] - fraction).argmin())
    if not 1 <= index < len(steps) - 1:
        raise ValueError(
            f"fraction: {fraction} of a run of {len(steps)} saves leaves {index + 1} observed and {len(steps) - 1 - index} "
            "ahead; expected at least two observed and one ahead"
        )
    return index


def prefix_of(run: Trajectory, last: int) -> Trajectory:
    """A run, or a batch of them, as it was known at save `last`; the curvature at its end is not.

    Args:
      run: [saves, ...], or [runs, saves, ...].
      last: index of the last observed save, negative from the end.

    Raises:
      ValueError: for an index that is out of range.

    >>> step = jnp.arange(0, 50, 10)
    >>> run = Trajectory(step=step, time=0.5 * step, weights=jnp.ones((5, 2)))
    >>> prefix_of(run, 2).step.tolist()
    [0, 10, 20]
    """
    run = as_run(run)
    by_save = run.step.ndim - 1
    stop = save_index(run.step.shape[-1], last) + 1
    known = run._replace(finite=None, layout=None, curvature=None)
    known = jax.tree.map(lambda array: array[(slice(None),) * by_save + (slice(0, stop),)], known)
    return known._replace(layout=run.layout)


def horizon_at(run: Trajectory, save: Int[Array, ""] | int) -> Horizon:
    """The moment of a save, of a run or of a batch of them; its rate is 1 where no learning rates were recorded.

    Args:
      run: [saves, ...], or [runs, saves, ...].
      save: its index, negative from the end.

    Raises:
      ValueError: for an index that is out of range.

    >>> step = jnp.arange(0, 50, 10)
    >>> run = Trajectory(step=step, time=0.5 * step, weights=jnp.ones((5, 2)))
    >>> jax.tree.map(float, horizon_at(run, -1))
    Horizon(step=40.0, time=20.0, learning_rate=1.0)
    """
    run = as_run(run)
    save = save_index(run.step.shape[-1], save, name="save")
    rate = jnp.ones(run.time.shape) if run.learning_rate is None else run.learning_rate
    return Horizon(*(jnp.asarray(clock[..., save], jnp.float32) for clock in (run.step, run.time, rate)))


def horizon_at_step(
    run: Trajectory, step: int | float | Array, learning_rate: Callable | float | None = None
) -> Horizon:
    r"""The moment of a step, recorded or ahead of all that was: there the learning rate is taken to stay what it is, where no
    other is given.

    .. math:: t(m) = t_n + \sum_{k=n}^{m-1} \eta_k, \qquad \eta_k = \eta_n \quad \text{beyond the last save } n

    Between saves the clock is a straight line.

    Args:
      run: [saves, ...], or [runs, saves, ...]. Without learning rates, its rate is the slope of its clock at the end.
      step: of the run, from 0 on.
      learning_rate: beyond the last save, a number, or a schedule of the step as optax has it; steps are then known numbers.

    Raises:
      ValueError: for a known step that is negative, or not finite, or a rate that is.

    >>> step = jnp.arange(0, 50, 10)
    >>> run = Trajectory(step=step, time=0.5 * step, weights=jnp.ones((5, 2)))
    >>> jax.tree.map(float, horizon_at_step(run, 100))
    Horizon(step=100.0, time=50.0, learning_rate=0.5)
    """
    run = as_run(run)
    if not is_traced(step) and not (np.asarray(step).dtype.kind in "fiu" and 0 <= step < np.inf):
        raise ValueError(f"step: expected a number of updates from 0 on, got {step!r}")
    if learning_rate is not None:
        return _by_rates(run, step, learning_rate)
    step = jnp.asarray(step, jnp.float32)

    def one(steps, time, rate):
        steps, time = steps.astype(jnp.float32), time.astype(jnp.float32)
        slope = (time[-1] - time[-2]) / (steps[-1] - steps[-2]) if len(steps) > 1 else jnp.ones(())
        last = slope if rate is None else rate[-1].astype(jnp.float32)
        next_save = jnp.minimum(jnp.searchsorted(steps, step), len(steps) - 1)
        then = jnp.interp(step, steps, time) + last * jnp.maximum(step - steps[-1], 0)
        return Horizon(step, then, last if rate is None else rate[next_save].astype(jnp.float32))

    clock = run.step, run.time, run.learning_rate
    clock = jax.tree.map(jnp.asarray, clock)
    return jax.vmap(one)(*clock) if run.step.ndim == 2 else one(*clock)


def _by_rates(run, step, learning_rate):
    """The moment of a step beyond the last save, at rates that are given."""
    if is_traced(run.step, step):
        raise ValueError("learning_rate: expected known steps beside it, got traced ones; make a Horizon of your own")
    lasts, end = np.asarray(run.step)[..., -1], int(step)
    if not callable(learning_rate) and not (np.ndim(learning_rate) == 0 and 0 <= learning_rate < np.inf):
        raise ValueError(f"learning_rate: expected a schedule, or a finite number from 0 on, got {learning_rate!r}")
    schedule = learning_rate if callable(learning_rate) else lambda count: jnp.full(jnp.shape(count), learning_rate)
    first = int(lasts.min(initial=end))
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(first, max(end, first + 1))), np.float64)
    sums = np.concatenate([[0], np.cumsum(rates)])
    ahead = sums[max(end - first, 0)] - sums[np.clip(lasts - first, 0, len(rates))]
    time = np.asarray(run.time)[..., -1] + ahead
    return Horizon(*(jnp.broadcast_to(jnp.asarray(part, jnp.float32), lasts.shape) for part in (end, time, rates[-1])))
