"""Runs, prefixes and horizons as users hand them in, brought to one form: shapes and dtypes are checked, values are not."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from gfm_jax.base import Horizon, Trajectory
from gfm_jax.checks import is_traced

__all__ = ["BY_SAVE", "BY_WEIGHT", "as_horizon", "as_run", "save_index"]

BY_SAVE = ("learning_rate", "loss")  # optional parts [saves], and those [saves, dim]
BY_WEIGHT = ("mean_weights", "gradient")


def save_index(saves: int, index: Int[Array, ""] | int, *, name: str = "last", least: int = 0) -> Int[Array, ""] | int:
    """The index of a save, counted from 0; a negative one counts from the end, as everywhere in Python.

    Args:
      saves: how many there are.
      index: from `least - saves` on, below `saves`; a traced index is returned as it is.
      name: of the argument, for messages.
      least: the first save that can be meant.

    Raises:
      ValueError: for an index out of range.
    """
    if isinstance(index, Tracer):
        return index
    found = int(index) + saves if index < 0 else int(index)
    if not least <= found < saves:
        raise ValueError(f"{name}: expected the index of one of {saves} saves, {least} at least, got {index}")
    return found


def as_run(run: Trajectory, name: str = "run") -> Trajectory:
    """A run, or a batch of runs, in one form: arrays of matching shapes, a clock, a learning rate for every save.

    Lists and numbers become arrays. Where `time` was not recorded it is summed up from the learning rates, each taken to hold
    since the save before; without these either the clock is the number of steps, and a horizon has to be in steps as well.

    Args:
      run: [saves] and [saves, dim], or [runs, saves] and [runs, saves, dim].
      name: of the argument, for messages.

    Raises:
      ValueError: for anything but a trajectory, for a part of another shape than the weights ask for, or for weights that are
        no real numbers.

    >>> run = as_run(Trajectory(step=[0, 10, 20], time=None, weights=[[1.0], [2.0], [3.0]], learning_rate=0.1))
    >>> run.weights.shape, run.time.tolist(), run.learning_rate.tolist()
    ((3, 1), [0.0, 1.0, 2.0], [0.1, 0.1, 0.1])
    """
    if not isinstance(run, Trajectory):
        raise ValueError(f"{name}: expected a Trajectory, got {type(run).__name__}")
    if run.weights is None:
        raise ValueError(f"{name}: expected recorded weights, got none")
    weights = _array(f"{name}.weights", run.weights)
    if weights.ndim not in (2, 3):
        raise ValueError(f"{name}.weights: expected [saves, dim] or [runs, saves, dim], got shape {weights.shape}")
    by_save = weights.shape[:-1]
    step = _array(f"{name}.step", run.step)
    if step.ndim == 1 and weights.ndim == 3:  # the steps of all runs
        step = _broadcast(step, by_save)
    parts = {"step": step, "weights": weights}
    if run.time is not None:
        parts["time"] = _array(f"{name}.time", run.time)
    for part in (*BY_SAVE, *BY_WEIGHT):
        if getattr(run, part) is not None:
            parts[part] = _array(f"{name}.{part}", getattr(run, part))
    if "learning_rate" in parts and parts["learning_rate"].ndim == 0:  # one rate for all saves
        parts["learning_rate"] = _broadcast(parts["learning_rate"], by_save)
    if run.time is None:
        parts["time"] = _summed(step, parts["learning_rate"]) if "learning_rate" in parts else step
    for part, array in parts.items():
        expected = weights.shape if part in ("weights", *BY_WEIGHT) else by_save
        if array.shape != expected:
            raise ValueError(f"{name}.{part}: expected shape {expected}, as the weights have it, got {array.shape}")
    if run.state is not None:
        parts["state"] = _slots(name, run.state, weights.shape)
    if run.layout is not None and run.layout.dim != weights.shape[-1]:
        raise ValueError(f"{name}: its layout describes {run.layout.dim} weights, but it has {weights.shape[-1]}")
    return run._replace(**parts)


def _summed(step, learning_rate):
    """The sum of the learning rates at every save: that of a save is taken to hold since the save before."""
    xp = jnp if is_traced(step, learning_rate) or isinstance(learning_rate, jax.Array) else np
    since = xp.diff(step, axis=-1, prepend=0)
    return xp.cumsum(since * learning_rate, axis=-1).astype(xp.result_type(learning_rate))


def _array(name, values):
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected real numbers, got a masked array; fill it, or leave the masked saves out")
    try:
        array = values if hasattr(values, "dtype") and hasattr(values, "ndim") else np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: expected an array of real numbers, got rows of different lengths") from None
    if array.dtype == object or not (jnp.issubdtype(array.dtype, jnp.floating) or _is_integer(array)):
        hint = "; pytrees become rows by gfm_jax.ravel" if array.dtype == object and name.endswith("weights") else ""
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}{hint}")
    return array


def _is_integer(array):
    return jnp.issubdtype(array.dtype, jnp.integer)


def _broadcast(array, shape):
    return (jnp if isinstance(array, jax.Array) else np).broadcast_to(array, shape)


def _slots(name, state, shape):
    if not isinstance(state, dict):
        raise ValueError(
            f"{name}.state: expected a dict from the name of a slot to its array, got {type(state).__name__}"
        )
    slots = {slot: _array(f"{name}.state[{slot!r}]", array) for slot, array in state.items()}
    for slot, array in slots.items():
        if array.shape != shape:
            raise ValueError(
                f"{name}.state[{slot!r}]: expected shape {shape}, as the weights have it, got {array.shape}"
            )
    return slots


def as_horizon(horizon, runs: tuple[int, ...]) -> Horizon:
    """Three float32 arrays, for one run or for each of a batch."""
    if not isinstance(horizon, Horizon):
        raise ValueError(f"horizon: expected a Horizon(step, time, learning_rate), got {type(horizon).__name__}")
    parts = {}
    for name, value in horizon._asdict().items():
        array = _array(f"horizon.{name}", value)
        if array.shape not in ((), runs):
            got = f"got shape {array.shape}"
            raise ValueError(f"horizon.{name}: expected {f'shape {runs} or ' if runs else ''}one number, {got}")
        array = jnp.asarray(array, jnp.float32) if isinstance(array, jax.Array) else np.asarray(array, np.float32)
        parts[name] = _broadcast(array, runs)
    return Horizon(**parts)
