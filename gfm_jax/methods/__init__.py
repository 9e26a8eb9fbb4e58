"""Methods: each reads like a paper's algorithm box, over the fields, losses and solvers of the floors below."""

from gfm_jax.methods import baselines, flow_tuning, gate, meta_learning, nowcast, weight_baselines
from gfm_jax.methods.empirical_flow_matching import empirical_flow_matching
from gfm_jax.methods.flow_to_learn import flow_to_learn
from gfm_jax.methods.gradient_flow_matching import forecast_windows, gradient_flow_matching
from gfm_jax.methods.optimizer_flow import optimizer_flow
from gfm_jax.methods.self_distilled_flow_map import self_distilled_flow_map

__all__ = [
    "baselines",
    "empirical_flow_matching",
    "flow_to_learn",
    "flow_tuning",
    "forecast_windows",
    "gate",
    "gradient_flow_matching",
    "meta_learning",
    "nowcast",
    "optimizer_flow",
    "self_distilled_flow_map",
    "weight_baselines",
]
