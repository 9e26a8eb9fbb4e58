"""In which order a network uses its tensors, read from its own program."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.extend import core
from jaxtyping import PyTree

__all__ = ["first_uses"]


def first_uses(apply: Callable, weights: PyTree, *inputs: PyTree) -> list[float]:
    """For each leaf of the weights a number that rises with the place of its first use in `apply(weights, *inputs)`.

    A tensor is used where it, or something that is made of weights alone, such as its cast, meets what depends on the inputs.

    Args:
      apply: the network.
      weights, inputs: arrays, or their shapes; without inputs, what the network closes over counts as such.

    Returns:
      One number for each leaf; infinity for leaves that are never used.
    """
    program = jax.make_jaxpr(apply)(weights, *inputs).jaxpr
    num = len(jax.tree.leaves(weights))
    found = Uses([math.inf] * num, [math.inf] * num, itertools.count())
    given = [(frozenset(), True) for _ in program.invars[num:]]
    closed_over = [(frozenset(), not given) for _ in program.constvars]
    own = [(frozenset([leaf]), not given and not closed_over) for leaf in range(num)]
    _walk(found, program, [*own, *given], closed_over)
    # what never meets the inputs counts where it first occurs
    return [alone if met == math.inf else met for met, alone in zip(found.met, found.seen, strict=True)]


class Uses(NamedTuple):
    """Of each leaf the number of the operation at which it first met the inputs, and at which it first occurred."""

    met: list[float]
    seen: list[float]
    count: Iterator[int]


def _walk(found, jaxpr, arrays, constants=()):
    """Every array as (the leaves that it is made of and that have met no input, whether it depends on the inputs)."""
    nothing = (frozenset(), False)
    known = dict(zip(jaxpr.invars, arrays, strict=True)) | dict(zip(jaxpr.constvars, constants, strict=False))
    read = lambda atom: nothing if isinstance(atom, core.Literal) else known.get(atom, nothing)
    for eqn in jaxpr.eqns:
        own = [read(atom) for atom in eqn.invars]
        bodies = _bodies(eqn)
        if bodies:
            outs = [_walk(found, body, own[start : start + len(body.invars)]) for body, start in bodies]
            outs = [
                (frozenset().union(*(o[0] for o in each)), any(o[1] for o in each)) for each in zip(*outs, strict=True)
            ]
        else:
            number = float(next(found.count))
            leaves, depends = frozenset().union(*(part[0] for part in own)), any(part[1] for part in own)
            for leaf in leaves:
                found.seen[leaf] = min(found.seen[leaf], number)
                if depends:
                    found.met[leaf] = min(found.met[leaf], number)
            outs = [(frozenset() if depends else leaves, depends)] * len(eqn.outvars)
        known |= dict(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bodies(eqn):
    """The programs inside an operation, each with the place of its first argument among the operation's; [] for none that is
    known to have as many results."""
    if eqn.primitive.name == "while":
        body, start = eqn.params["body_jaxpr"], eqn.params["cond_nconsts"]
        candidates = [(body, start)]
    elif eqn.primitive.name == "cond":
        candidates = [(branch, 1) for branch in eqn.params["branches"]]
    else:
        inner = (eqn.params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
        candidates = [(body, 0) for body in inner if body is not None][:1]
    opened = [(getattr(body, "jaxpr", body), start) for body, start in candidates]
    fits = lambda body, start: (
        hasattr(body, "eqns") and start + len(body.invars) == len(eqn.invars) and len(body.outvars) == len(eqn.outvars)
    )
    return opened if all(fits(*one) for one in opened) else []
