"""Encoders: weights as codes, and their canonical form."""

from gfm_jax.encoders.autoencoder import AutoencoderRecipe, autoencoder
from gfm_jax.encoders.canonical import balance, canonical, match
from gfm_jax.encoders.context import check_support, class_context, label_codes, support_tokens
from gfm_jax.encoders.linear import chain, identity, pca, standardized
from gfm_jax.encoders.low_rank import low_rank
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
from gfm_jax.encoders.token_autoencoder import token_autoencoder
from gfm_jax.encoders.tokens import Tokens, from_tokens, to_tokens, tokens_of

__all__ = [
    "AutoencoderRecipe",
    "Element",
    "Family",
    "Symmetry",
    "Tokens",
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
    "from_tokens",
    "identity",
    "label_codes",
    "low_rank",
    "match",
    "pca",
    "random_element",
    "relabel",
    "standardized",
    "support_tokens",
    "to_tokens",
    "token_autoencoder",
    "tokens_of",
]
