"""Symmetries of networks: units that may change places, and be rescaled, without changing what the network computes."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.parameters import leaf_names
from gfm_jax.pytrees import ravel, unravel
from gfm_jax.weights.symmetry.trace import trace_axes
from gfm_jax.weights.symmetry.trial import change, moved, rescaled, trial_of

__all__ = [
    "Element",
    "Family",
    "Symmetry",
    "act",
    "change_of_outputs",
    "find_relabeling",
    "find_symmetry",
    "flat",
    "leaves_of",
    "move",
    "random_element",
    "relabel",
    "rescale",
]


class Family(NamedTuple):
    """Units that may change places.

    Attributes:
      size: how many they are.
      places: (leaf, axis) of every axis that runs over them, in the weights as `Symmetry` views them.
      exponents: of every independent rescaling, how each place counts: a unit scaled by s multiplies its entries at place p
        by s^e_p.
    """

    size: int
    places: tuple[tuple[int, int], ...]
    exponents: tuple[tuple[float, ...], ...]


class Symmetry(NamedTuple):
    """The group: of every leaf of the weights the shape in which each axis runs over one family, and the families."""

    shapes: tuple[tuple[int, ...], ...]
    families: tuple[Family, ...]


class Element(NamedTuple):
    """Of every family, which unit comes to each place, and the logarithms of the factors of every rescaling."""

    order: tuple[Int[Array, " size"], ...]
    log_scale: tuple[Float[Array, "rescalings size"], ...]


def find_symmetry(apply: Callable, weights: PyTree, *inputs: PyTree, check: bool = True) -> Symmetry:
    r"""Finds the permutations and rescalings of hidden units that leave a network's outputs as they are.

    .. math:: f_{g \cdot w}(x) = f_w(x) \quad \forall g

    The network's own program is followed, operation by operation, whatever the architecture: dense layers, convolutions,
    residual connections, normalisation, attention. Rescalings are found where all that acts on a unit is positively
    homogeneous, as relu is. Of an operation that is not known no symmetry is claimed. What was found is then tried at random
    weights and inputs, each family's permutations and rescalings by themselves; what changes the outputs is left out, with a
    warning that names the tensors.

    Args:
      apply: `(weights, *inputs) -> outputs`.
      weights: a pytree of arrays, or of their shapes.
      *inputs: of the network: examples, or their shapes.
      check: whether to try what was found: a compilation of the network, and a call for each family and rescaling.

    Returns:
      The symmetry, of flat weights as `pytrees.ravel` makes them.

    >>> apply = lambda w, x: jax.nn.relu(x @ w["in"]) @ w["out"]
    >>> symmetry = find_symmetry(apply, {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 1))}, jnp.ones((4, 2)))
    >>> [(family.size, family.places, len(family.exponents)) for family in symmetry.families]
    [(3, ((0, 1), (1, 0)), 1)]
    """
    traced = trace_axes(apply, weights, *inputs)
    symmetry = _symmetry(traced)[0]
    if not check or not symmetry.families:
        return symmetry
    return _confirmed(symmetry, trial_of(traced.program, weights, inputs), traced.eps, leaf_names(weights))


def _confirmed(symmetry, trial, eps, names):
    """What of a symmetry leaves the outputs of a trial as they are."""

    def drop(what, family, why):
        tensors = ", ".join(dict.fromkeys(names[leaf] or "the weights" for leaf, _ in family.places))
        warnings.warn(f"find_symmetry: {what} of {family.size} units of {tensors} dropped: {why}", stacklevel=4)

    why = "outputs at random weights are not finite, so that it cannot be tried; check=False keeps it"
    families = []
    for number, family in enumerate(symmetry.families):
        if trial.outputs is None:
            drop("the symmetry", family, why)
            continue
        if (found := change(trial, moved(trial, symmetry.shapes, family, number)[0])) > math.sqrt(eps):
            drop("the exchange", family, f"it changes outputs by {found:.2g} of the largest")
            continue
        kept = []
        for exponents in family.exponents:
            if (found := change(trial, rescaled(trial, symmetry.shapes, family, exponents, number))) > math.sqrt(eps):
                drop("a rescaling", family, f"it changes outputs by {found:.2g} of the largest")
            else:
                kept.append(exponents)
        families.append(family._replace(exponents=tuple(kept)))
    return symmetry._replace(families=tuple(families))


def find_relabeling(apply: Callable, weights: PyTree, *inputs: PyTree, check: bool = True) -> Symmetry:
    r"""Finds how a network's outputs, the classes that it tells apart, can be exchanged by exchanging weights.

    .. math:: f_{g \cdot w}(x) = g \cdot f_w(x)

    Args:
      apply, weights, inputs, check: as in `find_symmetry`; outputs are exchanged along their last axis.

    Returns:
      A symmetry of one family, the outputs, for `relabel`.

    Raises:
      ValueError: where the outputs are no units that can change places, or do not do so when it is tried.

    >>> relabeling = find_relabeling(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.ones((4, 2)))
    >>> relabeling.families[0].size, relabeling.families[0].places
    (3, ((0, 1),))
    """
    traced = trace_axes(apply, weights, *inputs, relabel=True)
    symmetry, names = _symmetry(traced)
    refused = ValueError("apply: expected outputs that are units of the network's last layer, to be exchanged")
    if len(traced.outputs) != 1 or traced.outputs[0] not in names:
        raise refused
    outputs = symmetry.families[names.index(traced.outputs[0])]
    if check:
        trial = trial_of(traced.program, weights, inputs)
        leaves, order = moved(trial, symmetry.shapes, outputs)
        if trial.outputs is None or change(trial, leaves, order) > math.sqrt(traced.eps):
            raise refused
    return Symmetry(symmetry.shapes, (outputs._replace(exponents=()),))


def _symmetry(traced):
    """The group, and the numbers of its families."""
    places: dict[int, list] = {}
    for leaf, legs in enumerate(traced.legs):
        for axis, leg in enumerate(legs):
            if leg.family not in traced.pinned:
                places.setdefault(leg.family, []).append((leaf, axis, leg))
    families = []
    for family, found in places.items():
        degrees = [leg.degree for _, _, leg in found]
        exponents = _rescalings(degrees, traced.relations.get(family, []))
        families.append(Family(found[0][2].size, tuple((leaf, axis) for leaf, axis, _ in found), exponents))
    shapes = tuple(tuple(leg.size for leg in legs) for legs in traced.legs)
    return Symmetry(shapes, tuple(families)), list(places)


def _rescalings(degrees, relations):
    """A basis of the degrees of some axes, under linear relations among them and others."""
    numbers = sorted({*degrees, *(number for row in relations for number in row)})
    column = {number: i for i, number in enumerate(numbers)}
    matrix = np.zeros((max(len(relations), 1), len(numbers)))
    for i, row in enumerate(relations):
        for number, coefficient in row.items():
            matrix[i, column[number]] = coefficient
    of_places = scipy.linalg.null_space(matrix)[[column[degree] for degree in degrees]]
    basis = scipy.linalg.orth(of_places, rcond=1e-9).T
    return tuple(tuple((row / np.abs(row).max()).round(9).tolist()) for row in basis)


# --- the group acts ---------------------------------------------------------------------------------------------------


def act(symmetry: Symmetry, element: Element, weights: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """The weights with their units rescaled, then moved to their new places.

    Args:
      symmetry: of the network.
      element: of the group, as `random_element` draws it.
      weights: of one network, flat.

    >>> symmetry = Symmetry(((2,), (2,)), (Family(2, ((0, 0), (1, 0)), ((1.0, -1.0),)),))  # two units of relu, in and out
    >>> element = Element((jnp.array([1, 0]),), (jnp.log(jnp.array([[2.0, 1.0]])),))  # the first twice as large, then exchanged
    >>> act(symmetry, element, jnp.array([1.0, 5.0, 6.0, 4.0])).round().tolist()
    [5.0, 2.0, 4.0, 3.0]
    """
    leaves = leaves_of(symmetry, weights)
    for family, order, log_scale in zip(symmetry.families, *element, strict=True):
        leaves = move(family, rescale(family, leaves, log_scale), order)
    return flat(leaves)


@jax.default_matmul_precision("highest")
def change_of_outputs(
    key: Array, symmetry: Symmetry, apply: Callable, weights: PyTree, *inputs: PyTree
) -> Float[Array, ""]:
    """The largest change of an output under a random element of the group, in units of the largest output: rounding alone.

    Args:
      key: randomness of the element.
      symmetry: as `find_symmetry` finds it.
      apply, weights, inputs: as it takes them, with arrays.

    Returns:
      The change, about the rounding of the dtype where the symmetry is one of the network.

    >>> apply, weights, x = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], [jnp.ones((2, 3)), jnp.ones((3, 1))], jnp.ones((4, 2))
    >>> symmetry = find_symmetry(apply, weights, x)
    >>> round(float(change_of_outputs(jax.random.key(0), symmetry, apply, weights, x)), 3)
    0.0
    """
    moved = unravel(weights, act(symmetry, random_element(key, symmetry), ravel(weights)))
    before, after = apply(weights, *inputs), apply(moved, *inputs)
    return jnp.abs(after - before).max() / jnp.abs(before).max()


def relabel(relabeling: Symmetry, order: Int[Array, " outputs"], weights: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """Weights of the network whose output k is what output order[k] was.

    Args:
      relabeling: as `find_relabeling` finds it.
      order: of the outputs, a permutation.
      weights: of one network, flat.

    >>> relabeling = Symmetry(((2, 3),), (Family(3, ((0, 1),), ()),))  # x @ w, of three outputs
    >>> relabel(relabeling, jnp.array([2, 0, 1]), jnp.arange(6.0)).tolist()
    [2.0, 0.0, 1.0, 5.0, 3.0, 4.0]
    """
    return act(relabeling, Element((order,), (jnp.zeros((0, len(order))),)), weights)


def random_element(key: Array, symmetry: Symmetry, spread: float = 1.0) -> Element:
    """Uniform permutations, and factors whose logarithms are N(0, spread^2).

    Args:
      key: randomness.
      symmetry: of the network.
      spread: deviation of the logarithms, at least 0; 0 for permutations alone.

    >>> symmetry = Symmetry(((2,), (2,)), (Family(2, ((0, 0), (1, 0)), ((1.0, -1.0),)),))  # two units of relu, in and out
    >>> element = random_element(jax.random.key(0), symmetry)
    >>> sorted(element.order[0].tolist()), element.log_scale[0].shape
    ([0, 1], (1, 2))
    """
    keys = jax.random.split(key, (max(len(symmetry.families), 1), 2))
    pairs = list(zip(keys, symmetry.families, strict=False))
    orders = tuple(jax.random.permutation(k[0], family.size) for k, family in pairs)
    scales = tuple(spread * jax.random.normal(k[1], (len(family.exponents), family.size)) for k, family in pairs)
    return Element(orders, scales)


def leaves_of(symmetry: Symmetry, weights: Float[Array, " dim"]) -> list[Array]:
    """Flat weights as leaves each of whose axes runs over one family."""
    stops = np.cumsum([int(np.prod(shape)) for shape in symmetry.shapes])
    if weights.shape != (stops[-1],):
        raise ValueError(f"weights: expected {stops[-1]} of the network of this symmetry, got shape {weights.shape}")
    return [part.reshape(shape) for part, shape in zip(jnp.split(weights, stops[:-1]), symmetry.shapes, strict=True)]


def flat(leaves: list[Array]) -> Float[Array, " dim"]:
    """The reverse."""
    return jnp.concatenate([leaf.ravel() for leaf in leaves])


def rescale(family: Family, leaves: list[Array], log_scale: Float[Array, "rescalings size"]) -> list[Array]:
    """Every unit of a family multiplied by its factor."""
    leaves = list(leaves)
    for exponents, logs in zip(family.exponents, log_scale, strict=True):
        for (leaf, axis), exponent in zip(family.places, exponents, strict=True):
            if exponent:
                shape = [-1 if k == axis else 1 for k in range(leaves[leaf].ndim)]
                leaves[leaf] = leaves[leaf] * jnp.exp(exponent * logs).astype(leaves[leaf].dtype).reshape(shape)
    return leaves


def move(family: Family, leaves: list[Array], order: Int[Array, " size"]) -> list[Array]:
    """Every unit of a family in its new place."""
    leaves = list(leaves)
    for leaf, axis in family.places:
        leaves[leaf] = jnp.take(leaves[leaf], order, axis=axis)
    return leaves
