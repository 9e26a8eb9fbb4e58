"""Linear and logistic regression on synthetic data, the setting in which the end of training can be worked out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Task
from gfm_jax.tasks.minibatches import minibatch_indices

__all__ = ["gradient_descent_end", "linear_regression", "logistic_regression"]


def linear_regression(
    key: Array, num_examples: int = 256, dim: int = 8, *, noise: float = 0.1, batch_size: int | None = None
) -> Task:
    r"""Least squares on y = X w^* + noise, with X standard normal, columns scaled from 1 down to 1/4.

    .. math:: L(w) = \frac{1}{2B} \sum_b (x_b \cdot w - y_b)^2

    Args:
      key: randomness of the data.
      num_examples, dim: shape of X in every split.
      noise: standard deviation of the targets' noise.
      batch_size: examples a step; None for all of them.
    """
    half = lambda prediction, y: 0.5 * (prediction - y) ** 2
    return _regression(key, num_examples, dim, noise, batch_size, half, lambda score, key: score)


def logistic_regression(
    key: Array, num_examples: int = 256, dim: int = 8, *, noise: float = 0.1, batch_size: int | None = None
) -> Task:
    r"""Classification of y in {0, 1}, drawn from sigmoid(X w^* + noise), by its log-likelihood; arguments as above."""
    likelihood = lambda score, y: jnp.logaddexp(0.0, score) - y * score
    label = lambda score, key: jax.random.bernoulli(key, jax.nn.sigmoid(score)).astype(score.dtype)
    return _regression(key, num_examples, dim, noise, batch_size, likelihood, label)


def _regression(key, num_examples, dim, noise, batch_size, loss_of, label_of):
    batch_size = num_examples if batch_size is None else batch_size
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size: expected 1..num_examples = {num_examples}, got {batch_size}")
    key_true, *keys = jax.random.split(key, 4)
    true = jax.random.normal(key_true, (dim,))

    def split(key):
        key_inputs, key_noise, key_label = jax.random.split(key, 3)
        inputs = jax.random.normal(key_inputs, (num_examples, dim)) * jnp.geomspace(1.0, 0.25, dim)
        score = inputs @ true + noise * jax.random.normal(key_noise, (num_examples,))
        return inputs, label_of(score, key_label)

    def init(key, variety=None):
        return (variety or {}).get("init_scale", 1.0) * jax.random.normal(key, (dim,))

    def draws(key, num_steps, variety=None):
        if batch_size == num_examples:
            return jnp.zeros((num_steps, 0))  # nothing is drawn: every step sees all examples
        return minibatch_indices(key, num_examples, batch_size, num_steps)

    def loss(weights, data, draw):
        inputs, targets = data["train"]
        if batch_size < num_examples:
            inputs, targets = inputs[draw], targets[draw]
        return loss_of(inputs @ weights, targets).mean()

    def evaluate(weights, split):
        inputs, targets = split
        return {"loss": loss_of(inputs @ weights, targets).mean()}

    data = dict(zip(("train", "validation", "test"), map(split, keys), strict=True))
    return Task(data, init, draws, loss, evaluate)


def gradient_descent_end(
    task: Task, weights: Float[Array, " dim"], learning_rate: float, num_steps: int
) -> Float[Array, " dim"]:
    r"""Where full-batch gradient descent on a linear regression ends, in closed form.

    .. math:: w_m = w^* + (I - lr H)^m (w_0 - w^*), \qquad H = X^\top X / N
    """
    inputs, targets = task.data["train"]
    hessian = inputs.T @ inputs / len(inputs)
    minimum = jnp.linalg.solve(hessian, inputs.T @ targets / len(inputs))
    values, vectors = jnp.linalg.eigh(hessian)
    return minimum + vectors @ ((1 - learning_rate * values) ** num_steps * (vectors.T @ (weights - minimum)))
