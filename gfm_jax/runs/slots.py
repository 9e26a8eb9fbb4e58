"""An optimizer's slots: the parts of its state that have one number for each weight, found by their paths in the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gfm_jax.parameters import component

__all__ = ["optimizer_slots", "unrecorded_state", "with_slots"]

NO_SLOTS = {"hyperparams", "hyperparams_states", "watched"}  # of optax.inject_hyperparams, and the history of `watch`


class _Places(NamedTuple):
    """Where slots lie: by name, by the index of a weight, the index of the state's leaf; and the names of what is no slot
    although some of it is shaped like weights."""

    slots: dict[str, dict[int, int]]
    left_out: tuple[str, ...]


def optimizer_slots(state: PyTree, weights: PyTree) -> dict[str, PyTree]:
    """The slots of an optimizer's state under their own names (`mu`, `nu`, `trace`, ...), each as a tree like the weights.

    A floating-point leaf of the state belongs to a slot if its path ends with the path of a weight of the same shape; the slot
    is named by the last name in front of that path that is no number. Works for the state of any optax transformation
    (`chain`, `masked`, `partition`, `MultiSteps`, `inject_hyperparams`, ...), for `nnx.Optimizer.opt_state` and `nnx.state` of
    it, and for states restored without a target (dicts and lists). Usable under `jax.jit`.

    Slots of one name that belong to different weights (as `partition` and `optax.contrib.muon` make them) are put together,
    with zero for the weights that have none; a second slot of one name and of the same weights is called `name.1`, and so on.
    What has another shape (Adafactor's `v_row`, counters) is no slot.

    Args:
      state: of the optimizer.
      weights: a pytree of arrays, or of their shapes, with the paths that the optimizer was initialised with.

    Returns:
      By name, in the order of the state, a tree with the structure and shapes of the weights.

    >>> import optax
    >>> weights = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    >>> slots = optimizer_slots(optax.adam(0.1).init(weights), weights)
    >>> {name: slot["kernel"].shape for name, slot in slots.items()}
    {'mu': (2, 3), 'nu': (2, 3)}
    """
    treedef = jax.tree.structure(weights)
    shapes = [jnp.shape(w) for w in jax.tree.leaves(weights)]
    leaves = jax.tree.leaves(state)
    slots = {}
    for name, members in _places(state, weights).slots.items():
        dtype = jnp.result_type(*(leaves[i].dtype for i in members.values()))
        if set(members) == {WHOLE}:
            slots[name] = treedef.unflatten(_pieces(leaves[members[WHOLE]], shapes))
            continue
        missing = lambda j, dtype=dtype: jnp.zeros(shapes[j], dtype)
        parts = [leaves[members[j]] if j in members else missing(j) for j in range(len(shapes))]
        slots[name] = treedef.unflatten(parts)
    return slots


def with_slots(state: PyTree, weights: PyTree, slots: dict[str, PyTree | Float[Array, " dim"]]) -> PyTree:
    """The same state with other slots: the inverse of `optimizer_slots`, to go on from a forecast or a recorded save.

    Use it with `run.state` of one save: `with_slots(optimizer.init(weights), weights, {"mu": run.state["mu"][-1], ...})`.
    Counters and all else stay what they are in `state`. Usable under `jax.jit`.

    Args:
      state: of the optimizer, with the structure and dtypes of the result.
      weights: a pytree of arrays, or of their shapes, as for `optimizer_slots`.
      slots: by the names that `optimizer_slots` gives, a flat vector [dim] in the order of the weights, or a tree like them.

    Returns:
      A state of the same structure, shapes and dtypes. Of a slot that only some weights have, the others' numbers are not used.

    Raises:
      ValueError: for a missing or unknown name, or a slot of another size or structure.

    >>> import optax
    >>> weights = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    >>> state = with_slots(optax.sgd(0.1, momentum=0.9).init(weights), weights, {"trace": jnp.arange(9.0)})
    >>> optimizer_slots(state, weights)["trace"]["bias"].tolist()  # "bias" comes first in the flat vector
    [0.0, 1.0, 2.0]
    """
    places = _places(state, weights).slots
    if set(slots) != set(places):
        raise ValueError(f"slots: expected {_listed(places)}, got {_listed(slots)}")
    shapes = [jnp.shape(w) for w in jax.tree.leaves(weights)]
    leaves, treedef = jax.tree.flatten(state)
    for name, members in places.items():
        parts = _leaves_of_slot(name, slots[name], weights, shapes)
        for j, i in members.items():
            new = jnp.concatenate([jnp.ravel(p) for p in parts]) if j == WHOLE else parts[j]
            leaves[i] = jnp.asarray(new).astype(leaves[i].dtype)
    return treedef.unflatten(leaves)


def unrecorded_state(state: PyTree, weights: PyTree) -> tuple[str, ...]:
    """Names of what is shaped like some weights, but is no slot: parts of it have other shapes, or it has no name."""
    return _places(state, weights).left_out


# --- which leaf of a state belongs to which weight ----------------------------------------------------------------------

WHOLE = -1  # the index of all weights together, as optax.flatten hands them on: one vector


def _places(state, weights):
    weight_leaves = jax.tree_util.tree_leaves_with_path(weights)
    state_leaves = jax.tree_util.tree_leaves_with_path(state)
    found = _by_path([path for path, _ in weight_leaves])
    shapes = [jnp.shape(leaf) for _, leaf in weight_leaves]

    groups, bad, like_weights = {}, set(), set()
    for i, (path, leaf) in enumerate(state_leaves):
        names = _names(path)
        j, prefix = found(names)
        if j is None or NO_SLOTS & set(prefix):
            continue
        if prefix in groups and j in groups[prefix]:
            bad.add(prefix)
        groups.setdefault(prefix, {})[j] = i
        if _is_floating(leaf) and jnp.shape(leaf) == shapes[j]:
            if np.prod(shapes[j]) > 1:
                like_weights.add(prefix)
        else:
            bad.add(prefix)

    named = {prefix: members for prefix, members in groups.items() if prefix not in bad and _last_name(prefix)}
    if not named and len(shapes) > 1:
        named = _whole_vectors(state_leaves, sum(int(np.prod(shape)) for shape in shapes))
    slots = {}
    for prefix, members in named.items():
        _put_in(slots, _last_name(prefix), members)
    left_out = tuple("/".join(prefix) or "(no name)" for prefix in groups if prefix in like_weights - set(named))
    return _Places(slots, left_out)


def _by_path(paths):
    """A function of the names of a leaf of the state: the index of its weight, and the names before that weight's path.

    Leaves of NNX end in `value`, those of the weights, of the state or of both.
    """
    plain = {_names(path): j for j, path in enumerate(paths)}
    stripped = {names[:-1]: j for names, j in plain.items() if names[-1:] == ("value",)}
    longest = max(map(len, plain))

    def found(names):
        for ends in (names, names[:-1] if names[-1:] == ("value",) else None):
            for table in (plain, stripped):
                if ends is None or not table:
                    continue
                for cut in range(max(len(ends) - longest, 0), len(ends) + 1):
                    if ends[cut:] in table:
                        return table[ends[cut:]], ends[:cut]
        return None, ()

    return found


def _whole_vectors(state_leaves, dim):
    """The state of `optax.flatten`: one vector for all weights."""
    is_whole = lambda leaf: _is_floating(leaf) and jnp.shape(leaf) == (dim,)
    groups = {_names(path): {WHOLE: i} for i, (path, leaf) in enumerate(state_leaves) if is_whole(leaf)}
    return {names: members for names, members in groups.items() if _last_name(names)}


def _put_in(slots, name, members):
    """Into the first slot of that name in which its weights have nothing yet, else into a new one."""
    same = [other for other in slots if other.split(".")[0] == name]
    for other in same:
        if not set(slots[other]) & set(members):
            slots[other] = slots[other] | members
            return
    slots[name + (f".{len(same)}" if same else "")] = dict(members)


def _names(path):
    return tuple(map(component, path))


def _last_name(prefix):
    return next((name for name in reversed(prefix) if not name.isdigit()), None)


def _is_floating(leaf):
    return jnp.issubdtype(jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype, jnp.floating)


def _pieces(vector, shapes):
    stops = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [jnp.reshape(piece, shape) for piece, shape in zip(jnp.split(vector, stops[:-1]), shapes, strict=True)]


def _leaves_of_slot(name, slot, weights, shapes):
    dim = sum(int(np.prod(shape)) for shape in shapes)
    if hasattr(slot, "shape") and jnp.shape(slot) == (dim,):
        return _pieces(slot, shapes)
    same = jax.tree.structure(slot) == jax.tree.structure(weights)
    if not same or [jnp.shape(leaf) for leaf in jax.tree.leaves(slot)] != shapes:
        got = jnp.shape(slot) if hasattr(slot, "shape") else f"a tree with the leaves {jax.tree.map(jnp.shape, slot)}"
        raise ValueError(f"slots[{name!r}]: expected a vector [{dim}] or a tree like the weights, got {got}")
    return jax.tree.leaves(slot)


def _listed(names):
    return ", ".join(sorted(names)) if names else "none"
