"""Losses: what a model of the dynamics is fitted to."""

from gfm_jax.losses.adjoint_matching import adjoint_matching_targets, memoryless_step
from gfm_jax.losses.displacement import (
    function_space_loss,
    laplace_nll,
    relative_huber,
    relative_l1,
    relative_squared_error,
)
from gfm_jax.losses.flow_matching import empirical_path, flow_matching_loss
from gfm_jax.losses.self_distillation import eulerian, guided, lagrangian, progressive, weighted_square

__all__ = [
    "adjoint_matching_targets",
    "empirical_path",
    "eulerian",
    "flow_matching_loss",
    "function_space_loss",
    "guided",
    "lagrangian",
    "laplace_nll",
    "memoryless_step",
    "progressive",
    "relative_huber",
    "relative_l1",
    "relative_squared_error",
    "weighted_square",
]
