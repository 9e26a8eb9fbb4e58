"""Flows: from noise to data and back: paths, velocities, flow maps, and the closed form of flow matching."""

from gfm_jax.flows import metrics
from gfm_jax.flows.adjoint_matching import adjoint_matching_targets, memoryless_step
from gfm_jax.flows.analytic import Oracle, gaussian, single_point, uniform_on_boxes
from gfm_jax.flows.closed_form import Posterior, closed_form_velocity, posterior, velocity_to
from gfm_jax.flows.couplings import independent, optimal_transport, paired, sinkhorn
from gfm_jax.flows.flow_matching import empirical_flow_matching
from gfm_jax.flows.mean_velocity import jump, velocity_of
from gfm_jax.flows.targets import empirical_path, flow_matching_loss
from gfm_jax.flows.interpolants import interpolate, linear, trigonometric, variance_preserving
from gfm_jax.flows.reference_points import distinct, draw_companions
from gfm_jax.flows.residuals import eulerian, guided, lagrangian, progressive, weighted_square
from gfm_jax.flows.flow_map import self_distilled_flow_map
from gfm_jax.flows.sources import GaussianSource, draw_gaussian, fit_gaussian, unit_gaussian
from gfm_jax.flows.times import dyadic, logit_normal, stratified, triangle, uniform

__all__ = [
    "GaussianSource",
    "Oracle",
    "Posterior",
    "adjoint_matching_targets",
    "closed_form_velocity",
    "distinct",
    "draw_companions",
    "draw_gaussian",
    "dyadic",
    "empirical_flow_matching",
    "empirical_path",
    "eulerian",
    "fit_gaussian",
    "flow_matching_loss",
    "gaussian",
    "guided",
    "independent",
    "interpolate",
    "jump",
    "lagrangian",
    "linear",
    "logit_normal",
    "memoryless_step",
    "metrics",
    "optimal_transport",
    "paired",
    "posterior",
    "progressive",
    "self_distilled_flow_map",
    "single_point",
    "sinkhorn",
    "stratified",
    "triangle",
    "trigonometric",
    "uniform",
    "uniform_on_boxes",
    "unit_gaussian",
    "variance_preserving",
    "velocity_of",
    "velocity_to",
    "weighted_square",
]
