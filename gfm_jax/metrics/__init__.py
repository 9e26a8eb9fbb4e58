"""Metrics of samples: how far a law that was learned is from the one that it was learned from, and whether it copies."""

from gfm_jax.metrics.distances import exact_wasserstein, frechet, mmd, sliced_wasserstein
from gfm_jax.metrics.features import Features, classifier_features
from gfm_jax.metrics.grids import histogram, kl_floor, kl_on_grid, off_support
from gfm_jax.metrics.memorization import Audited, audit, nearest, nearest_distance

__all__ = [
    "Audited",
    "Features",
    "audit",
    "classifier_features",
    "exact_wasserstein",
    "frechet",
    "histogram",
    "kl_floor",
    "kl_on_grid",
    "mmd",
    "nearest",
    "nearest_distance",
    "off_support",
    "sliced_wasserstein",
]
