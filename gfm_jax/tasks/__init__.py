"""Training problems: what a recorder trains."""

from gfm_jax.tasks.classification import classification
from gfm_jax.tasks.family import SCHEDULES, Structure, TaskFamily, draw_structures
from gfm_jax.tasks.few_shot import ByClass, by_class, class_subsets, draw_support, few_shot, labels_among
from gfm_jax.tasks.minibatches import branched, minibatch_indices
from gfm_jax.tasks.quadratic import quadratic
from gfm_jax.tasks.regression import (
    gradient_descent_end,
    heavy_ball_end,
    least_squares,
    linear_regression,
    logistic_regression,
)
from gfm_jax.tasks.streamed import streamed

__all__ = [
    "SCHEDULES",
    "ByClass",
    "Structure",
    "TaskFamily",
    "branched",
    "by_class",
    "class_subsets",
    "classification",
    "draw_structures",
    "draw_support",
    "few_shot",
    "gradient_descent_end",
    "heavy_ball_end",
    "labels_among",
    "least_squares",
    "linear_regression",
    "logistic_regression",
    "minibatch_indices",
    "quadratic",
    "streamed",
]
