"""Watch a run of one's own: an optimizer whose state keeps the weights of the whole run so far in fixed memory."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Layout, Trajectory
from gfm_jax.checks import check_count, is_traced
from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.parameters import check_parameters, leaf_names
from gfm_jax.pytrees import layout_of
from gfm_jax.runs.history import OFF_START, History, new_history, saved
from gfm_jax.runs.slots import optimizer_slots

__all__ = ["OPTIONAL", "WatchState", "trajectory", "watch"]

OPTIONAL = ("mean_weights", "gradient", "state")  # what is kept where it is asked for


class WatchState(NamedTuple):
    """The state of the optimizer that is watched, and the history of its run."""

    inner_state: Any
    watched: History


def watch(
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[Array], Array | float] | Float[Array, ""] | float | None = None,
    *,
    num_saves: int = 32,
    keep: Sequence[str] = (),
    dtype: DTypeLike = jnp.bfloat16,
) -> optax.GradientTransformationExtraArgs:
    r"""The same optimizer, whose state keeps saves of the weights, evenly spread over the run so far, in fixed memory.

    Use it in a training loop of your own, and read the run by `trajectory(opt_state, weights)`: while it trains or afterwards,
    also from a checkpoint of the optimizer's state. It changes no update. When all rows are full every other save goes, and the
    stride doubles, so that between `num_saves / 2` and `num_saves` saves span the run, however long it is.

    Saves hold :math:`w_k - w_0` in `dtype`, and :math:`w_0` once: a save costs 2 bytes a weight in bfloat16. Losses are kept
    where updates are given them, `optimizer.update(gradient, state, weights, value=loss)`.

    Works inside `jax.jit`, `jax.lax.scan` and `jax.vmap`, in `optax.chain`, `optax.MultiSteps`, `optax.partition` and
    `optax.inject_hyperparams`, for `nnx.Optimizer`, and for weights that are divided over a mesh. Donate the optimizer's state
    to a jitted step (`jax.jit(step, donate_argnums=...)`), or XLA copies the history at every step.

    Args:
      optimizer: any optax transformation whose updates are added to the weights.
      learning_rate: its rate, a number or a schedule of the count of updates. None for the one of
        `optax.inject_hyperparams`; where there is none, the clock of the run is its number of steps.
      num_saves: rows of the history, an even number from 4 on.
      keep: beside weights, rates and losses, which of "mean_weights" and "gradient" (means over the steps since the save
        before) and "state" (the optimizer's slots) to keep; each costs as much again as the weights.
      dtype: of what is kept, a floating-point type.

    Returns:
      An optax transformation, whose `update` needs the weights.

    Raises:
      ValueError: for an odd or small number of saves, an unknown part or dtype, a rate that is negative; and by `init` or
        `update`, for weights that are no parameters or are left out.

    >>> import gfm_jax as gfm
    >>> optimizer = gfm.watch(optax.sgd(0.1), learning_rate=0.1, num_saves=4)
    >>> weights = {"w": jnp.ones(2)}
    >>> opt_state = optimizer.init(weights)
    >>> for _ in range(9):
    ...     updates, opt_state = optimizer.update(weights, opt_state, weights)
    ...     weights = optax.apply_updates(weights, updates)
    >>> run = gfm.trajectory(opt_state, weights)
    >>> run.step.tolist(), run.weights.shape
    ([0, 4, 8, 9], (4, 2))
    """
    _check(optimizer, learning_rate, num_saves, keep, dtype)
    optimizer = optax.with_extra_args_support(optimizer)
    keep = tuple(keep)

    def init(params) -> Any:
        check_parameters(params, "params")
        inner_state = optimizer.init(params)
        like = {"weights": params} | _parts(keep, params, params, inner_state)
        rate = _rate(learning_rate, inner_state, jnp.zeros((), jnp.int32))
        return WatchState(inner_state, new_history(like, num_saves, dtype, rate))

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params: expected the weights, as in optimizer.update(gradient, state, weights), got None")
        inner_state, history = state
        loss = jnp.asarray(jnp.nan if extra.get("value") is None else extra["value"], jnp.float32)
        history = saved(history, {"loss": loss, "weights": params} | _parts(keep, params, updates, inner_state))
        updates, inner_state = optimizer.update(updates, inner_state, params, **extra)
        rate = _rate(learning_rate, inner_state, history.count)
        if rate is not None and history.time is not None:
            history = history._replace(time=history.time + rate, rate=rate)
        return updates, WatchState(inner_state, history._replace(count=history.count + 1))

    return optax.GradientTransformationExtraArgs(init, update)


def _check(optimizer, learning_rate: Any, num_saves, keep, dtype):
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        got = "a function; call it with its learning rate" if callable(optimizer) else type(optimizer).__name__
        raise ValueError(f"optimizer: expected an optax transformation, such as optax.adam(1e-3), got {got}")
    if check_count("num_saves", num_saves) < 4 or num_saves % 2:
        raise ValueError(f"num_saves: expected an even number from 4 on, got {num_saves}")
    if isinstance(keep, str) or (unknown := [str(part) for part in keep if part not in OPTIONAL]):
        got = repr(keep) if isinstance(keep, str) else ", ".join(unknown)
        raise ValueError(f"keep: expected a sequence of parts among {', '.join(OPTIONAL)}, got {got}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype: expected a floating-point type, got {dtype!r}")
    if learning_rate is None or callable(learning_rate) or is_traced(learning_rate):
        return
    if not (np.ndim(learning_rate) == 0 and 0 <= learning_rate < np.inf):
        raise ValueError(f"learning_rate: expected a schedule, or a finite number from 0 on, got {learning_rate!r}")


def _rate(learning_rate, inner_state, count):
    """The learning rate of an update: of the schedule, or of `inject_hyperparams` once it has taken the update."""
    if learning_rate is None:
        found = [value for _, value in optax.tree_utils.tree_get_all_with_path(inner_state, "learning_rate")]
        return jnp.asarray(found[0], jnp.float32) if len(found) == 1 and jnp.ndim(found[0]) == 0 else None
    return jnp.asarray(learning_rate(count) if callable(learning_rate) else learning_rate, jnp.float32)


def _parts(keep, params, gradient, inner_state):
    parts = {
        "mean_weights": lambda: params,
        "gradient": lambda: gradient,
        "state": lambda: optimizer_slots(inner_state, params),
    }
    return {name: parts[name]() for name in keep}


# --- the run ----------------------------------------------------------------------------------------------------------


def trajectory(opt_state: PyTree, weights: PyTree | None = None) -> Trajectory:
    """The run that `watch` has kept in an optimizer's state, ready to be forecast.

    Use it at any time, outside of `jax.jit`: while the run trains, after it, or on a state restored from a checkpoint.

    Args:
      opt_state: the optimizer's state, of any nesting, as it was returned or as a checkpoint restores it;
        `optimizer.opt_state` of an `nnx.Optimizer`.
      weights: as they are now, after the last update. They become the last save, in full precision; without them the run ends
        at the last save that was kept.

    Returns:
      A run [saves, ...] in float32 or better, with a layout. `time` and `learning_rate` are None where `watch` knew no
      rate, `loss` where no update was given one.

    Raises:
      ValueError: where there is no state of `watch`, or more than one, no update was taken, `weights` are others than the
        state is of, or are traced.

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
    history = state.watched
    # The variables in which NNX holds an optimizer's state are no parameters to `layout_of`.
    layout = Layout(leaf_names(history.start), tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(history.start)))
    num = int(_array(history.num))
    if not num:
        raise ValueError("opt_state: expected the state of at least one update, got one of none")
    order = np.asarray(_array(history.order))[:num]
    numbers: dict[str, Any] = {name: _array(array)[order] for name, array in history.moments.items()}
    saves: dict[str, Any] = {name: _flat(tree, order) for name, tree in history.rows.items() if name != "state"}
    slots = {name: _flat(tree, order) for name, tree in history.rows.get("state", {}).items()}
    if weights is not None:
        now = _now(state, weights, layout, int(_array(history.count)) - int(numbers["step"][-1]))
        numbers = {name: jnp.append(array, now[name].astype(array.dtype)) for name, array in numbers.items()}
        saves = {name: jnp.concatenate([rows, now[name][None]]) for name, rows in saves.items()}
        slots = {name: jnp.concatenate([rows, now["state"][name][None]]) for name, rows in slots.items()}
    saves |= {name: saves[name] + _flat(history.start) for name in OFF_START if name in saves}
    if jnp.isnan(numbers["loss"]).all():
        del numbers["loss"]
    finite = jnp.isfinite(saves["weights"]).all()
    return Trajectory(**numbers, **saves, state=slots or None, finite=finite, layout=layout)


def _now(state, weights, layout, steps):
    """What a save after the last update holds, `steps` steps after the last one that was kept."""
    history, own = state.watched, layout_of(weights)
    if (own.names, own.shapes) != (layout.names, layout.shapes):
        pairs = (set(zip(each.names, each.shapes, strict=True)) for each in (own, layout))
        differ = sorted(set.symmetric_difference(*pairs))[:4]
        raise ValueError(f"weights: expected those that were watched, got others, which differ in {differ}")
    now = {
        "step": _array(history.count),
        "time": _array(history.time),
        "learning_rate": _array(history.rate),
        "loss": _array(history.sums["loss"]) / steps,
        "weights": _flat(weights) - _flat(history.start),
        "state": {name: _flat(slot) for name, slot in optimizer_slots(state.inner_state, weights).items()},
    }
    if "mean_weights" in history.sums:  # the weights after each step, of which these are the last
        now["mean_weights"] = (_flat(history.sums["mean_weights"]) + now["weights"]) / steps
    if "gradient" in history.sums:
        now["gradient"] = _flat(history.sums["gradient"]) / steps
    return now


def _find(opt_state) -> WatchState:
    """The one state of `watch` within a state of any nesting."""
    is_ours = lambda node: (
        isinstance(node, WatchState) or (isinstance(node, Mapping) and set(WatchState._fields) <= set(node))
    )
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
    if len(found) != 1:
        got = "none" if not found else f"{len(found)} of them; hand over that of one part of the weights"
        raise ValueError(f"opt_state: expected the state of an optimizer of `watch`, got {got}")
    if isinstance(found[0], WatchState):
        return found[0]
    watched = found[0]["watched"]  # as it is restored without a target
    return WatchState(found[0]["inner_state"], History(**{name: watched.get(name) for name in History._fields}))


def _array(leaf) -> Any:
    """The array of a leaf, which NNX holds in a variable; None as it is."""
    return next((jnp.asarray(array) for array in jax.tree.leaves(leaf)), None)


def _flat(tree, order=None):
    """All leaves as one vector in float32 or better; with the `order` of saves, as one row for each."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    if order is None:
        return jnp.concatenate([as_accumulator(leaf).ravel() for leaf in leaves])
    return jnp.concatenate([as_accumulator(leaf[order]).reshape(len(order), -1) for leaf in leaves], axis=-1)
