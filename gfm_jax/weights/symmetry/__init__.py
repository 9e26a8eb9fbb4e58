"""Symmetries of a network: exchanges and rescalings of its units that leave its outputs as they are."""

from gfm_jax.weights.symmetry.group import (
    Element,
    Family,
    Symmetry,
    act,
    change_of_outputs,
    find_relabeling,
    find_symmetry,
    random_element,
    relabel,
)

__all__ = [
    "Element",
    "Family",
    "Symmetry",
    "act",
    "change_of_outputs",
    "find_relabeling",
    "find_symmetry",
    "random_element",
    "relabel",
]
