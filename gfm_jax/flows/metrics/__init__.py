"""Metrics of samples: how far a law that was learned is from the one that it was learned from."""

from gfm_jax.flows.metrics.distances import exact_wasserstein, frechet, mmd, sliced_wasserstein
from gfm_jax.flows.metrics.features import Features, classifier_features
from gfm_jax.flows.metrics.grids import histogram, kl_floor, kl_on_grid, off_support

__all__ = [
    "Features",
    "classifier_features",
    "exact_wasserstein",
    "frechet",
    "histogram",
    "kl_floor",
    "kl_on_grid",
    "mmd",
    "off_support",
    "sliced_wasserstein",
]
