"""One set of weights for all that compute the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Codec, Procedure, config_of
from gfm_jax.weights.linear import check_weights, power_of_two, wide
from gfm_jax.weights.symmetry.group import Symmetry, flat, leaves_of, move, rescale

__all__ = ["balance", "canonical", "match"]

MAX_SWEEPS = 1000  # of rescalings: of one hidden layer one is enough, residual connections may want a hundred


def canonical(symmetry: Symmetry, *, rounds: int = 3) -> Codec:
    r"""Weights brought to the one canonical form that all their equivalents share.

    .. math:: z = \arg\min_{g} | g \cdot w - r |, \qquad f_z = f_w

    Rescalings are settled by `balance`, the order of the units by `match`. The reference r that units are ordered by is the
    mean of the networks in order of the mean before, the first of which is one of the networks.

    Args:
      symmetry: of the network, as `find_symmetry` finds it.
      rounds: how often the mean is taken.

    Returns:
      A codec from weights to weights; decoding leaves them as they are.

    Raises:
      ValueError: in `fit` for weights that are not [num, dim], not finite or not of the symmetry's network.

    >>> from gfm_jax.weights import Family
    >>> symmetry = Symmetry(((2,), (2,)), (Family(2, ((0, 0), (1, 0)), ()),))  # two units, each with a weight in and one out
    >>> reference = jnp.array([1.0, 2.0, 3.0, 4.0])  # as a fit finds it
    >>> canonical(symmetry).encode(reference, jnp.array([3.0, 0.0, 5.0, 2.0])).tolist()
    [0.0, 3.0, 2.0, 5.0]
    """

    def fit_to(key, weights, *, folder, progress) -> Float[Array, " dim"]:
        return _reference(symmetry, rounds, check_weights(weights, 1))

    encode = lambda reference, w: match(symmetry, reference, balance(symmetry, wide(w)))
    config = config_of("weights.canonical", symmetry=symmetry, rounds=rounds)
    return Codec(Procedure(fit_to, config), encode, lambda reference, z: z)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reference(symmetry, rounds, weights):
    balanced = jax.vmap(functools.partial(balance, symmetry))(weights)

    def mean_in_order(_, reference):
        return jax.vmap(functools.partial(match, symmetry, reference))(balanced).mean(0)

    return jax.lax.fori_loop(0, rounds, mean_in_order, balanced[0])


def balance(symmetry: Symmetry, weights: Float[Array, " dim"]) -> Float[Array, " dim"]:
    r"""The weights of least norm among those that rescaling can reach: every unit's incoming and outgoing weights in balance.

    .. math:: \min_\sigma \sum_p n_p e^{2 e_p \sigma}, \qquad n_p = |w_p|^2

    one unit and rescaling after the other, n_p being the squared weights of the unit at place p. The problem is convex, so that
    the result does not depend on how the weights were scaled. A unit without any incoming or any outgoing weight stays.
    Differentiable in forward mode only: how many sweeps it takes is not known before.

    Args:
      symmetry: of the network.
      weights: of one network, flat.

    Returns:
      The weights, of the same function, in float32 or better.

    >>> from gfm_jax.weights import Family
    >>> symmetry = Symmetry(((1,), (1,)), (Family(1, ((0, 0), (1, 0)), ((1.0, -1.0),)),))  # w_2 relu(w_1 x)
    >>> balance(symmetry, jnp.array([4.0, 1.0])).round().tolist()
    [2.0, 2.0]
    """
    weights = wide(weights)
    if not any(family.exponents for family in symmetry.families):
        return weights
    size = power_of_two(weights)  # balance is a matter of ratios

    def sweep(carry):
        count, leaves, _ = carry
        moved = []
        for family in symmetry.families:
            for k in range(len(family.exponents)):
                log_scale = _log_scale(family, leaves, family.exponents[k])
                scales = jnp.zeros((len(family.exponents), family.size), log_scale.dtype).at[k].set(log_scale)
                leaves = rescale(family, leaves, scales)
                moved.append(jnp.abs(log_scale).max())
        return count + 1, leaves, jnp.stack(moved).max()

    go_on = lambda carry: (carry[0] < MAX_SWEEPS) & (carry[2] > 4 * jnp.finfo(weights.dtype).eps)
    start = 0, leaves_of(symmetry, weights / size), jnp.array(jnp.inf, weights.dtype)
    return size * flat(jax.lax.while_loop(go_on, sweep, start)[1])


@jax.default_matmul_precision("highest")
def _log_scale(family, leaves, exponents):
    """What brings the two sides of every unit into balance; half of it where both sides of a unit lie in one leaf."""
    e = jnp.array(exponents, leaves[0].dtype)
    squares = lambda leaf, axis: jnp.sum(leaf**2, axis=tuple(k for k in range(leaf.ndim) if k != axis))
    norms = jnp.stack([squares(leaves[leaf], axis) for leaf, axis in family.places])
    up, down = jnp.maximum(e, 0) @ norms, jnp.maximum(-e, 0) @ norms
    alive = (up > 0) & (down > 0)
    ratio = jnp.log(jnp.where(alive, down, 1) / jnp.where(alive, up, 1))
    return ratio / (2 * (max(0, *exponents) - min(0, *exponents))) / (2 if _twice(family) else 1)


def match(
    symmetry: Symmetry, reference: Float[Array, " dim"], weights: Float[Array, " dim"], *, sweeps: int = 3
) -> Float[Array, " dim"]:
    r"""The weights with the units of each family in the order that is nearest to the reference.

    .. math:: \min_P \sum_p | P w_p - r_p |^2

    by the Hungarian algorithm, family after family. In the first sweep only places count whose other axes are in order already,
    so that the result does not depend on the order that was given; then all of them, `sweeps` times.

    Args:
      symmetry: of the network.
      reference: weights to be near to.
      weights: of one network.
      sweeps: over all families, after the first.

    Returns:
      The weights, of the same function.

    >>> from gfm_jax.weights import Family
    >>> symmetry = Symmetry(((2,), (2,)), (Family(2, ((0, 0), (1, 0)), ()),))  # two units, each with a weight in and one out
    >>> match(symmetry, jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([3.0, 0.0, 5.0, 2.0])).tolist()
    [0.0, 3.0, 2.0, 5.0]
    """
    size, reference = power_of_two(wide(weights)), wide(reference)
    targets, leaves = leaves_of(symmetry, reference / power_of_two(reference)), leaves_of(symmetry, weights)

    def put_in_order(leaves, number, places):
        family = symmetry.families[number]
        gain = sum(_products(wide(leaves[leaf]) / size, targets[leaf], axis) for leaf, axis in places)
        rows, columns = optax.assignment.hungarian_algorithm(-gain)  # of the target's places, the unit that fits each
        return move(family, leaves, jnp.zeros(family.size, rows.dtype).at[rows].set(columns))

    for number, places in _by_evidence(symmetry):
        leaves = put_in_order(leaves, number, places)
    if len(symmetry.families) > 1 or any(_twice(family) for family in symmetry.families):

        def sweep(_, leaves):
            for number, family in enumerate(symmetry.families):
                leaves = put_in_order(leaves, number, family.places)
            return leaves

        leaves = jax.lax.fori_loop(0, sweeps, sweep, leaves)
    return flat(leaves)


def _twice(family):
    return len({leaf for leaf, _ in family.places}) < len(family.places)


def _products(leaf, target, axis):
    """Of every unit of the target with every unit of the leaf."""
    rows = lambda array: jnp.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return jnp.matmul(rows(target), rows(leaf).T, precision="highest")


@functools.lru_cache(maxsize=64)
def _by_evidence(symmetry):
    """The families in an order in which each finds most weights to go by, and the places that count for it by then."""
    of_axis = {place: number for number, family in enumerate(symmetry.families) for place in family.places}
    waiting, plan = set(range(len(symmetry.families))), []

    def is_known(leaf, axis):
        others = (other for other in range(len(symmetry.shapes[leaf])) if other != axis)
        return waiting.isdisjoint(of_axis.get((leaf, other)) for other in others)

    while waiting:
        known = {n: tuple(place for place in symmetry.families[n].places if is_known(*place)) for n in waiting}
        weight = lambda number: sum(int(np.prod(symmetry.shapes[leaf])) for leaf, _ in known[number])  # noqa: B023
        best = max(sorted(waiting), key=weight)
        plan.append((best, known[best] or symmetry.families[best].places))
        waiting.remove(best)
    return tuple(plan)
