"""By which counters of its state an optimizer looks its learning rate up: read off the program of one update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

__all__ = ["Clock", "clock_of", "schedule"]

# States of the wrappers of optax that leave steps out: such a step moves nothing.
SKIPPERS = ("MultiStepsState", "ApplyIfFiniteState", "ConditionallyMaskState")
# The state of an optimizer that chooses its rates by itself, and sums them up in `time`.
OWN_CLOCK = ("EmbeddedState",)


class Clock(NamedTuple):
    """Where to read the sum of the learning rates of the steps that were taken.

    Attributes:
      counters: indices of the state's leaves by which the learning rate is looked up; empty for an optimizer that does not look
        it up: its counter is the number of the step.
      by_step: whether each step has to be looked at, because a wrapper leaves steps out for which a counter moves (as in
        `optax.chain(optax.MultiSteps(...), optax.scale_by_learning_rate(lr))`). Else the counters at a save are enough.
      own: index of the leaf that is such a sum itself, None for none.
    """

    counters: tuple[int, ...]
    by_step: bool
    own: int | None


def schedule(count: Array) -> Array:
    """A learning rate to build an optimizer with for `clock_of`, which finds the places where it is called."""
    return _LOOKUP(count)


def looked_up_learning_rate(count):
    return 0.0 * jnp.asarray(count).astype(jnp.float32)


_LOOKUP = jax.jit(looked_up_learning_rate)


def clock_of(update: Callable, state: PyTree, *rest: PyTree) -> tuple[Clock, PyTree, PyTree]:
    """The clock of an optimizer that was built with `schedule` as its learning rate.

    Args:
      update: `(state, *rest) -> (updates, state)`.
      state, rest: the shapes and dtypes of its arguments.

    Returns:
      The clock, and the shapes and dtypes of what `update` returns.
    """
    program, (updates, new_state) = jax.make_jaxpr(update, return_shape=True)(state, *rest)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    tags = [_tag_of(i, leaf) for i, (_, leaf) in enumerate(leaves)]
    tags += [NOTHING] * (len(program.jaxpr.invars) - len(leaves))
    lookups = set()
    _follow(program.jaxpr, tags, lookups)
    counters = {i for i, same in lookups if same} or {i for i, _ in lookups}

    paths = [path for path, _ in leaves]
    holds = lambda wrapper, i: paths[i][: len(wrapper)] == wrapper
    outside = [w for w in _nodes(state, SKIPPERS) if not counters or not all(holds(w, i) for i in counters)]
    own = [i for node in _nodes(state, OWN_CLOCK) for i in range(len(paths)) if _is_field(paths[i], node, "time")]
    return Clock(tuple(sorted(counters)), bool(outside or own), own[0] if own else None), updates, new_state


# --- which leaf of the state a value in the program is ------------------------------------------------------------------

# A tag is the set of the scalars of the state on which a value depends, and whether it is one of them, unchanged.
NOTHING = (frozenset(), False)
UNCHANGED = ("convert_element_type", "copy", "copy_p", "reshape", "squeeze", "broadcast_in_dim", "stop_gradient")


def _tag_of(i, leaf):
    is_counter = leaf.shape == () and not jnp.issubdtype(leaf.dtype, jnp.bool_)
    return (frozenset([i]), True) if is_counter else NOTHING


def _follow(program, tags, lookups):
    """The tags of the results; adds (leaf, whether unchanged) to `lookups` for each learning rate that is looked up."""
    known = dict(zip(program.invars, tags, strict=True))
    tag_of = lambda value: NOTHING if hasattr(value, "val") else known.get(value, NOTHING)
    for equation in program.eqns:
        given = [tag_of(value) for value in equation.invars]
        if equation.params.get("name") == looked_up_learning_rate.__name__:
            lookups.update((i, same) for on, same in given for i in on)
        results = [_follow(inner, t, lookups) for inner, t in _inner_programs(equation, given)]
        all_of = (frozenset().union(*(on for on, _ in given)), False)
        found = [given[0]] if equation.primitive.name in UNCHANGED else [all_of] * len(equation.outvars)
        if len(results) == 1 and len(results[0]) == len(equation.outvars):
            [found] = results
        known.update(zip(equation.outvars, found, strict=False))
    return [tag_of(value) for value in program.outvars]


def _inner_programs(equation, given):
    """The programs inside an equation (of a jit, a branch, a loop), each with the tags of its arguments."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return [(branch.jaxpr, given[1:]) for branch in params["branches"]]
    if name == "while":
        of_condition = params["cond_nconsts"]
        return [(params["body_jaxpr"].jaxpr, [*given[of_condition:]])]
    inner = [getattr(value, "jaxpr", value) for value in params.values()]
    return [(program, given) for program in inner if len(getattr(program, "invars", ())) == len(given) and given]


# --- nodes of the state -------------------------------------------------------------------------------------------------


def _nodes(tree, kinds, path=()):
    """The paths of all NamedTuples of these kinds, one inside the other too."""
    is_kind = lambda node: type(node).__name__ in kinds
    found = [path] if is_kind(tree) and not path else []
    inside = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree and is_kind(node))
    for below, node in inside:
        if is_kind(node):
            found += [path + below, *_nodes(node, kinds, path + below)]
    return found


def _is_field(path, node, name):
    return len(path) == len(node) + 1 and path[: len(node)] == node and getattr(path[-1], "name", None) == name
