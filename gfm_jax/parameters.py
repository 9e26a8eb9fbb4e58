"""Parameters apart from other state: what an optimizer moves, and what it must not."""

import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey
from jaxtyping import PyTree

from gfm_jax.layers import parts_of

__all__ = ["check_parameters", "component", "leaf_names", "statistics_among"]

# Collections of flax that hold no parameters.
COLLECTIONS = {"batch_stats", "cache", "intermediates", "perturbations", "_overwrite_with_gradient"}
# What torch, Keras, haiku and transformers call running statistics and constants.
STATISTIC = re.compile(r"(running|moving)_\w+|num_batches_tracked|inv_freq")
BATCH_NORM = re.compile(r"(?i)(.*_)?(batch_?norm(alization)?|bn)_?\d*")


def check_parameters(weights: PyTree, name: str = "weights") -> tuple[str, ...]:
    """Refuses what is no parameter: running statistics, counters, keys, and leaves that are not real floating-point arrays.

    Use it wherever weights come in that are to be trained or forecast. It looks at names, types and dtypes, not at values:
    arrays, their shapes and traced arrays are treated alike.

    Args:
      weights: a pytree of arrays or of their shapes; None and empty arrays are fine.
      name: of the argument, for the error.

    Returns:
      The names of the leaves, such as "hidden_0/kernel", in the order of `pytrees.ravel`.

    Raises:
      ValueError: for a pytree without leaves; for collections of flax other than "params", such as batch_stats; for variables
        of NNX that are not `nnx.Param`; for names of running statistics; for leaves that are not real floating-point arrays.

    >>> check_parameters({"params": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}})
    ('Dense_0/bias', 'Dense_0/kernel')
    """
    _check_variables(weights, name)
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if not leaves:
        raise ValueError(f"{name}: expected a pytree with at least one array, got one without leaves")
    paths = [path for path, _ in leaves]
    _check_collections([tuple(component(key) for key in path) for path in paths], name)
    names = leaf_names(weights)
    _check_statistics(names, name)
    _check_dtypes(names, [leaf for _, leaf in leaves], name)
    return names


def component(key) -> str:
    """What one step of the path of a leaf is called: a key, a field, or a number."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def leaf_names(weights: PyTree) -> tuple[str, ...]:
    """The names of the leaves, without what libraries add to their paths: the collection "params", and the field in which a
    variable of NNX holds its array."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(weights)]
    components = [[component(key) for key in path] for path in paths]
    holds = lambda path: len(path) > 1 and path[-1] in ("value", "raw_value")
    all_hold = all(map(holds, components))
    names = []
    for path, own in zip(paths, components, strict=True):
        own = own[:-1] if holds(own) and (all_hold or isinstance(path[-1], GetAttrKey)) else own
        names.append(re.sub(r"^params[/.]", "", "/".join(part for part in own if part != "params")))
    return tuple(names)


# --- variables of NNX ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _names_of_bases(kind: type) -> frozenset[str]:
    """What its classes are called in flax.nnx, which is not imported for that."""
    return frozenset(base.__name__ for base in kind.__mro__ if base.__module__.startswith("flax.nnx"))


def _is_variable(node) -> bool:
    return bool(_names_of_bases(type(node)) & {"Variable", "VariableState"})


def _check_variables(weights, name):
    found = jax.tree_util.tree_leaves_with_path(weights, is_leaf=_is_variable)
    kinds = [
        (path, getattr(node, "type", type(node)) if "VariableState" in _names_of_bases(type(node)) else type(node))
        for path, node in found
        if _is_variable(node)
    ]
    others = [(path, kind.__name__) for path, kind in kinds if "Param" not in _names_of_bases(kind)]
    if others:
        where = _several(f"{kind} at {'/'.join(map(component, path))}" for path, kind in others)
        raise ValueError(
            f"{name}: expected variables of type nnx.Param, got {where}; take nnx.state(model, nnx.Param), and leave the other "
            "state to the network (nnx.split(model, nnx.Param, ...) keeps the two apart)"
        )


# --- collections of flax, and names -------------------------------------------------------------------------------------


def _check_collections(paths, name):
    paths = [(*parts_of(path[0]), *path[1:]) if path else () for path in paths]  # flat names too
    with_params = {path[:k] for path in paths for k, part in enumerate(path) if part == "params"}
    others = {
        path[k]
        for path in paths
        for k in range(len(path) - 1)
        if path[:k] in with_params and path[k] != "params" and (k == 0 or path[k] in COLLECTIONS)
    }
    others |= {part for path in paths for part in path if part == "batch_stats"}
    tops = {path[0] for path in paths if path}
    others |= tops if tops and tops <= COLLECTIONS else set()
    if others:
        raise ValueError(
            f'{name}: expected parameters alone, got the collections {", ".join(sorted(others))}; take variables["params"], '
            "and hand the other collections to `apply` in a closure, since they are not to be trained"
        )


def _check_statistics(names, name):
    if found := statistics_among(names):
        raise ValueError(
            f"{name}: expected parameters alone, got what its name tells to be a running statistic or a constant: "
            f"{_several(found)}; take it out, and hand it to the network in a closure, since it is not to be trained"
        )


def statistics_among(names: Sequence[str]) -> list[str]:
    """Those names that tell of a running statistic, a counter or a constant, which no optimizer moves.

    >>> statistics_among(["bn.weight", "bn.running_mean", "norm/scale", "norm/mean", "norm/var"])
    ['bn.running_mean', 'norm/mean', 'norm/var']
    """
    siblings: dict[tuple, set[str]] = {}
    split = [parts_of(own) for own in names]
    for *parent, last in filter(None, split):
        siblings.setdefault(tuple(parent), set()).add(last)

    def is_statistic(parts):
        *parent, last = parts
        beside = siblings[tuple(parent)]
        of_norm = {"mean", "var"} <= beside and (
            bool({"scale", "bias"} & beside) or bool(parent and BATCH_NORM.fullmatch(parent[-1]))
        )
        return (
            bool(STATISTIC.fullmatch(last))
            or (last in ("mean", "var") and of_norm)
            or (last in ("weight_u", "weight_v") and "weight_orig" in beside)
            or bool({"mean_ema", "var_ema"} & set(parent))
        )

    return [own for own, parts in zip(names, split, strict=True) if parts and is_statistic(parts)]


# --- dtypes ---------------------------------------------------------------------------------------------------------------


def _check_dtypes(names, leaves, name):
    bad = [(own, kind) for own, leaf in zip(names, leaves, strict=True) if (kind := _not_real(leaf))]
    if not bad:
        return
    where = _several(f"{kind} at {own or 'the root'}" for own, kind in bad)
    kinds = {kind for _, kind in bad}
    if all(kind.startswith("complex") for kind in kinds):
        way_out = "write a complex weight as two real arrays"
    elif any(kind.startswith("a ") for kind in kinds):
        way_out = "take the arrays alone, as eqx.filter(model, eqx.is_inexact_array) or jnp.asarray of each do"
    else:
        way_out = (
            "counters, masks and keys are not to be trained: take them out, and hand them to the network in a closure"
        )
    raise ValueError(f"{name}: expected real floating-point arrays, got {where}; {way_out}")


def _not_real(leaf) -> str:
    """What a leaf is instead of a real floating-point array, "" where it is one."""
    if isinstance(leaf, float):
        return ""
    dtype = np.dtype(type(leaf)) if isinstance(leaf, bool | int | complex) else getattr(leaf, "dtype", None)
    if dtype is None or (not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | complex)):
        return f"a {type(leaf).__name__}"
    if hasattr(dtype, "type") and jnp.issubdtype(dtype, jax.dtypes.extended):
        return str(dtype)
    if not isinstance(dtype, np.dtype):
        return f"a {type(leaf).__module__}.{type(leaf).__name__}"
    return "" if jnp.issubdtype(dtype, jnp.floating) else str(dtype)


def _several(texts, most: int = 4) -> str:
    texts = list(texts)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
