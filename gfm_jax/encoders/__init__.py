"""Encoders: weights as codes, and their canonical form."""

from gfm_jax.encoders.autoencoder import AutoencoderRecipe, autoencoder
from gfm_jax.encoders.canonical import balance, canonical, match
from gfm_jax.encoders.context import check_support, class_context, label_codes, support_tokens
from gfm_jax.encoders.linear import chain, identity, pca, standardized
from gfm_jax.encoders.symmetry import (
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
    "AutoencoderRecipe",
    "Element",
    "Family",
    "Symmetry",
    "act",
    "autoencoder",
    "balance",
    "canonical",
    "chain",
    "change_of_outputs",
    "check_support",
    "class_context",
    "find_relabeling",
    "find_symmetry",
    "identity",
    "label_codes",
    "match",
    "pca",
    "random_element",
    "relabel",
    "standardized",
    "support_tokens",
]
