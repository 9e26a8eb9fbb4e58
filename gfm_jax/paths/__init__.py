"""Paths between points: what a velocity is regressed on."""

from gfm_jax.paths.companions import distinct, draw_companions
from gfm_jax.paths.couplings import independent, optimal_transport, paired, sinkhorn
from gfm_jax.paths.interpolants import interpolate, linear, trigonometric, variance_preserving
from gfm_jax.paths.sources import GaussianSource, draw_gaussian, fit_gaussian, unit_gaussian
from gfm_jax.paths.times import dyadic, logit_normal, stratified, triangle, uniform

__all__ = [
    "GaussianSource",
    "distinct",
    "draw_companions",
    "draw_gaussian",
    "dyadic",
    "fit_gaussian",
    "independent",
    "interpolate",
    "linear",
    "logit_normal",
    "optimal_transport",
    "paired",
    "sinkhorn",
    "stratified",
    "triangle",
    "trigonometric",
    "uniform",
    "unit_gaussian",
    "variance_preserving",
]
