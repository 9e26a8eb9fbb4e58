"""A support set, examples and their labels, as what a generator is conditioned on."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

__all__ = ["class_context", "label_codes", "support_tokens"]


def label_codes(num_ways: int) -> Float[Array, "ways ways"]:
    r"""A code for each label, none of them special: the corners of a regular simplex.

    .. math:: |c_k| = 1, \qquad c_k \cdot c_l = -1 / (W - 1)

    Args:
      num_ways: W, at least 2.

    Returns:
      The codes, as rows; they sum to zero.

    Raises:
      ValueError: for fewer than two labels.

    >>> codes = label_codes(3)
    >>> (2 * codes @ codes.T).round().tolist()
    [[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]]

    Context-aware meta-learning's equal-norm and equiangular vectors, as in arXiv 2503.19371.
    """
    if num_ways < 2:
        raise ValueError(f"num_ways: expected at least 2 labels to tell apart, got {num_ways}")
    return (jnp.eye(num_ways) - 1 / num_ways) * jnp.sqrt(num_ways / (num_ways - 1))


def _check_support(features: Array, labels: Array, num_ways: int) -> None:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features: expected a support set [num, features], not empty, got shape {features.shape}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels: expected one for each of {len(features)} examples, got shape {labels.shape}")
    if isinstance(labels, Tracer):
        return
    values = np.asarray(labels)
    if not 0 <= values.min() <= values.max() < num_ways:
        raise ValueError(f"labels: expected 0..{num_ways - 1}, got {values.min()}..{values.max()}")


@jax.default_matmul_precision("highest")
def class_context(
    features: Float[Array, "support features"], labels: Int[Array, " support"], codes: Float[Array, "ways code"]
) -> Float[Array, " context"]:
    r"""A deep set that needs no fit: the mean of all examples' features, each tied to the code of its label.

    .. math:: y = \frac1n \sum_i c_{y_i} \otimes (\phi(x_i), 1)

    The order of the examples does not matter, and that of the labels only through the codes: exchanging labels exchanges codes.

    Args:
      features: of the examples, such as their first principal components.
      labels: in 0..ways-1.
      codes: as `label_codes` makes them.

    Returns:
      [code * (features + 1)].

    Raises:
      ValueError: for a support set that is empty, labels of another number, or labels out of range.

    >>> features, labels = jnp.array([[2.0], [4.0]]), jnp.array([0, 1])
    >>> class_context(features, labels, jnp.eye(2)).tolist()
    [1.0, 0.5, 2.0, 0.5]
    """
    _check_support(features, labels, len(codes))
    with_one = jnp.concatenate([features, jnp.ones((len(features), 1), features.dtype)], axis=1)
    return (codes[labels].T.astype(features.dtype) @ with_one / len(features)).ravel()


def support_tokens(
    features: Float[Array, "support features"], labels: Int[Array, " support"], codes: Float[Array, "ways code"]
) -> Float[Array, " tokens"]:
    """All examples, each followed by the code of its label, in one vector: what `networks.WithContext` learns from.

    Args:
      features, labels, codes: as in `class_context`.

    Returns:
      [support * (features + code)].

    Raises:
      ValueError: as `class_context`.

    >>> features, labels = jnp.array([[2.0], [4.0]]), jnp.array([0, 1])
    >>> support_tokens(features, labels, jnp.eye(2)).tolist()
    [2.0, 1.0, 0.0, 4.0, 0.0, 1.0]
    """
    _check_support(features, labels, len(codes))
    return jnp.concatenate([features, codes[labels].astype(features.dtype)], axis=1).ravel()
