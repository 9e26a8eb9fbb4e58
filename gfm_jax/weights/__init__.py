"""Which weights for this task? Symmetries of networks, codes of weights, and generators of weights."""

from gfm_jax.weights import baselines, meta_learning, tuning
from gfm_jax.weights.audit import Audited, audit, nearest, nearest_distance
from gfm_jax.weights.autoencoder import autoencoder
from gfm_jax.weights.canonical import balance, canonical, match
from gfm_jax.weights.flow_to_learn import flow_to_learn
from gfm_jax.weights.linear import chain, identity, pca, standardized
from gfm_jax.weights.low_rank import low_rank
from gfm_jax.weights.support import class_context, label_codes, support_tokens
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
from gfm_jax.weights.token_autoencoder import token_autoencoder
from gfm_jax.weights.tokens import Tokens, from_tokens, to_tokens, tokens_of
from gfm_jax.weights.zoo import Zoo

__all__ = [
    "Audited",
    "Element",
    "Family",
    "Symmetry",
    "Tokens",
    "Zoo",
    "act",
    "audit",
    "autoencoder",
    "balance",
    "baselines",
    "canonical",
    "chain",
    "change_of_outputs",
    "class_context",
    "find_relabeling",
    "find_symmetry",
    "flow_to_learn",
    "from_tokens",
    "identity",
    "label_codes",
    "low_rank",
    "match",
    "meta_learning",
    "nearest",
    "nearest_distance",
    "pca",
    "random_element",
    "relabel",
    "standardized",
    "support_tokens",
    "to_tokens",
    "token_autoencoder",
    "tokens_of",
    "tuning",
]
