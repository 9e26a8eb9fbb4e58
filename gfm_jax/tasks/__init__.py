"""Training problems: what a recorder trains."""

from gfm_jax.tasks.classification import classification
from gfm_jax.tasks.minibatches import minibatch_indices
from gfm_jax.tasks.quadratic import quadratic
from gfm_jax.tasks.regression import gradient_descent_end, linear_regression, logistic_regression

__all__ = [
    "classification",
    "gradient_descent_end",
    "linear_regression",
    "logistic_regression",
    "minibatch_indices",
    "quadratic",
]
