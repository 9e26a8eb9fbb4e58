"""Cuts of runs: an observed prefix, and a horizon ahead of it."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from gfm_jax.base import Context, Horizon, Layout, Trajectory
from gfm_jax.trajectories.context import context
from gfm_jax.trajectories.evidence import complete, evidence
from gfm_jax.trajectories.landscape import landscape, metric

__all__ = [
    "Pairs",
    "Windows",
    "check_prefix",
    "cut",
    "cut_all",
    "draw_pairs",
    "draw_windows",
    "horizon_at",
    "prefix_of",
    "save_at",
    "thin",
]


# Contexts are made once, and would take longer to optimise than to make.
QUICK = {"xla_backend_optimization_level": 1}


class Windows(NamedTuple):
    """Runs of one layout, each observed up to several saves.

    Attributes:
      context: of each window, led by [windows].
      run, last: the run of each window, and the index of its last observed save.
      clock: step, time and learning rate of every save of every run, [runs, saves].
      weights: of every save of every run, [runs, saves, dim].
      distance: squared distance from the last observed weights to those of every save, [windows, saves].
      layout: which stretch of the weights is which tensor; of all of them, also where the windows are `thin`.
    """

    context: Context
    run: Int[Array, " windows"]
    last: Int[Array, " windows"]
    clock: Horizon
    weights: Float[Array, "runs saves dim"]
    distance: Float[Array, "windows saves"]
    layout: Layout

    def moment(self, run, save) -> Horizon:
        """The step, time and learning rate of saves of runs."""
        return jax.tree.map(lambda clock: clock[run, save], self.clock)


class Pairs(NamedTuple):
    """Two moments s <= t of one coordinate beyond the last observed one, `now`, and `before`, that of the save before t;
    displacements in units of its scale."""

    context: Context
    now: Horizon
    s: Horizon
    t: Horizon
    before: Horizon
    x_s: Float[Array, " pairs"]
    x_t: Float[Array, " pairs"]
    weight: Float[Array, " pairs"]
    place: tuple[Int[Array, " pairs"], ...]  # (run, last observed save, coordinate)


def save_at(run: Trajectory, fraction: float) -> int:
    """Index of the save nearest to a fraction of the run's steps.

    Raises:
      ValueError: where the fraction is outside (0, 1), or leaves fewer than two saves or none ahead.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a share of the run in (0, 1), got {fraction}")
    steps = np.asarray(run.step).reshape(-1, run.step.shape[-1])[0]
    index = int(np.abs(steps / steps[-1] - fraction).argmin())
    if not 1 <= index < len(steps) - 1:
        raise ValueError(
            f"fraction: {fraction} of a run of {len(steps)} saves leaves {index + 1} observed and {len(steps) - 1 - index} "
            "ahead; expected at least two observed and one ahead"
        )
    return index


def prefix_of(run: Trajectory, last: int) -> Trajectory:
    """A run, or a batch of them, as it was known at save `last`; a landscape surveyed at its end is not."""
    by_save = run.step.ndim - 1
    known = run._replace(finite=None, layout=None, landscape=None)
    known = jax.tree.map(lambda array: array[(slice(None),) * by_save + (slice(0, last + 1),)], known)
    return known._replace(layout=run.layout)


def horizon_at(run: Trajectory, save: int) -> Horizon:
    """The moment of a save, of a run or of a batch of them."""
    rate = jnp.ones_like(run.time) if run.learning_rate is None else run.learning_rate
    return Horizon(*(jnp.asarray(clock[..., save], jnp.float32) for clock in (run.step, run.time, rate)))


def check_prefix(prefix: Trajectory, horizon: Horizon, layouts: Sequence[Layout] = ()) -> Trajectory:
    """A prefix, or a batch of them, that can be forecast from; its layout is filled in where only one can be meant.

    Args:
      prefix: what was observed.
      horizon: the moment to forecast.
      layouts: of the runs that the forecaster was fitted to.

    Raises:
      ValueError: for a single snapshot, a horizon that does not lie ahead, weights that are not finite, or a prefix without
        layout whose size fits none, or several, of `layouts`.
    """
    if prefix.weights is None:
        raise ValueError("prefix: expected recorded weights, got none")
    saves, dim = prefix.weights.shape[-2:]
    if saves < 2:
        raise ValueError(f"prefix: expected at least two saves, got {saves}: one snapshot has no direction")
    if prefix.layout is None:
        fitting = {layout for layout in layouts if layout.dim == dim}
        if len(fitting) != 1:
            known = ", ".join(str(layout.dim) for layout in layouts) or "none"
            raise ValueError(
                f"prefix: it has {dim} weights and no layout, and the forecaster was fitted to runs of {known} weights; set "
                "`layout` to gfm_jax.pytrees.layout_of(weights)"
            )
        prefix = prefix._replace(layout=fitting.pop())
    if prefix.layout.dim != dim:
        raise ValueError(f"prefix: its layout describes {prefix.layout.dim} weights, but it has {dim}")
    concrete = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((prefix, horizon)))
    if concrete and not np.all(np.asarray(horizon.step) > np.asarray(prefix.step)[..., -1]):
        raise ValueError(
            f"horizon: expected a step beyond the last observed one, {np.asarray(prefix.step)[..., -1].max()}, "
            f"got {np.asarray(horizon.step).min():g}"
        )
    if concrete and not bool(jnp.isfinite(prefix.weights).all()):
        raise ValueError("prefix: expected finite weights, got NaN or infinity: the run has diverged")
    return prefix


def cut(
    runs: Trajectory,
    fractions: Sequence[float],
    *,
    withheld: Sequence[Sequence[str]] = (),
    loss: Callable[[Array], Array] | None = None,
    chunk: int = 64,
) -> Windows:
    """Windows of a batch of runs of one layout: one a run and fraction, and one more a run and set of `withheld`.

    Args:
      runs: led by [runs, saves].
      fractions: shares of the run that are observed, each in (0, 1).
      withheld: sets of parts ("gradient", "loss", "landscape", ...) and slots ("mu", ...) of the record; for each of them
        one of the fractions, in even order, is cut once more with it hidden: what is fitted to these windows learns to do
        without.
      loss: `weights [dim] -> scalar`, on data that the runs were trained on; its landscape is surveyed at every cut.
      chunk: how many contexts are worked out side by side.
    """
    num_runs = runs.step.shape[0]
    moving = jax.device_put(runs._replace(finite=None, layout=None, state=runs.state or None, landscape=None))
    cuts = [(save_at(runs, fraction), ()) for fraction in fractions]
    cuts += [(cuts[i * len(fractions) // len(withheld)][0], names) for i, names in enumerate(withheld)]
    saves, parts, surveyed = [last for last, _ in cuts], [], {}
    for last, names in cuts:
        known = hide(moving, names)
        if loss is not None and "landscape" not in names:
            place = (last, "nu" in (known.state or {}))  # a landscape depends on nothing else
            if place not in surveyed:
                weights = known.weights[:, last].astype(jnp.float32)
                surveyed[place] = _landscapes(loss, weights, metric(known, last))
            known = known._replace(landscape=surveyed[place])
        seen, distance = _evidence(complete(known, last), last)
        parts.append((_context(seen, runs.layout, min(chunk, num_runs)), distance))
    contexts, distances = _concatenated(parts)
    clock = (runs.step, runs.time, jnp.ones_like(runs.time) if runs.learning_rate is None else runs.learning_rate)
    return Windows(
        context=contexts,
        run=jnp.tile(jnp.arange(num_runs), len(saves)),
        last=jnp.repeat(jnp.array(saves), num_runs),
        clock=Horizon(*(jnp.asarray(array, jnp.float32) for array in clock)),
        weights=jnp.asarray(runs.weights, jnp.float32),
        distance=distances,
        layout=runs.layout,
    )


def hide(run: Trajectory, names: Sequence[str]) -> Trajectory:
    """A run, or a batch of them, as if the named parts and slots of the optimizer had not been recorded."""
    optional = ("mean_weights", "gradient", "state", "learning_rate", "loss", "landscape")
    state = {slot: array for slot, array in (run.state or {}).items() if slot not in names}
    return run._replace(state=state or None)._replace(**{name: None for name in optional if name in names})


def cut_all(
    runs: Sequence[Trajectory | Windows],
    fractions: Sequence[float],
    withheld: Sequence[Sequence[str]] = (),
    losses: Sequence[Callable | None] | None = None,
) -> list[Windows]:
    """Windows of every batch of runs, each with its loss; a batch that is cut already is left as it is."""
    losses = [None] * len(runs) if losses is None else losses
    return [
        part if isinstance(part, Windows) else cut(part, fractions, withheld=withheld, loss=loss)
        for part, loss in zip(runs, losses, strict=True)
    ]


def merge(windows: Sequence[Windows], kept: Sequence[np.ndarray]) -> Windows:
    """Windows of one layout and as many saves, recorded with different optimizers, as one.

    Args:
      windows: the parts.
      kept: for each part, the indices of the windows to keep.
    """
    by_window = ("context", "run", "last", "distance")
    starts = np.cumsum([0, *(len(part.weights) for part in windows[:-1])])
    parts = []
    for part, rows, start in zip(windows, kept, starts, strict=True):
        chosen = {name: getattr(part, name) for name in by_window}
        if not np.array_equal(rows, np.arange(len(part.run))):  # to pick all of them would be to copy gigabytes
            chosen = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], chosen)
        chosen["run"] = chosen["run"] + start
        parts.append(part._replace(**chosen))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *parts)


def thin(windows: Windows, num: int, seed: int = 0) -> Windows:
    """Windows of a sample of the coordinates, the same ones of every run: what a field can be fitted to, and what fits into
    memory, where all of them do not.

    Args:
      windows: of all coordinates.
      num: how many to keep; all of them where there are no more.
      seed: of the choice.

    Raises:
      ValueError: for fewer than one.
    """
    if num < 1:
        raise ValueError(f"num: expected at least one coordinate to keep, got {num}")
    dim = windows.layout.dim
    kept = np.sort(np.random.default_rng(seed).permutation(dim)[:num])
    by_coordinate = ("coordinate", "directions", "scale", "origin", "segment")
    chosen = {name: getattr(windows.context, name)[:, kept] for name in by_coordinate}
    return windows._replace(context=windows.context._replace(**chosen), weights=windows.weights[..., kept])


@functools.partial(jax.jit, compiler_options=QUICK)
def _evidence(records, last):
    def one(record):
        weights = record.weights.astype(jnp.float32)
        return evidence(record, last), jnp.sum((weights - weights[last]) ** 2, axis=-1)

    return jax.vmap(one)(records)


@functools.partial(jax.jit, static_argnums=0)
def _landscapes(loss, weights, metrics):
    # One after the other: a convolution by many sets of weights at once is slower than as many convolutions.
    return jax.lax.map(lambda at: landscape(loss, *at), (weights, metrics))


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=QUICK)
def _context(seen, layout, chunk):
    return jax.lax.map(lambda one: context(one, layout), seen, batch_size=chunk)


@jax.jit
def _concatenated(parts):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def draw_windows(
    key: Array, windows: Windows, num: int, share_final: float
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Indices of `num` windows, and for each a save ahead: the final one with that probability, else log-uniform."""
    key_window, key_final, key_ahead = jax.random.split(key, 3)
    window = jax.random.randint(key_window, (num,), 0, len(windows.run))
    last, final = windows.last[window], windows.weights.shape[1] - 1
    factor = (final / last) ** jax.random.uniform(key_ahead, (num,))
    ahead = jnp.clip(jnp.round(last * factor).astype(jnp.int32), last + 1, final)
    return window, jnp.where(jax.random.bernoulli(key_final, share_final, (num,)), final, ahead)


def draw_pairs(
    key: Array, windows: Windows, num: int, share_now: float, share_final: float, *, adjacent: bool = False
) -> Pairs:
    """Coordinates at two moments: s is the last observed save with probability `share_now`, else any save before t.

    With `adjacent`, t is the save that follows s, and s any save from the last observed one on. The weight of a pair makes
    the mean of weight * error^2 an estimate of a run's squared error relative to the squared distance that it moves until t
    (with `adjacent`, until its end).
    """
    key_window, key_coordinate, key_now, key_s = jax.random.split(key, 4)
    window, t = draw_windows(key_window, windows, num, share_final)
    coordinate = jax.random.randint(key_coordinate, (num,), 0, windows.weights.shape[-1])
    run, last = windows.run[window], windows.last[window]
    between = last + jnp.floor((t - last) * jax.random.uniform(key_s, (num,))).astype(jnp.int32)
    s = jnp.where(jax.random.bernoulli(key_now, share_now, (num,)), last, between)
    goal = t
    if adjacent:
        s, t, goal = between, between + 1, jnp.full_like(t, windows.weights.shape[1] - 1)

    every = windows.context
    segment = every.segment[0, coordinate]
    scale = every.scale[window, coordinate]
    moment = functools.partial(windows.moment, run)
    moved = lambda save: (windows.weights[run, save, coordinate] - every.origin[window, coordinate]) / scale
    picked = Context(
        coordinate=every.coordinate[window, coordinate],
        tensor=every.tensor[window, segment],
        run=every.run[window],
        directions=every.directions[window, coordinate],
        scale=scale,
        origin=every.origin[window, coordinate],
        segment=segment,
    )
    weight = scale**2 * windows.layout.dim / windows.distance[window, goal]
    return Pairs(
        picked, moment(last), moment(s), moment(t), moment(t - 1), moved(s), moved(t), weight, (run, last, coordinate)
    )
