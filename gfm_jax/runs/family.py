"""Families of training problems: the variety that a zoo needs, so that what is learned from it transfers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Task

__all__ = ["SCHEDULES", "Structure", "TaskFamily", "draw_structures"]

SCHEDULES = {
    "constant": lambda peak, num_steps: optax.constant_schedule(peak),
    "cosine": lambda peak, num_steps: optax.cosine_decay_schedule(peak, num_steps),
    "warmup_cosine": lambda peak, num_steps: optax.warmup_cosine_decay_schedule(
        0.0, peak, max(num_steps // 10, 1), num_steps
    ),
    "linear": lambda peak, num_steps: optax.linear_schedule(peak, 0.0, num_steps),
}


class TaskFamily(NamedTuple):
    """What differs from run to run.

    Attributes:
      tasks: problems that differ in architecture, batch size or data.
      optimizers: functions of the learning rate, each with the range of its learning rates, drawn log-uniformly.
      schedules: names among `SCHEDULES`, equally likely.
      variety: for each scalar that the tasks understand (`label_noise`, `data_noise`, `init_scale`) the range from
        which it is drawn uniformly.
    """

    tasks: Sequence[Task]
    optimizers: Sequence[tuple[Callable[..., optax.GradientTransformation], tuple[float, float]]]
    schedules: Sequence[str] = ("constant", "cosine")
    variety: Mapping[str, tuple[float, float]] = {}


class Structure(NamedTuple):
    """Runs of one task and one optimizer, ready for `record`: keys, learning rates and variety are led by [runs]."""

    task: Task
    optimizer: Callable[..., optax.GradientTransformation]
    keys: Array
    learning_rate: Float[Array, "runs num_steps"]
    variety: dict[str, Float[Array, " runs"]]


def draw_structures(key: Array, family: TaskFamily, num_runs: int, num_steps: int) -> list[Structure]:
    """Draws `num_runs` runs of `num_steps` steps for every task and every optimizer of a family.

    Args:
      key: randomness of the peaks, schedules and variety, and the keys of the runs.
      family: what differs.
      num_runs: of each pair of a task and an optimizer, at least 1.
      num_steps: of every run, at least 1.

    Returns:
      One structure for each pair, tasks first: all that differs inside it is data, so that it is recorded in one call.

    Raises:
      ValueError: for an unknown schedule, or a range whose ends are not in order (or not positive, for learning rates).

    >>> from gfm_jax.runs import quadratic
    >>> family = TaskFamily([quadratic(jnp.ones(2))], [(optax.sgd, (0.1, 1.0))], schedules=["constant"])
    >>> [structure] = draw_structures(jax.random.key(0), family, num_runs=3, num_steps=5)
    >>> structure.learning_rate.shape, structure.keys.shape
    ((3, 5), (3,))
    """
    if unknown := set(family.schedules) - set(SCHEDULES):
        raise ValueError(f"schedules: expected names among {', '.join(SCHEDULES)}, got {', '.join(sorted(unknown))}")
    for name, (low, high) in family.variety.items():
        if not -np.inf < low <= high < np.inf:
            raise ValueError(f"variety[{name!r}]: expected a finite range (low, high), got ({low}, {high})")
    for _, (low, high) in family.optimizers:
        if not 0 < low <= high < np.inf:
            raise ValueError(f"optimizers: expected learning rates 0 < low <= high, got ({low}, {high})")

    def runs(key, low, high):
        key_runs, key_peak, key_schedule, key_variety = jax.random.split(key, 4)
        peak = low * (high / low) ** jax.random.uniform(key_peak, (num_runs,))
        # A schedule is linear in its peak: drawn as a row of a table.
        table = jnp.stack([_rates(SCHEDULES[name], num_steps) for name in family.schedules])
        shape = table[jax.random.randint(key_schedule, (num_runs,), 0, len(table))]
        keys = jax.random.split(key_variety, max(len(family.variety), 1))
        variety = {
            name: jax.random.uniform(key, (num_runs,), minval=low, maxval=high)
            for key, (name, (low, high)) in zip(keys, family.variety.items(), strict=False)
        }
        return jax.random.split(key_runs, num_runs), peak[:, None] * shape, variety

    pairs = [(task, optimizer, span) for task in family.tasks for optimizer, span in family.optimizers]
    keys = jax.random.split(key, len(pairs))
    return [
        Structure(task, optimizer, *runs(key, *span)) for key, (task, optimizer, span) in zip(keys, pairs, strict=True)
    ]


def _rates(schedule, num_steps):
    return jnp.broadcast_to(schedule(1.0, num_steps)(jnp.arange(num_steps)), (num_steps,))
