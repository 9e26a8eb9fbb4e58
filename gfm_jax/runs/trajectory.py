"""The run that a watched optimizer has kept, out of its state."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gfm_jax.base import Layout, Trajectory
from gfm_jax.checks import is_traced
from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.parameters import check_parameters, leaf_names
from gfm_jax.runs.history import OFF_START, History, as_floats
from gfm_jax.runs.slots import optimizer_slots
from gfm_jax.runs.watch import WatchState

__all__ = ["trajectory"]


def trajectory(opt_state: PyTree, weights: PyTree | None = None) -> Trajectory:
    """The run that `watch` has kept in an optimizer's state, ready to be forecast.

    Use it at any time, outside of `jax.jit`: while the run trains, after it, or on a state restored from a checkpoint. States
    and weights of several runs, as `jax.vmap` makes them, become a batch of runs.

    Args:
      opt_state: the optimizer's state, of any nesting, as it was returned or as a checkpoint restores it;
        `optimizer.opt_state` of an `nnx.Optimizer`.
      weights: as they are now, after the last update: no others are the last save. They are kept in full precision; without
        them the run ends at the last save that was kept. Where a part of the weights was watched, in `optax.partition`, all
        of them or that part.

    Returns:
      A run [saves, ...], or [runs, saves, ...], in float32 or better, with a layout. `time` and `learning_rate` are None where
      `watch` knew no rate, `loss` where updates of a segment were given none, or NaN.

    Raises:
      ValueError: where there is no state of `watch`, or more than one, no update was taken, `weights` are others than the
        state is of, or are traced.

    >>> import optax
    >>> import gfm_jax as gfm
    >>> optimizer = gfm.watch(optax.inject_hyperparams(optax.sgd)(0.5))
    >>> weights = {"w": jnp.ones(3)}
    >>> updates, opt_state = optimizer.update(weights, optimizer.init(weights), weights, value=1.5)
    >>> run = gfm.trajectory(opt_state, optax.apply_updates(weights, updates))
    >>> run.weights.tolist(), run.time.tolist(), run.learning_rate.tolist()
    ([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]], [0.0, 0.5], [0.5, 0.5])
    """
    if is_traced(opt_state, weights):
        raise ValueError("opt_state: expected known values, got traced ones; call trajectory outside of jax.jit")
    state = _find(opt_state)
    nums, orders = np.asarray(_array(state.watched.num)), np.asarray(_array(state.watched.order))
    if not nums.all():
        raise ValueError("opt_state: expected the state of at least one update, got one of none")
    is_batch = nums.ndim == 1
    if is_batch and (nums != nums[0]).any():
        raise ValueError(
            f"opt_state: expected as many saves of every run of a batch, got {nums.tolist()}; take one at a time"
        )
    # The variables in which NNX holds an optimizer's state are no parameters to `layout_of`.
    names = leaf_names(state.watched.start)
    layout = Layout(names, tuple(jnp.shape(leaf)[is_batch:] for leaf in jax.tree.leaves(state.watched.start)))
    order = orders[0, : nums[0]] if is_batch else orders[:nums]  # the same for all runs, as their counts are
    now = None if weights is None else _in_order(weights, layout, is_batch)
    run = (jax.vmap(_run, in_axes=(0, None, None if now is None else 0)) if is_batch else _run)(state, order, now)
    if run.learning_rate is None:
        warnings.warn("learning_rate: not known to `watch`; the clock of the run is its number of steps", stacklevel=2)
    if run.loss is not None and jnp.isnan(run.loss).any():
        run = run._replace(loss=None)
    return run._replace(layout=layout)


def _run(state, order, now) -> Trajectory:
    """The saves in their order, and after them what a save after the last update holds."""
    history = state.watched
    numbers: dict[str, Any] = {name: _array(array)[order] for name, array in history.moments.items()}
    saves: dict[str, Any] = {name: _flat(tree, order) for name, tree in history.rows.items() if name != "state"}
    slots = {name: _flat(tree, order) for name, tree in history.rows.get("state", {}).items()}
    if now is not None:
        last = _last(state, now)
        numbers = {name: jnp.append(array, last[name].astype(array.dtype)) for name, array in numbers.items()}
        saves = {name: jnp.concatenate([rows, last[name][None]]) for name, rows in saves.items()}
        slots = {name: jnp.concatenate([rows, last["state"][name][None]]) for name, rows in slots.items()}
    saves |= {name: saves[name] + _flat(history.start) for name in OFF_START if name in saves}
    return Trajectory(**numbers, **saves, state=slots or None, finite=jnp.isfinite(saves["weights"]).all())


def _last(state, now) -> dict[str, Any]:
    """What a save after the last update holds; means are over the steps since the last save that was kept."""
    history = state.watched
    calls, losses = _array(history.calls), _array(history.losses)
    found = {
        "step": _array(history.count),
        "time": _array(history.time),
        "learning_rate": _array(history.rate),
        "loss": jnp.where(losses > 0, _array(history.sums["loss"]) / losses, jnp.nan),
        "weights": _flat(now) - _flat(history.start),
        "state": {name: _flat(slot) for name, slot in optimizer_slots(state.inner_state, history.start).items()},
    }
    if "mean_weights" in history.sums:  # the weights after each step, of which these are the last
        found["mean_weights"] = (_flat(history.sums["mean_weights"]) + found["weights"]) / calls
    if "gradient" in history.sums:
        found["gradient"] = _flat(history.sums["gradient"]) / calls
    return found


def _in_order(weights, layout, is_batch):
    """The weights that were watched, in the order of the layout: all that are given, or that part of them."""
    names = check_parameters(weights)
    own = dict(zip(names, jax.tree.leaves(weights), strict=True))
    expected = dict(zip(layout.names, layout.shapes, strict=True))
    for name, shape in expected.items():
        if name not in own:
            raise ValueError(
                f"weights: expected those that were watched, got none called {name!r}, only {', '.join(names[:4])}"
            )
        if jnp.shape(own[name])[is_batch:] != shape:
            raise ValueError(
                f"weights: expected {name!r} of shape {shape}, as it was watched, got {jnp.shape(own[name])}"
            )
    return [own[name] for name in layout.names]


def _find(opt_state) -> WatchState:
    """The one state of `watch` within a state of any nesting."""
    is_ours = lambda node: (
        isinstance(node, WatchState) or (isinstance(node, Mapping) and set(WatchState._fields) <= set(node))
    )
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
    if len(found) != 1:
        got = (
            "none; the state comes first, the weights second" if not found else f"{len(found)}, of parts of the weights"
        )
        ways = "" if not found else "; hand over that of one part, such as opt_state.inner_states[label]"
        raise ValueError(f"opt_state: expected the state of an optimizer of `watch`, got {got}{ways}")
    if isinstance(found[0], WatchState):
        return found[0]
    watched = _with_lists(found[0]["watched"])  # as it is restored without a target
    history = History(**{name: watched.get(name) for name in History._fields})
    return WatchState(_with_lists(found[0]["inner_state"]), history)


def _with_lists(node) -> Any:
    """A restored tree in which what was a list, and came back as a dict of numbers in the order of texts, is a list again."""
    if not isinstance(node, Mapping):
        return [_with_lists(child) for child in node] if isinstance(node, list | tuple) else node
    if node and all(str(key).isdigit() for key in node):
        return [_with_lists(node[key]) for key in sorted(node, key=int)]
    return {key: _with_lists(child) for key, child in node.items()}


def _array(leaf) -> Any:
    """The array of a leaf, which NNX holds in a variable; None as it is."""
    return next((jnp.asarray(array) for array in jax.tree.leaves(leaf)), None)


def _flat(tree, order=None):
    """All leaves as one vector in float32 or better; with the `order` of saves, as one row for each."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    if order is None:
        return jnp.concatenate([as_accumulator(leaf).ravel() for leaf in leaves])
    return jnp.concatenate([as_accumulator(as_floats(leaf[order])).reshape(len(order), -1) for leaf in leaves], axis=-1)
