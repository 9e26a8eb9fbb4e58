r"""Memories in the clock of the weights: how long, in the sum of learning rates, a slot remembers.

A fixed beta remembers lr / (1 - beta): less and less as a schedule falls. A field is closed, the same at every learning rate,
only where the memory tau is fixed and beta follows the rate.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gfm_jax.checks import is_traced

__all__ = ["matched_decay", "memory"]


def memory(decay: float | Float[Array, "..."], learning_rate: float | Float[Array, "..."]) -> Float[Array, "..."]:
    r"""tau = lr / (1 - beta): the time that a slot of that decay remembers.

    Args:
      decay: beta, in [0, 1).
      learning_rate: from 0 on.

    >>> round(float(memory(0.9, 0.01)), 4)
    0.1
    """
    return jnp.asarray(learning_rate / (1 - decay))


def matched_decay(learning_rate: optax.ScalarOrSchedule, tau: float | Float[Array, ""]) -> Callable[[ArrayLike], Array]:
    r"""The decay that remembers the same time at every learning rate.

    .. math:: \beta_k = e^{-lr_k / \tau}

    Args:
      learning_rate: the optimizer's, a number or a schedule.
      tau: the memory, in the sum of learning rates, above 0.

    Returns:
      A schedule for `optax.inject_hyperparams`, such as
      `optax.inject_hyperparams(optax.rmsprop)(lr, decay=matched_decay(lr, 0.01))`. Optax's corrections of Adam's bias take the
      decay to have always been what it is: under a schedule they are right only once the memory is full.

    Raises:
      ValueError: for a memory that is not positive.

    Clock-matched betas, arXiv 2606.29554.

    >>> round(float(matched_decay(0.1, 1.0)(0)), 4)  # exp(-.1)
    0.9048
    """
    if not is_traced(tau) and not tau > 0:
        raise ValueError(f"tau: expected a positive time, got {tau}")
    rate_at = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    return lambda count: jnp.exp(-jnp.asarray(rate_at(count)) / tau)
