r"""The order of a Runge-Kutta method, from its Butcher tableau: the conditions on rooted trees.

A step of it and of the flow have expansions with one term for each rooted tree, and those of a tree t agree where

    sum_i b_i Phi_i(t) = 1 / gamma(t),         Phi(t) = prod_c A Phi(c),         gamma(t) = |t| prod_c gamma(c)

with c the subtrees at the root of t and |t| its number of vertices. Solving Ordinary Differential Equations I, chapter II.2.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import diffrax

__all__ = ["error_order", "runge_kutta_order"]


def runge_kutta_order(tableau: "diffrax.ButcherTableau") -> int:
    """The order p of a method: its distance to the flow falls as the step to the power of p.

    Args:
      tableau: explicit; a few stages, since there are 719 trees of 10 vertices.

    Returns:
      The largest p such that every tree of at most p vertices agrees.

    >>> import diffrax
    >>> runge_kutta_order(diffrax.Bosh3.tableau)
    3
    """
    return _smallest_tree(tableau, lambda phi, gamma: tableau.b_sol @ phi - 1 / gamma) - 1


def error_order(tableau: "diffrax.ButcherTableau") -> int:
    """The power of the step that the error estimate of an embedded pair falls with: 1 + the order of the lower rule.

    Args:
      tableau: explicit, with a `b_error` that is not zero.

    Returns:
      The number of vertices of the smallest tree in the expansion of the error estimate.

    >>> import diffrax
    >>> error_order(diffrax.Tsit5.tableau)  # rules of orders 5 and 4
    5
    """
    return _smallest_tree(tableau, lambda phi, gamma: tableau.b_error @ phi)


def _smallest_tree(tableau, residual: Callable) -> int:
    """The number of vertices of the smallest tree with a residual; a chain longer than there are stages has Phi = 0."""
    a, trees = np.zeros((tableau.num_stages, tableau.num_stages)), {()}
    for i, row in enumerate(tableau.a_lower, start=1):
        a[i, :i] = row
    for size in range(1, tableau.num_stages + 1):
        if any(abs(residual(*_weights(tree, a)[:2])) > 1e-9 for tree in trees):
            return size
        trees = {grown for tree in trees for grown in _grown(tree)}
    return tableau.num_stages + 1


def _grown(tree: tuple) -> Iterator[tuple]:
    """Trees with one vertex more. A tree is the sorted tuple of its subtrees."""
    yield tuple(sorted((*tree, ())))
    for k, child in enumerate(tree):
        yield from (tuple(sorted((*tree[:k], *tree[k + 1 :], grown))) for grown in _grown(child))


def _weights(tree, a):
    """Phi [stages], gamma and |t|."""
    phi, gamma, size = np.ones(len(a)), 1, 1
    for child in tree:
        of_child, gamma_of_child, size_of_child = _weights(child, a)
        phi, gamma, size = phi * (a @ of_child), gamma * gamma_of_child, size + size_of_child
    return phi, gamma * size, size
