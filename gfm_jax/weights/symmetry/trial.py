"""Symmetries are tried: a network's outputs at random weights and inputs, before and after its units are moved or rescaled."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jaxtyping import PyTree

__all__ = ["Trial", "change", "moved", "rescaled", "trial_of"]

SPREAD = 0.3  # of the logarithms of the factors by which given values are changed
SEED = 0


class Trial(NamedTuple):
    """A network to try symmetries on.

    Attributes:
      run: from the leaves of the weights to the leaves of the outputs.
      leaves: of random weights.
      outputs: what `run` makes of them; None where they are not finite, whatever weights were tried.
    """

    run: Callable[[list], list[np.ndarray]]
    leaves: list
    outputs: list[np.ndarray] | None


def trial_of(program: core.ClosedJaxpr, weights: PyTree, inputs: Sequence[PyTree]) -> Trial:
    """A network at random weights and inputs.

    Arrays are multiplied by random positive factors, and their zeros replaced, so that weights are in general position and
    variances stay positive; shapes are filled with normal numbers, or zeros for integers. Where outputs are not finite,
    positive numbers and ones are tried, then the arrays as they were given.

    Args:
      program: the network's, as `trace_axes` finds it.
      weights, inputs: its arguments, arrays or their shapes.
    """
    leaves, num = jax.tree.leaves((weights, tuple(inputs))), len(jax.tree.leaves(weights))
    # compiled ahead, so that it also runs while something else is traced
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    compiled = jax.jit(core.jaxpr_as_fun(program)).lower(*shapes).compile()

    def run(leaves):
        with jax.debug_nans(False), jax.debug_infs(False):  # what is not finite is no mistake here
            outputs = compiled(*leaves)
            return [np.asarray(out) for out in outputs if not jnp.issubdtype(out.dtype, jax.dtypes.extended)]

    rng = np.random.default_rng(SEED)
    attempts = [[_draw(rng, leaf, positive) for leaf in leaves] for positive in (False, True)]
    if all(map(_has_values, leaves)):
        attempts.append(
            [np.asarray(leaf) if jnp.issubdtype(jnp.result_type(leaf), np.number) else leaf for leaf in leaves]
        )
    for values in attempts:
        outputs = run(values)
        if all(np.isfinite(out).all() for out in outputs):
            return Trial(lambda own, values=values: run([*own, *values[num:]]), values[:num], outputs)
    return Trial(lambda own: run([*own, *attempts[0][num:]]), attempts[0][:num], None)


def _has_values(leaf) -> bool:
    return not isinstance(leaf, jax.ShapeDtypeStruct | Tracer)


def _draw(rng, leaf, positive):
    shape, dtype = np.shape(leaf), jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        if _has_values(leaf):
            return leaf
        with jax.ensure_compile_time_eval():
            key = jax.random.key(SEED)
            return jax.random.split(key, shape) if shape else key
    if not jnp.issubdtype(dtype, jnp.inexact):
        return np.asarray(leaf) if _has_values(leaf) else np.full(shape, positive or dtype == jnp.bool_, dtype)
    noise = rng.normal(size=shape)
    if _has_values(leaf):
        given = np.asarray(leaf).astype(complex if jnp.issubdtype(dtype, jnp.complexfloating) else float)
        values = np.where(given == 0, SPREAD * np.abs(noise), given * np.exp(SPREAD * noise))
    else:
        values = noise / math.sqrt(max(math.prod(shape[:-1]), 1))
    return np.asarray(np.abs(values) if positive else values).astype(dtype)


def change(trial: Trial, leaves: list, order: np.ndarray | None = None) -> float:
    """The largest change of an output, in units of the largest output of its array; infinity where one is not finite.

    Args:
      trial: with finite outputs.
      leaves: of other weights.
      order: of the outputs along their last axis, that they are expected in.
    """
    assert trial.outputs is not None
    found = 0.0
    for before, after in zip(trial.outputs, trial.run(leaves), strict=True):
        before = np.take(before, order, axis=-1) if order is not None and before.ndim else before
        if not before.size:
            continue
        wide = lambda array: array.astype(complex if np.iscomplexobj(array) else float)
        difference, size = np.abs(wide(after) - wide(before)).max(), np.abs(wide(before)).max()
        if difference:  # also where it is NaN
            found = max(found, difference / size if size and np.isfinite(difference) else math.inf)
    return float(found)


def moved(trial: Trial, shapes, family, number: int = 0) -> tuple[list, np.ndarray]:
    """The weights with the units of a family in a random order, and the order."""
    rng = np.random.default_rng([SEED, number])
    tries = (rng.permutation(family.size) for _ in itertools.count())
    order = next(order for order in tries if family.size < 2 or (order != np.arange(family.size)).any())
    return _at_places(trial.leaves, shapes, family, lambda leaf, axis, place: np.take(leaf, order, axis)), order


def rescaled(trial: Trial, shapes, family, exponents: tuple[float, ...], number: int = 0) -> list:
    """The weights with the units of a family multiplied by random factors, as the exponents of its places say."""
    logs = np.random.default_rng([SEED, number]).normal(size=family.size)

    def scale(leaf, axis, place):
        shape = [-1 if k == axis else 1 for k in range(leaf.ndim)]
        return leaf * np.exp(exponents[place] * logs).astype(leaf.dtype).reshape(shape)

    return _at_places(trial.leaves, shapes, family, scale)


def _at_places(leaves, shapes, family, function):
    leaves = list(leaves)
    for place, (leaf, axis) in enumerate(family.places):
        own = np.asarray(leaves[leaf])
        leaves[leaf] = function(own.reshape(shapes[leaf]), axis, place).reshape(own.shape)
    return leaves
