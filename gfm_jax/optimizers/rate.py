"""Learning rates: numbers or schedules, as optax takes them."""

import jax
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

__all__ = ["check_not_negative", "rate_at"]


def check_not_negative(**values: optax.ScalarOrSchedule) -> None:
    """Raises ValueError for what is not one number from 0 on; schedules pass, and traced arrays, which have no value."""
    for name, value in values.items():
        if callable(value) or isinstance(value, Tracer):
            continue
        if not (np.ndim(value) == 0 and np.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a number from 0 on, or a schedule, got {value}")


def rate_at(learning_rate: optax.ScalarOrSchedule, count: ArrayLike) -> float | jax.Array:
    """The learning rate of the update that follows `count` others."""
    return learning_rate(count) if callable(learning_rate) else learning_rate
