"""Flows: from noise to data and back: paths, velocities, flow maps, and the closed form of flow matching."""

from gfm_jax.flows import metrics
from gfm_jax.flows.adjoint_matching import adjoint_matching_targets, memoryless_step
from gfm_jax.flows.analytic import AnalyticFlow, gaussian, single_point, uniform_on_boxes
from gfm_jax.flows.closed_form import Posterior, closed_form_velocity, posterior, velocity_to
from gfm_jax.flows.couplings import independent, optimal_transport, paired, sinkhorn
from gfm_jax.flows.flow_data import FlowData, FlowParams
from gfm_jax.flows.flow_map import flow_map
from gfm_jax.flows.flow_matching import EmpiricalTargets, empirical_flow_matching, flow_matching
from gfm_jax.flows.guidance import guide, guided_velocity
from gfm_jax.flows.interpolants import interpolate, linear, trigonometric, variance_preserving
from gfm_jax.flows.mean_velocity import flow_map_step, velocity_of
from gfm_jax.flows.reference_points import distinct, draw_reference_points
from gfm_jax.flows.residuals import (
    Residual,
    esd,
    eulerian,
    lagrangian,
    lsd,
    mean_flow,
    mean_flow_error,
    progressive,
    psd_midpoint,
    psd_uniform,
    shortcut,
    weighted_square,
)
from gfm_jax.flows.sampling import sample
from gfm_jax.flows.sources import GaussianSource, draw_gaussian, fit_gaussian, unit_gaussian
from gfm_jax.flows.targets import empirical_path, flow_matching_loss
from gfm_jax.flows.times import dyadic, logit_normal, stratified, triangle, uniform

__all__ = [
    "EmpiricalTargets",
    "FlowData",
    "FlowParams",
    "GaussianSource",
    "AnalyticFlow",
    "Posterior",
    "Residual",
    "adjoint_matching_targets",
    "closed_form_velocity",
    "distinct",
    "draw_reference_points",
    "draw_gaussian",
    "dyadic",
    "empirical_flow_matching",
    "empirical_path",
    "esd",
    "eulerian",
    "fit_gaussian",
    "flow_map",
    "flow_matching",
    "flow_matching_loss",
    "gaussian",
    "guide",
    "guided_velocity",
    "independent",
    "interpolate",
    "flow_map_step",
    "lagrangian",
    "linear",
    "logit_normal",
    "lsd",
    "mean_flow",
    "mean_flow_error",
    "memoryless_step",
    "metrics",
    "optimal_transport",
    "paired",
    "posterior",
    "progressive",
    "psd_midpoint",
    "psd_uniform",
    "sample",
    "shortcut",
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
