"""Watch a run of one's own: an optimizer whose state keeps the weights of the whole run so far in fixed memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gfm_jax.checks import check_count, is_traced
from gfm_jax.parameters import check_parameters
from gfm_jax.runs.history import DTYPES, History, new_history, saved
from gfm_jax.runs.slots import optimizer_slots

__all__ = ["OPTIONAL", "WatchState", "watch"]

OPTIONAL = ("mean_weights", "gradient", "state")  # what is kept where it is asked for


class WatchState(NamedTuple):
    """The state of the optimizer that is watched, and the history of its run."""

    inner_state: Any
    watched: History


def watch(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
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

    Works inside `jax.jit`, `jax.lax.scan` and `jax.vmap`, for `nnx.Optimizer`, and for weights that are divided over a mesh; in
    and around `optax.chain`, `optax.MultiSteps`, `optax.apply_if_finite`, `optax.partition` and `optax.inject_hyperparams`.
    Steps are updates that are taken: accumulated minibatches count once, and losses are their means, but inside
    `optax.MultiSteps`, which hands on the last one alone. Donate the optimizer's state to a jitted step
    (`jax.jit(step, donate_argnums=...)`), or XLA copies the history at every step.

    bfloat16 keeps eight bits of the way from the start. Late in a run, where little moves from save to save, that can be a
    third of a move; `dtype=jnp.float32` costs twice the memory.

    Args:
      optimizer: any optax transformation whose updates are added to the weights.
      learning_rate: its rate, a number or a schedule of the count of updates. None for the one of
        `optax.inject_hyperparams`; where there is none, or several, the clock of the run is its number of steps, and
        `trajectory` warns.
      num_saves: rows of the history, an even number from 4 on.
      keep: beside weights, rates and losses, which of "mean_weights" and "gradient" (means over the steps since the save
        before) and "state" (the optimizer's slots) to keep; each costs as much again as the weights.
      dtype: of what is kept, bfloat16 or float32.

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
    if isinstance(optimizer, optax.MultiSteps):
        take: Any = optimizer.update
        optimizer = optax.GradientTransformationExtraArgs(optimizer.init, take)
    optimizer = optax.with_extra_args_support(optimizer)
    keep = tuple(keep)

    def init(params) -> Any:
        check_parameters(params, "params")
        inner_state = optimizer.init(params)
        like = {"weights": params} | _parts(keep, params, params, inner_state)
        rate = _rate(learning_rate, inner_state, jnp.zeros((), jnp.int32))
        return WatchState(inner_state, new_history(like, num_saves, dtype, rate))

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        _check_update(state, params, extra.get("value"))
        inner_state, history = state
        now = {"loss": extra.get("value"), "weights": params} | _parts(keep, params, updates, inner_state)
        history = saved(history, now)
        updates, new_state = optimizer.update(updates, inner_state, params, **extra)
        taken, rate = _taken(inner_state, new_state), _rate(learning_rate, new_state, history.count)
        if rate is not None and history.time is not None:
            time = history.time + jnp.where(taken, rate, 0)
            history = history._replace(time=time, rate=jnp.where(taken, rate, jnp.asarray(history.rate)))
        return updates, WatchState(new_state, history._replace(count=history.count + taken))

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
    if jnp.dtype(dtype) not in map(jnp.dtype, DTYPES):
        raise ValueError(f"dtype: expected bfloat16 or float32, got {dtype!r}")
    if learning_rate is None or callable(learning_rate) or is_traced(learning_rate):
        return
    is_number = np.ndim(learning_rate) == 0 and np.asarray(learning_rate).dtype.kind in "fiu"
    if not (is_number and 0 <= learning_rate < np.inf):
        raise ValueError(f"learning_rate: expected a schedule, or a finite number from 0 on, got {learning_rate!r}")


def _check_update(state, params, value):
    if params is None:
        raise ValueError("params: expected the weights, as in optimizer.update(gradient, state, weights), got None")
    if not isinstance(state, WatchState):
        got = type(state).__name__
        raise ValueError(
            f"state: expected what `init` of the watched optimizer returned, got {got}; restore it with a target"
        )
    if jax.tree.structure(params) != jax.tree.structure(state.watched.start):
        raise ValueError("params: expected the weights that `init` was given, got a tree of another structure")
    if value is not None and jnp.ndim(value) != 0:
        raise ValueError(f"value: expected the loss, a scalar, got shape {jnp.shape(value)}")


def _taken(old, new):
    """Whether an update was taken: those that `optax.MultiSteps` and `optax.apply_if_finite` leave out move nothing."""
    taken, skips = 1, lambda node: isinstance(node, optax.MultiStepsState | optax.ApplyIfFiniteState)
    for before, after in zip(*(jax.tree.leaves(tree, is_leaf=skips) for tree in (old, new)), strict=True):
        if isinstance(after, optax.MultiStepsState):
            taken = taken * (after.gradient_step != before.gradient_step).astype(jnp.int32)
        elif isinstance(after, optax.ApplyIfFiniteState):  # after too many in a row it takes even what is not finite
            counters = zip(*map(jax.tree.leaves, (before.inner_state, after.inner_state)), strict=True)
            counted = [old != new for old, new in counters if jnp.issubdtype(new.dtype, jnp.integer) and new.ndim == 0]
            taken = taken * functools.reduce(jnp.logical_or, counted, after.last_finite).astype(jnp.int32)
    return taken


def _rate(learning_rate, inner_state, count):
    """The learning rate of an update: of the schedule, or of `inject_hyperparams` once it has taken the update."""
    if learning_rate is None:
        found = [value for _, value in optax.tree_utils.tree_get_all_with_path(inner_state, "learning_rate")]
        found = [value for value in found if hasattr(value, "dtype") and jnp.ndim(value) == 0]  # no state of a schedule
        return jnp.asarray(found[0], jnp.float32) if len(found) == 1 else None
    return jnp.asarray(learning_rate(count) if callable(learning_rate) else learning_rate, jnp.float32)


def _parts(keep, params, gradient, inner_state):
    parts = {
        "mean_weights": lambda: params,
        "gradient": lambda: gradient,
        "state": lambda: optimizer_slots(inner_state, params),
    }
    return {name: parts[name]() for name in keep}
