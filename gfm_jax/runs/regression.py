"""Linear and logistic regression on synthetic data, the setting in which the end of training can be worked out."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Task
from gfm_jax.runs.minibatches import minibatch_indices

__all__ = ["gradient_descent_end", "heavy_ball_end", "least_squares", "linear_regression", "logistic_regression"]


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

    Returns:
      The task, with the splits "train", "validation" and "test". Weights start from a standard normal law, times `init_scale`
      of the variety; `evaluate` gives `loss`.

    Raises:
      ValueError: for a batch size outside 1..num_examples.

    >>> task = linear_regression(jax.random.key(0), 20, 3)
    >>> {split: inputs.shape for split, (inputs, targets) in task.data.items()}
    {'train': (20, 3), 'validation': (20, 3), 'test': (20, 3)}
    """
    return _regression(key, num_examples, dim, noise, batch_size, _half_square, lambda score, key: score)


def logistic_regression(
    key: Array, num_examples: int = 256, dim: int = 8, *, noise: float = 0.1, batch_size: int | None = None
) -> Task:
    r"""Classification of y in {0, 1}, drawn from sigmoid(X w^* + noise), by its log-likelihood.

    Arguments, result and errors are those of `linear_regression`.

    >>> task = logistic_regression(jax.random.key(0), 20, 3)
    >>> round(float(task.evaluate(jnp.zeros(3), task.data["test"])["loss"]), 4)  # log 2
    0.6931
    """
    label = lambda score, key: jax.random.bernoulli(key, jax.nn.sigmoid(score)).astype(score.dtype)
    return _regression(key, num_examples, dim, noise, batch_size, _logistic, label)


def _half_square(prediction, y):
    return 0.5 * (prediction - y) ** 2


def _logistic(score, y):
    return jnp.logaddexp(0.0, score) - y * score


def _regression(key, num_examples, dim, noise, batch_size, loss_of, label_of):
    batch_size = num_examples if batch_size is None else batch_size
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size: expected 1..num_examples = {num_examples}, got {batch_size}")
    key_true, *keys = jax.random.split(key, 4)
    true = jax.random.normal(key_true, (dim,))

    @jax.default_matmul_precision("highest")
    def split(key):
        key_inputs, key_noise, key_label = jax.random.split(key, 3)
        inputs = jax.random.normal(key_inputs, (num_examples, dim)) * jnp.geomspace(1.0, 0.25, dim)
        score = inputs @ true + noise * jax.random.normal(key_noise, (num_examples,))
        return inputs, label_of(score, key_label)

    data = dict(zip(("train", "validation", "test"), map(split, keys), strict=True))
    return Task(data, *_functions(num_examples, dim, batch_size, loss_of))


@functools.cache  # problems of one shape share their functions, so that recording a second one compiles nothing
def _functions(num_examples, dim, batch_size, loss_of):
    def init(key, variety=None):
        return (variety or {}).get("init_scale", 1.0) * jax.random.normal(key, (dim,))

    def draws(key, num_steps, variety=None):
        if batch_size == num_examples:
            return jnp.zeros((num_steps, 0))  # nothing is drawn: every step sees all examples
        return minibatch_indices(key, num_examples, batch_size, num_steps)

    @jax.default_matmul_precision("highest")
    def loss(weights, data, draw):
        inputs, targets = data["train"]
        if batch_size < num_examples:
            inputs, targets = inputs[draw], targets[draw]
        return loss_of(inputs @ weights, targets).mean()

    @jax.default_matmul_precision("highest")
    def evaluate(weights, split):
        inputs, targets = split
        return {"loss": loss_of(inputs @ weights, targets).mean()}

    return init, draws, loss, evaluate


@jax.default_matmul_precision("highest")
def least_squares(task: Task) -> tuple[Float[Array, " dim"], Float[Array, "dim dim"]]:
    r"""The minimum and the Hessian of a linear regression: w^* = H^{-1} X^T y / N, H = X^T X / N.

    Args:
      task: a linear regression with at least as many training examples as weights.

    Returns:
      w^* [dim] and H [dim, dim].

    >>> task = linear_regression(jax.random.key(0), 20, 3)._replace(
    ...     data={"train": (3**0.5 * jnp.eye(3), 3**0.5 * jnp.array([2.0, 1.0, 5.0]))}
    ... )
    >>> minimum, hessian = least_squares(task)
    >>> minimum.round(4).tolist(), jnp.diag(hessian).round(4).tolist()
    ([2.0, 1.0, 5.0], [1.0, 1.0, 1.0])
    """
    inputs, targets = task.data["train"]
    hessian = inputs.T @ inputs / len(inputs)
    return jnp.linalg.solve(hessian, inputs.T @ targets / len(inputs)), hessian


@jax.default_matmul_precision("highest")
def gradient_descent_end(
    task: Task, weights: Float[Array, " dim"], learning_rate: Float[Array, ""] | float, num_steps: int
) -> Float[Array, " dim"]:
    r"""Where full-batch gradient descent on a linear regression ends, in closed form.

    .. math:: w_m = w^* + (I - lr H)^m (w_0 - w^*), \qquad H = X^\top X / N

    Args:
      task: a linear regression with `batch_size=None`.
      weights: w_0.
      learning_rate: lr of every step.
      num_steps: m, from 0 on.

    Returns:
      The weights after the last step.

    >>> identity = {"train": (3**0.5 * jnp.eye(3), jnp.zeros(3))}  # H = I, w^* = 0
    >>> task = linear_regression(jax.random.key(0), 20, 3)._replace(data=identity)
    >>> gradient_descent_end(task, jnp.array([1.0, 4.0, 8.0]), 0.5, num_steps=2).round(4).tolist()
    [0.25, 1.0, 2.0]
    """
    minimum, hessian = least_squares(task)
    values, vectors = jnp.linalg.eigh(hessian)
    return minimum + vectors @ ((1 - learning_rate * values) ** num_steps * (vectors.T @ (weights - minimum)))


@jax.default_matmul_precision("highest")
def heavy_ball_end(
    task: Task,
    weights: Float[Array, " dim"],
    learning_rate: Float[Array, ""] | float,
    decay: Float[Array, ""] | float,
    num_steps: int,
) -> Float[Array, " dim"]:
    r"""Where full-batch gradient descent with momentum on a linear regression ends, in closed form.

    .. math:: \begin{pmatrix} e \\ v \end{pmatrix}_{k+1} = \begin{pmatrix} 1 - lr\,h & -lr\,\beta \\ h & \beta
       \end{pmatrix} \begin{pmatrix} e \\ v \end{pmatrix}_k

    for every eigenvalue h of the Hessian, with e the distance to the minimum along it and v optax's trace, 0 at first.

    Args:
      task: a linear regression with `batch_size=None`.
      weights: w_0.
      learning_rate: lr of every step.
      decay: beta, in [0, 1).
      num_steps: m, from 0 on.

    Returns:
      The weights after the last step.

    >>> identity = {"train": (3**0.5 * jnp.eye(3), jnp.zeros(3))}  # H = I, w^* = 0
    >>> task = linear_regression(jax.random.key(0), 20, 3)._replace(data=identity)
    >>> heavy_ball_end(task, jnp.array([1.0, 4.0, 8.0]), 0.5, decay=0.5, num_steps=3).round(4).tolist()
    [-0.25, -1.0, -2.0]
    """
    minimum, hessian = least_squares(task)
    values, vectors = jnp.linalg.eigh(hessian)

    def along(h, e):
        companion = jnp.array([[1 - learning_rate * h, -learning_rate * decay], [h, decay]])
        return jnp.linalg.matrix_power(companion, num_steps)[0, 0] * e

    return minimum + vectors @ jax.vmap(along)(values, vectors.T @ (weights - minimum))
