"""Methods: each reads like a paper's algorithm box, over the fields, losses and solvers of the floors below."""

from gfm_jax.methods import baselines, gate, nowcast
from gfm_jax.methods.gradient_flow_matching import forecast_windows, gradient_flow_matching
from gfm_jax.methods.optimizer_flow import optimizer_flow

__all__ = ["baselines", "forecast_windows", "gate", "gradient_flow_matching", "nowcast", "optimizer_flow"]
