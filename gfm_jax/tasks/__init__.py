"""Training problems: what a recorder trains."""

from gfm_jax.tasks.classification import classification
from gfm_jax.tasks.family import SCHEDULES, Structure, TaskFamily, draw_structures
from gfm_jax.tasks.minibatches import branched, minibatch_indices
from gfm_jax.tasks.quadratic import quadratic
from gfm_jax.tasks.regression import (
    gradient_descent_end,
    heavy_ball_end,
    least_squares,
    linear_regression,
    logistic_regression,
)

__all__ = [
    "SCHEDULES",
    "Structure",
    "TaskFamily",
    "branched",
    "classification",
    "draw_structures",
    "gradient_descent_end",
    "heavy_ball_end",
    "least_squares",
    "linear_regression",
    "logistic_regression",
    "minibatch_indices",
    "quadratic",
]
