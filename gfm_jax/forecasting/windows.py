"""Windows of runs: each run as it was known at several of its saves, to fit a forecaster to."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfm_jax.base import Features, Horizon, Layout, Trajectory
from gfm_jax.compiling import quick_jit
from gfm_jax.forecasting.curvature import curvature_at, metric
from gfm_jax.forecasting.evidence import SLOTS, complete, evidence
from gfm_jax.forecasting.features import features_of
from gfm_jax.forecasting.inputs import as_run
from gfm_jax.forecasting.names import DIRECTIONS, stack, stacked
from gfm_jax.forecasting.prefix import save_at
from gfm_jax.forecasting.validation import sound_runs

__all__ = ["Windows", "cut", "cut_all", "merge", "of_weights", "thin"]

OPTIONAL = ("mean_weights", "gradient", "state", "learning_rate", "loss", "curvature")  # parts of a record


class Windows(NamedTuple):
    """Runs of one layout, each observed up to several saves.

    Attributes:
      features: of each window, stacked, directions too, and led by [windows].
      run, last: the run of each window, and the index of its last observed save.
      clock: step, time and learning rate of every save of every run, [runs, saves].
      weights: of every save of every run, [runs, saves, dim].
      distance: squared distance from the last observed weights to those of every save, [windows, saves].
      layout: which stretch of the weights is which tensor; of all of them, also where the windows are `thin`.
    """

    features: Features
    run: Int[Array, " windows"]
    last: Int[Array, " windows"]
    clock: Horizon
    weights: Float[Array, "runs saves dim"]
    distance: Float[Array, "windows saves"]
    layout: Layout

    def moment(self, run, save) -> Horizon:
        """The step, time and learning rate of saves of runs."""
        return jax.tree.map(lambda clock: clock[run, save], self.clock)


def cut(
    runs: Trajectory,
    fractions: Sequence[float],
    *,
    feature_dropout: Sequence[Sequence[str]] = (),
    loss: Callable[[Array], Array] | None = None,
    coordinates: int | None = None,
    chunk: int = 64,
) -> Windows:
    """Windows of a batch of runs of one layout: one a run and fraction, and one more a run and set of `feature_dropout`.

    Args:
      runs: led by [runs, saves].
      fractions: fractions of the run that are observed, each in (0, 1).
      feature_dropout: sets of parts ("gradient", "loss", "curvature", ...) and slots ("mu", ...) of the record; for each
        set one of the fractions, in even order, is cut once more with it hidden: what is fitted to these windows learns to do
        without.
      loss: `weights [dim] -> scalar`, on data that the runs were trained on; its curvature is measured at every cut.
      coordinates: how many weights to keep, as `thin` does; each cut is thinned as it is made. None for all.
      chunk: of how many windows features are worked out side by side.

    Raises:
      ValueError: for a single run, a fraction that leaves fewer than two saves or none ahead, a part that does not exist, or
        runs of which one save is another fraction.

    Values are not looked at: a run that diverged makes windows that are not finite. `sound_runs` leaves such runs out.

    >>> step, layout = jnp.tile(jnp.arange(9), (2, 1)), Layout(("bias",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=jnp.ones((2, 9, 3)), layout=layout)
    >>> cut(runs, (0.25, 0.5)).last
    Array([2, 2, 4, 4], dtype=int32)
    """
    runs = as_run(runs, "runs")
    assert runs.weights is not None
    if runs.weights.ndim != 3 or runs.layout is None:
        raise ValueError(f"runs: expected a batch [runs, saves, dim] with a layout, got weights {runs.weights.shape}")
    _check_cuts(runs, fractions, feature_dropout)
    num_runs = runs.step.shape[0]
    moving = jax.device_put(runs._replace(finite=None, layout=None, state=runs.state or None, curvature=None))
    cuts = [(save_at(runs, fraction), ()) for fraction in fractions]
    cuts += [(cuts[i * len(fractions) // len(feature_dropout)][0], names) for i, names in enumerate(feature_dropout)]
    saves, parts, measured = [last for last, _ in cuts], [], {}
    kept = None if coordinates is None else _some_coordinates(runs.layout.dim, coordinates)
    for last, names in cuts:
        known = hide(moving, names)
        if loss is not None and "curvature" not in names:
            place = (last, "nu" in (known.state or {}))  # curvature depends on nothing else
            if place not in measured:
                assert known.weights is not None
                weights = known.weights[:, last].astype(jnp.float32)
                measured[place] = _curvatures(loss, weights, metric(known, last))
            known = known._replace(curvature=measured[place])
        seen, distance = _evidence(complete(known, last), last)
        features = _features(seen, runs.layout, min(chunk, num_runs))
        parts.append((features if kept is None else of_weights(features, lambda leaf: leaf[:, kept]), distance))
    features, distances = _concatenated(parts)
    clock = (runs.step, runs.time, np.ones(runs.time.shape) if runs.learning_rate is None else runs.learning_rate)
    return Windows(
        features=features,
        run=jnp.asarray(np.tile(np.arange(num_runs), len(saves))),
        last=jnp.asarray(np.repeat(saves, num_runs)),
        clock=Horizon(*(jnp.asarray(array, jnp.float32) for array in clock)),
        weights=jnp.asarray(runs.weights if kept is None else runs.weights[..., kept], jnp.float32),
        distance=distances,
        layout=runs.layout,
    )


def _check_cuts(runs, fractions, feature_dropout):
    if not len(fractions):
        raise ValueError("fractions: expected at least one fraction of a run to observe, got none")
    known = {*OPTIONAL, *SLOTS, *(runs.state or {})}
    if unknown := {name for names in feature_dropout for name in names} - known:
        raise ValueError(
            f"feature_dropout: expected names among {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}"
        )
    progress = np.asarray(runs.step) / np.asarray(runs.step)[:, -1:]
    apart = np.abs(progress - progress[:1]).max(axis=1)
    if (apart > 0.05).any():
        raise ValueError(
            f"runs: expected saves at like fractions of all runs of a batch, got run {int(apart.argmax())} whose saves lie "
            f"{apart.max():.2f} off those of run 0; give them as batches of their own"
        )


def hide(run: Trajectory, names: Sequence[str]) -> Trajectory:
    """A run, or a batch of them, as if the named parts and slots of the optimizer had not been recorded."""
    state = {slot: array for slot, array in (run.state or {}).items() if slot not in names}
    return run._replace(state=state or None)._replace(**{name: None for name in OPTIONAL if name in names})


def cut_all(
    runs: Sequence[Trajectory | Windows] | Trajectory | Windows,
    fractions: Sequence[float],
    feature_dropout: Sequence[Sequence[str]] = (),
    losses: Sequence[Callable | None] | Callable | None = None,
    *,
    name: str = "runs",
) -> list[Windows]:
    """Windows of every batch of runs to fit to, each with its loss; a batch that is cut already is left as it is.

    Not for use inside `jax.jit`, where values are not known; `cut` is.

    Args:
      runs: batches of one layout each; a single batch may stand by itself. Runs that are not sound are left out.
      fractions, feature_dropout: as in `cut`.
      losses: one for each batch, `weights [dim] -> scalar`, or None.
      name: of the argument, for messages.

    Raises:
      ValueError: for no batch, losses of another number, batches without a sound run, or windows that are not finite.

    >>> step, layout = jnp.tile(jnp.arange(9), (2, 1)), Layout(("bias",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=jnp.ones((2, 9, 3)), layout=layout)
    >>> [windows.run.tolist() for windows in cut_all([runs, runs], (0.25, 0.5))]
    [[0, 1, 0, 1], [0, 1, 0, 1]]
    """
    if isinstance(runs, Trajectory | Windows):
        runs = [runs]
    if not isinstance(runs, Sequence) or not len(runs):
        raise ValueError(f"{name}: expected one or more batches of runs, got {'none' if runs == [] else type(runs)}")
    losses = [losses] if callable(losses) else losses
    if losses is not None and len(losses) != len(runs):
        raise ValueError(f"losses: expected one for each of the {len(runs)} batches of runs, got {len(losses)}")
    losses = [None] * len(runs) if losses is None else losses
    found = []
    for i, (part, loss) in enumerate(zip(runs, losses, strict=True)):
        own = f"{name}[{i}]"
        if not isinstance(part, Windows):
            part = cut(sound_runs(part, own), fractions, feature_dropout=feature_dropout, loss=loss)
        found.append(_check_windows(part, own))
    return found


def _check_windows(windows, name):
    finite = np.asarray(_are_finite(windows.distance, windows.features.run))
    if not finite.all():
        bad = sorted(set(np.asarray(windows.run)[~finite].tolist()))
        raise ValueError(
            f"{name}: expected windows of finite numbers, got others of the runs {', '.join(map(str, bad))}"
        )
    return windows


@jax.jit
def _are_finite(distance, run):
    return jnp.isfinite(distance).all(1) & jnp.isfinite(run).all(1)


def merge(windows: Sequence[Windows], kept: Sequence[np.ndarray]) -> Windows:
    """Windows of one layout and as many saves, recorded with different optimizers, as one.

    Args:
      windows: the parts.
      kept: for each part, the indices of the windows to keep.

    Returns:
      The windows that are kept; runs of later parts are counted on from those of earlier ones.

    >>> step, layout = jnp.tile(jnp.arange(9), (2, 1)), Layout(("bias",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=jnp.ones((2, 9, 3)), layout=layout)
    >>> windows = cut(runs, (0.25, 0.5))
    >>> merge([windows, windows], [np.array([0, 1]), np.array([3])]).run.tolist()
    [0, 1, 3]
    """
    by_window = ("features", "run", "last", "distance")
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

    >>> step, layout = jnp.tile(jnp.arange(9), (2, 1)), Layout(("bias",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=jnp.ones((2, 9, 3)), layout=layout)
    >>> thin(cut(runs, (0.25, 0.5)), 2).weights.shape
    (2, 9, 2)
    """
    kept = _some_coordinates(windows.layout.dim, num, seed)
    chosen = of_weights(windows.features, lambda leaf: leaf[:, kept])
    return windows._replace(features=chosen, weights=windows.weights[..., kept])


def _some_coordinates(dim, num, seed=0):
    if num < 1:
        raise ValueError(f"num: expected at least one coordinate to keep, got {num}")
    return np.sort(np.random.default_rng(seed).permutation(dim)[:num])


def of_weights(features, pick):
    """The features of some weights: `pick` takes them out of every array that has a row for each."""
    parts = ("coordinate", "directions", "scale", "origin", "segment")
    return features._replace(**{part: pick(getattr(features, part)) for part in parts})


def _evidence(records, last):
    def one(record):
        weights = record.weights.astype(jnp.float32)
        return evidence(record, last), jnp.sum((weights - weights[last][None]) ** 2, axis=-1)

    return jax.vmap(one)(records)


_evidence = quick_jit(_evidence, level=1)


@functools.partial(jax.jit, static_argnums=0)
def _curvatures(loss, weights, metrics):
    # One after the other: a convolution by many sets of weights at once is slower than as many convolutions.
    return jax.lax.map(lambda at: curvature_at(loss, *at), (weights, metrics))


# Features are made once, and would take longer to optimise than to make.
def _features(seen, layout, chunk):
    def of_one(seen):
        features = stacked(features_of(seen, layout))
        assert isinstance(features.directions, dict)
        return features._replace(directions=stack(features.directions, DIRECTIONS))

    return jax.lax.map(of_one, seen, batch_size=chunk)


_features = quick_jit(_features, static_argnums=(1, 2), level=1)


@jax.jit
def _concatenated(parts):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
