"""Follow the units of a network from weight to weight: which axes carry the same units, and how each of them scales.

The walk goes through the network's own program, its jaxpr, and knows no architecture. Every axis of every array is a product
of legs; a leg runs over the units of one family, and each of its units counts with s^degree when that unit is scaled by s.
What the walk does not know, it pins: no symmetry is claimed for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from gfm_jax.weights.symmetry.axes import Axes, Book, Leg
from gfm_jax.weights.symmetry.rules import RULES

__all__ = ["Traced", "trace_axes"]


class Traced(NamedTuple):
    """What a walk found.

    Attributes:
      legs: of every leaf of the weights, all its axes one after the other, as products of legs.
      pinned: families whose units must keep their places.
      relations: by family, equations sum_i coefficient_i degree_i = 0, as dicts from number to coefficient.
      outputs: the families that run over the last axis of the outputs.
      eps: of the coarsest floating-point type that the network computes in, bfloat16 at most.
      program: the network's, of all leaves of weights and inputs.
    """

    legs: list[list[Leg]]
    pinned: set[int]
    relations: dict[int, list[dict[int, float | int]]]
    outputs: list[int]
    eps: float
    program: core.ClosedJaxpr


def trace_axes(apply: Callable, weights: PyTree, *inputs: PyTree, relabel: bool = False) -> Traced:
    """Walks through `apply(weights, *inputs)`; inputs stay in their places, and so do outputs, unless `relabel` lets those
    along their last axis be exchanged.

    Args:
      apply: the network.
      weights: a pytree of arrays, or of their shapes.
      *inputs: examples, or their shapes.
    """
    shapes = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)
    with jax.default_matmul_precision("highest"):  # for the outputs to be compared
        program = jax.make_jaxpr(apply)(shapes(weights), *map(shapes, inputs))
    book = Book()
    num_weights = len(jax.tree.leaves(weights))
    arrays = [book.fresh(var.aval.shape) for var in program.jaxpr.invars[:num_weights]]
    for array, var in zip(arrays, program.jaxpr.invars, strict=False):
        if not jnp.issubdtype(var.aval.dtype, jnp.floating):  # integers cannot be rescaled
            for axis in array.axes:
                book.weightless(axis)
    arrays += [book.pinned(var.aval.shape) for var in program.jaxpr.invars[num_weights:]]
    constants = [_constant(book, value) for value in program.consts]
    last: list[Leg] = []
    for output in _walk(book, program.jaxpr, constants, arrays):
        if relabel and output.axes:
            last += output.axes[-1]
            book.weightless(output.axes[-1])
            output = output._replace(axes=output.axes[:-1])
        book.pin(output)
    legs = [[leg for axis in array.axes for leg in book.expand(axis)] for array in arrays[:num_weights]]
    pinned = {root for family in book.fixed for root in book.roots(family)}
    outputs = [leg.family for leg in book.expand(last) if leg.family is not None]
    return Traced(legs, pinned, book.relations_by_root(), outputs, _coarsest(program.jaxpr), program)


def _constant(book, value) -> Axes:
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):  # keys
        return book.pinned(np.shape(value))
    return book.constant(np.asarray(value))


def _coarsest(jaxpr) -> float:
    variables = [*jaxpr.invars, *(var for eqn in jaxpr.eqns for var in eqn.outvars)]
    dtypes = {getattr(var.aval, "dtype", jnp.int32) for var in variables}
    own = [float(jnp.finfo(dtype).eps) for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    params = [value for eqn in jaxpr.eqns for value in eqn.params.values()]
    parts = [part for value in params for part in (value if isinstance(value, tuple | list) else (value,))]
    bodies = [getattr(part, "jaxpr", part) for part in parts]
    inner = [_coarsest(body) for body in bodies if hasattr(body, "eqns")]
    return min(max([*own, *inner], default=0.0), float(jnp.finfo(jnp.bfloat16).eps))


def _walk(book: Book, jaxpr, constants: list[Axes], inputs: list[Axes]) -> list[Axes]:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))
    read = lambda atom: _constant(book, atom.val) if isinstance(atom, core.Literal) else known[atom]
    for eqn in jaxpr.eqns:
        arrays, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
        inner = next((eqn.params[key] for key in ("call_jaxpr", "jaxpr") if key in eqn.params), None)
        if inner is not None and name in CALLS:
            closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
            consts = [_constant(book, value) for value in closed.consts]
            outputs = _walk(book, closed.jaxpr, consts, arrays)
        elif name in RULES:
            outputs = [RULES[name](book, eqn, *arrays)]
        else:
            for array in arrays:
                book.pin(array)
            outputs = [book.pinned(var.aval.shape) for var in eqn.outvars]
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


CALLS = ("pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
