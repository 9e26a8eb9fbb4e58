"""What was observed of a run, in one form whatever was recorded."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfm_jax.base import Curvature, Trajectory
from gfm_jax.forecasting.curvature import no_curvature

__all__ = ["TINY", "Evidence", "Record", "bounded", "complete", "evidence", "log_of_loss", "root"]

SLOTS = ("mu", "nu", "trace")  # of the optimizer's state, under optax's names
TINY = 1e-12
MOST_STEPS = 1e9  # what a rate over its own mean is cut off at: no mean, where all rates so far were 0
HUGE = 1e15  # gradients and slots are cut off here: float32 holds their squares and the sums of these
NOT_SEEN = 2.0  # the progress of a save that was not observed: beyond every fraction of the prefix


class Evidence(NamedTuple):
    """The saves up to `last`, and the optimizer's view of that moment; what was not recorded is zero, and so flagged.

    Attributes:
      step, time: the clocks of all saves; those not seen stand still.
      seen: which saves were observed.
      progress: fraction of the observed steps at each save; 2 where not seen.
      steps: weights of a save less those of the one before it; zero where not seen.
      first, origin: the first and the last observed weights.
      average: mean over the last eighth of the prefix.
      optimizer, descent: the optimizer's own direction, and the negative gradient.
      second_moment: the running mean of squared gradients.
      krylov: directions that the curvature of the loss opens.
      run: features of the run, by name.
    """

    step: Float[Array, " saves"]
    time: Float[Array, " saves"]
    seen: Bool[Array, " saves"]
    progress: Float[Array, " saves"]
    steps: Float[Array, "steps dim"]
    first: Float[Array, " dim"]
    origin: Float[Array, " dim"]
    average: Float[Array, " dim"]
    optimizer: Float[Array, " dim"]
    descent: Float[Array, " dim"]
    second_moment: Float[Array, " dim"]
    krylov: Float[Array, "k dim"]
    run: dict[str, Float[Array, ""]]


class Record(NamedTuple):
    """A run in one form, whatever was recorded of it; the slots, `gradient` and `curvature` at the last observed save only.

    Attributes:
      square: mean squared gradient of every save.
      has: 1 where mu, nu, trace, gradient and loss were recorded, 0 where not.
    """

    step: Float[Array, "*runs saves"]
    time: Float[Array, "*runs saves"]
    rate: Float[Array, "*runs saves"]
    loss: Float[Array, "*runs saves"]
    square: Float[Array, "*runs saves"]
    weights: Float[Array, "*runs saves dim"]
    mean_weights: Float[Array, "*runs saves dim"]
    gradient: Float[Array, "*runs dim"]
    mu: Float[Array, "*runs dim"]
    nu: Float[Array, "*runs dim"]
    trace: Float[Array, "*runs dim"]
    curvature: Curvature
    has: dict[str, Float[Array | np.ndarray, "*runs"]]


def complete(run: Trajectory, last: Int[Array, ""] | int) -> Record:
    """A run, or a batch of them, in the form that all optimizers share: a program compiled for one serves the others."""
    assert run.weights is not None
    state, one = run.state or {}, jnp.ones(run.step.shape)
    zero = jnp.zeros((*run.step.shape[:-1], run.weights.shape[-1]))
    slots = {slot: bounded(state[slot][..., last, :]) if slot in state else zero for slot in SLOTS}
    has = {slot: slot in state for slot in SLOTS}
    has |= {"gradient": run.gradient is not None, "loss": run.loss is not None}
    return Record(
        step=run.step,
        time=run.time,
        rate=one if run.learning_rate is None else run.learning_rate,
        loss=one if run.loss is None else run.loss,
        square=one if run.gradient is None else _mean_square(run.gradient),
        weights=run.weights,
        mean_weights=run.weights if run.mean_weights is None else run.mean_weights,
        gradient=zero if run.gradient is None else bounded(run.gradient[..., last, :]),
        curvature=no_curvature(zero) if run.curvature is None else run.curvature,
        has={name: np.full(run.step.shape[:-1], flag, np.float32) for name, flag in has.items()},
        **slots,
    )


def bounded(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The same numbers in float32, cut off where their squares would overflow."""
    return jnp.clip(x.astype(jnp.float32), -HUGE, HUGE)


def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root, whose derivative at 0 is taken to be 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def log_of_loss(loss: Float[Array, "*shape"], floor: float) -> Float[Array, "*shape"]:
    r"""The logarithm of a loss, for losses of any sign: increasing, finite, continuous at 0.

    .. math:: \log(L + \epsilon) \; \text{for } L \ge 0, \qquad 2 \log \epsilon - \log(-L + \epsilon) \; \text{for } L < 0

    Args:
      loss: L, of any shape.
      floor: epsilon, above 0: losses below it are hardly told apart.

    >>> log_of_loss(jnp.array([1.0, 0.0, -1.0]), 1e-3).round().tolist()
    [0.0, -7.0, -14.0]
    """
    log = jnp.log(jnp.abs(loss) + floor)
    return jnp.where(loss >= 0, log, 2 * np.log(floor) - log)


@jax.jit  # where called on its own: one pass over what may be large
def _mean_square(x):
    return jnp.minimum(x.astype(jnp.float32) ** 2, HUGE**2).mean(-1)


def evidence(run: Record, last: Int[Array, ""] | int) -> Evidence:
    """What was observed up to save `last`; nothing later is read."""
    saves = len(run.step)
    whole = isinstance(last, int) and last == saves - 1  # then there is nothing to hide, which is a third of the work
    origin = run.weights[last].astype(jnp.float32)
    seen = jnp.arange(saves) <= last
    only_seen = lambda rows: rows if whole else jnp.where(seen[-len(rows) :, None], rows, 0)
    step, time = (jnp.where(seen, clock, clock[last]).astype(jnp.float32) for clock in (run.step, run.time))
    progress = jnp.where(seen, step / step[last], NOT_SEEN)
    # Where they are recorded, the means over all steps of the eighth, not over its saves alone.
    eighth = seen & (step > 7 / 8 * step[last])
    first_moment = jnp.where(run.has["mu"], run.mu, jnp.where(run.has["trace"], run.trace, run.gradient))
    return Evidence(
        step=step,
        time=time,
        seen=seen,
        progress=progress,
        steps=only_seen(jnp.diff(run.weights.astype(jnp.float32), axis=0)),
        first=run.weights[0].astype(jnp.float32),
        origin=origin,
        average=_mean_since(origin, run.mean_weights, eighth),
        optimizer=-bounded(first_moment / jnp.where(run.has["nu"], root(jnp.maximum(run.nu, 0)) + 1e-8, 1)),
        descent=-run.gradient,
        second_moment=jnp.maximum(run.nu, 0),
        krylov=run.curvature.krylov,
        run=_of_run(run, time, progress, last),
    )


def _mean_since(origin, rows, taken):
    """The mean of the rows that are taken, less the origin. It is summed row by row: zero where nothing moved, and without a
    temporary array of the size of all rows."""
    add = lambda total, row: (total + jnp.where(row[0], row[1].astype(jnp.float32) - origin, 0), None)
    total, _ = jax.lax.scan(add, jnp.zeros_like(origin), (taken, rows))
    return total / taken.sum()


def _of_run(run, time, progress, last):
    """The loss and the gradient and how they have lately changed, the learning rate against its mean, the curvature's, and
    what was recorded."""
    log_loss = log_of_loss(bounded(run.loss), 1e-6)
    log_square = jnp.log(run.square.astype(jnp.float32) + TINY)
    rate = run.rate[last].astype(jnp.float32) * run.step[last].astype(jnp.float32)
    highest = jnp.where((progress > 7 / 8) & (progress <= 1), log_loss, log_loss[last]).max()
    fractions = {"2_8": 1 / 4, "4_8": 1 / 2, "6_8": 3 / 4, "7_8": 7 / 8}
    before = {name: jnp.argmin(jnp.abs(progress - fraction)) for name, fraction in fractions.items()}
    before |= {"second_last": jnp.maximum(last - 2, 0), "last": jnp.maximum(last - 1, 0)}
    loss, gradient = (_levels(x, progress, last) for x in (log_loss, log_square))
    curvature = run.curvature
    features = {
        "loss": log_loss[last],
        **{f"loss_since_{name}": log_loss[last] - log_loss[save] for name, save in before.items()},
        "loss_lowest": jnp.where(progress <= 1, log_loss, log_loss[last]).min() - log_loss[last],
        "loss_level": loss["last_eighth"],
        **_changes("loss", loss),
        "loss_peak": highest - loss["last_eighth"],
        **_changes("gradient", gradient),
        "gradient_to_last": log_square[last] - gradient["last_eighth"],
        "rate": jnp.minimum(rate / jnp.maximum(time[last], TINY), MOST_STEPS),
        "curvature_loss": curvature.has_curvature * log_of_loss(bounded(curvature.loss), 1e-6),
        "curvature_gradient": curvature.has_curvature * jnp.log(jnp.mean(bounded(curvature.gradient) ** 2) + TINY),
        "has_curvature": curvature.has_curvature,
        **{f"has_{name}": flag for name, flag in run.has.items()},
    }
    return {name: jnp.asarray(feature, jnp.float32) for name, feature in features.items()}


def _levels(x, progress, last):
    """Means over four parts of the prefix, from its second quarter to its last eighth; where a part holds no save, the
    last value."""
    names = ("second_quarter", "third_quarter", "seventh_eighth", "last_eighth")
    bounds = jnp.array([1 / 4, 1 / 2, 3 / 4, 7 / 8, 1])
    inside = (progress[None] > bounds[:-1, None]) & (progress[None] <= bounds[1:, None])
    count = inside.sum(1)
    means = jnp.where(count > 0, jnp.where(inside, x[None], 0).sum(1) / jnp.maximum(count, 1), x[last])
    return dict(zip(names, means, strict=True))


def _changes(name, levels):
    """From each level to the next."""
    return {f"{name}_to_{after}": levels[after] - levels[before] for before, after in itertools.pairwise(levels)}
