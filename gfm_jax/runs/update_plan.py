"""What is known of an optimizer before it runs: found by tracing one update, in shapes and dtypes alone."""

import functools
import inspect
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gfm_jax.optimizers.whole_gradient import WholeGradient, whole_params
from gfm_jax.pytrees import layout_of
from gfm_jax.runs.counters import Clock, clock_of, schedule
from gfm_jax.runs.slots import unrecorded_state

__all__ = ["UpdatePlan", "as_dtypes", "cached_plan", "functions_of", "plan_of", "warn_of_slots", "weights_of"]

EXTRA = ("value", "grad", "value_fn", "grad_fn")  # what optimizers may ask for beside the gradient, in optax's names


class UpdatePlan(NamedTuple):
    """What is known of an optimizer before it runs: the extra arguments that it takes, its clock, the dtypes of its state, and
    what of its state is shaped like weights but is no slot."""

    extra: tuple[str, ...]
    clock: Clock
    dtypes: tuple
    left_out: tuple[str, ...]


def functions_of(transform):
    """`init` and `update`, which takes extra arguments (a GradientTransformation made of a `MultiSteps` takes them too)."""
    takes_more = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(transform.update).parameters.values())
    if takes_more or isinstance(transform, optax.GradientTransformationExtraArgs):
        return transform.init, transform.update
    return transform.init, optax.with_extra_args_support(transform).update


def plan_of(optimizer, weights):
    """Traces one update, in shapes and dtypes alone; refuses an optimizer that cannot be recorded."""
    try:
        transform = optimizer(schedule)
        init, update = functions_of(transform)
        state = jax.eval_shape(init, weights)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"optimizer: expected a function of the learning rate, a schedule; {_said(error)}") from error
    if any(type(node).__name__ == "LookaheadState" for node in _nodes_of(state)):
        raise ValueError(
            "optimizer: expected one that updates the task's weights, got optax.lookahead, whose parameters are a pair of fast "
            "and slow weights: record its fast optimizer, and average the saves"
        )
    dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(weights)))

    def updated(extra, state, gradient, weights, value):
        given = {
            "value": value,
            "grad": gradient,
            "value_fn": lambda at, grad_fn=None: sum(
                (jnp.sum(leaf).astype(value.dtype) for leaf in jax.tree.leaves(whole_params(at, weights))), value
            ),
            "grad_fn": WholeGradient(lambda at, *_: at, weights),
        }
        return update(gradient, state, weights, **{name: given[name] for name in extra})

    failure = None
    for extra in _extra_arguments(update):
        try:
            value = jax.ShapeDtypeStruct((), dtype)
            clock, updates, new_state = clock_of(functools.partial(updated, extra), state, weights, weights, value)
            break
        except (TypeError, ValueError, AttributeError) as error:
            failure = failure or error
    else:
        raise ValueError(
            f"optimizer: expected one that updates the task's weights from {', '.join(EXTRA)}; {_said(failure)}"
        ) from failure
    for name, old, new in (
        ("updates like the weights", weights, updates),
        ("a state that keeps its form", state, new_state),
    ):
        if jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, new):
            raise ValueError(f"optimizer: expected {name}, got {_differing(old, new)}")
    dtypes = tuple(
        a.dtype if a.dtype == b.dtype else jnp.promote_types(a.dtype, b.dtype)  # equal ones may be those of random keys
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
    )
    return UpdatePlan(extra, clock, dtypes, unrecorded_state(state, weights))


def _extra_arguments(update):
    """The extra arguments to try: those that it names, or all; then `grad_fn` alone, as SAM wants it inside a chain."""
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return [EXTRA, ("grad_fn",)]
    return [tuple(name for name in EXTRA if name in {p.name for p in parameters})]


def weights_of(init, key, variety):
    """The shapes and dtypes of the weights of one run, refused where they cannot be trained."""
    weights = jax.eval_shape(init, key, variety)
    layout_of(weights)  # refuses what is no parameter
    return weights


@functools.lru_cache(maxsize=64)
def cached_plan(optimizer, init, key, structure, variety, x64):
    """`plan_of` for one of many runs, once for all calls of a kind."""
    del x64
    held = functools.partial(jax.dtypes.canonicalize_dtype, allow_extended_dtype=True)  # int64 is int32 without x64
    one = lambda leaf: jax.ShapeDtypeStruct(leaf[0], held(leaf[1]))
    weights = weights_of(init, one(key), jax.tree.unflatten(structure, map(one, variety)))
    return plan_of(optimizer, weights)


def warn_of_slots(plan, keep):
    if plan.left_out and "state" in keep:
        warnings.warn(
            f"optimizer: {', '.join(plan.left_out)} of its state is shaped like some of the weights, but is no slot of all of "
            "them, and is not recorded",
            stacklevel=3,
        )


def as_dtypes(state, dtypes):
    leaves, treedef = jax.tree.flatten(state)
    of = lambda leaf, dtype: leaf if leaf.dtype == dtype else leaf.astype(dtype)
    return treedef.unflatten([of(jnp.asarray(leaf), dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)])


def _nodes_of(state):
    """The state, and all NamedTuples, tuples, lists and dicts inside of it."""
    children = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return [state, *(node for child in children for node in _nodes_of(child))]


def _said(error):
    return f"got {type(error).__name__}: {error}"


def _differing(old, new):
    if jax.tree.structure(old) != jax.tree.structure(new):
        return f"{jax.tree.structure(new)} for {jax.tree.structure(old)}"
    pairs = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
    differ = [(path, a.shape, b.shape) for (path, a), b in pairs if a.shape != b.shape]
    return ", ".join(f"{jax.tree_util.keystr(path)} {new} for {old}" for path, old, new in differ)
