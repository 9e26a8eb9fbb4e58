"""Axes of arrays as products of legs over families of units, and what becomes known of the families: which are one, which are
products of smaller ones, which must keep their places, and how their degrees of scaling depend on one another.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Axes", "Book", "Leg"]


class Leg(NamedTuple):
    """A stretch of an axis: the family of units that it runs over, None where all its entries are alike, its size, and the
    number of its degree, None for degree zero."""

    family: int | None
    size: int
    degree: int | None


class Axes(NamedTuple):
    """The axes of an array, each a product of legs; and whether all its entries are zero."""

    axes: tuple[tuple[Leg, ...], ...]
    zero: bool = False


class Book:
    """Families that turned out to be one, or to be products of smaller ones, and what their degrees have to satisfy."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.parts: dict[int, tuple[int, int]] = {}
        self.sizes: list[int] = []
        self.fixed: set[int] = set()
        self.relations: list[tuple[int, dict[int, float | int]]] = []
        self.num_degrees = 0

    # --- families ---

    def family(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return len(self.parent) - 1

    def find(self, family: int) -> int:
        while self.parent[family] != family:
            family = self.parent[family]
        return family

    def roots(self, family: int) -> list[int]:
        family = self.find(family)
        return [root for part in self.parts[family] for root in self.roots(part)] if family in self.parts else [family]

    def expand(self, axis) -> list[Leg]:
        """The axis in families that are no products."""
        return [
            leg if family is None else Leg(family, self.sizes[family], leg.degree)
            for leg in axis
            for family in ([None] if leg.family is None else self.roots(leg.family))
        ]

    def split(self, leg: Leg, outer: int) -> tuple[Leg, Leg]:
        """A leg as the product of an outer one, of that size, and an inner one."""
        if leg.family is None:
            return Leg(None, outer, leg.degree), Leg(None, leg.size // outer, leg.degree)
        first, second = self.family(outer), self.family(leg.size // outer)
        self.parts[leg.family] = (first, second)
        if leg.family in self.fixed:
            self.fixed |= {first, second}
        return Leg(first, outer, leg.degree), Leg(second, leg.size // outer, leg.degree)

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[a] = b
            if a in self.fixed:
                self.fixed.add(b)

    # --- arrays ---

    def degree(self) -> int:
        self.num_degrees += 1
        return self.num_degrees - 1

    def fresh(self, shape) -> Axes:
        one = lambda size: (Leg(self.family(size), size, self.degree()),) if size > 1 else ()
        return Axes(tuple(one(size) for size in shape))

    def pinned(self, shape) -> Axes:
        array = self.fresh(shape)
        self.pin(array)
        return array

    def constant(self, value: np.ndarray) -> Axes:
        if value.size and (value == value.flat[0]).all():
            return self.uniform(value.shape, zero=bool(value.flat[0] == 0))
        return self.pinned(value.shape)

    def uniform(self, shape, zero: bool = False) -> Axes:
        return Axes(tuple((Leg(None, size, None),) if size > 1 else () for size in shape), zero)

    def pin(self, array: Axes) -> None:
        for axis in array.axes:
            self.pin_axis(axis)

    def pin_axis(self, axis) -> None:
        for leg in self.expand(axis):
            if leg.family is not None:
                self.fixed.add(leg.family)
        self.weightless(axis)

    def weightless(self, axis) -> None:
        """Its units may change places, not scale."""
        for leg in self.expand(axis):
            self.relate(leg, (leg.degree, 1))

    def relate(self, leg: Leg, *terms: tuple[int | None, float | int]) -> None:
        """Over the units of a leg, a sum of degrees is zero."""
        row: dict[int, float | int] = {}
        for degree, coefficient in terms:
            if degree is not None:
                row[degree] = row.get(degree, 0) + coefficient
        if row and leg.family is not None:
            self.relations.append((leg.family, row))

    def relations_by_root(self) -> dict[int, list[dict[int, float | int]]]:
        found: dict[int, list[dict[int, float | int]]] = {}
        for family, row in self.relations:
            for root in self.roots(family):
                found.setdefault(root, []).append(row)
        return found

    def match(self, a, b) -> list[tuple[Leg, Leg]] | None:
        """Two axes of one size, leg by leg over the same families; None, and both pinned, where they do not divide alike."""
        a, b, pairs = self.expand(a), self.expand(b), []
        a, b = list(a), list(b)
        while a and b:
            first, second = a.pop(0), b.pop(0)
            if first.family is not None and first.family == second.family:
                pairs.append((first, second))
                continue
            size = min(first.size, second.size)
            if first.size % size or second.size % size:
                self.pin_axis([first, *a, second, *b])
                return None
            if first.size > size:
                first, rest = self.split(first, size)
                a = self.expand([rest]) + self.expand(a)
            if second.size > size:
                second, rest = self.split(second, size)
                b = self.expand([rest]) + self.expand(b)
            if first.family is not None and second.family is not None:
                self.union(first.family, second.family)
            pairs.append((first, second))
            a, b = self.expand(a), self.expand(b)
        return pairs
