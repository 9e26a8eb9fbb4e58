"""Batches of runs, divided by run."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from gfm_jax.base import Trajectory

__all__ = ["split", "take"]


def take(runs: Trajectory, index: int | slice | Sequence | np.ndarray | Array) -> Trajectory:
    """Some runs of a batch, or one of them.

    Args:
      runs: a batch, led by [runs, saves].
      index: of a run, negative from the end; a slice; a list of such numbers, or of one Boolean a run.

    Returns:
      The run, [saves, ...], or the batch of those chosen, [chosen, saves, ...].

    Raises:
      ValueError: for a single run, or an index out of range.

    >>> import jax, jax.numpy as jnp, optax
    >>> from gfm_jax.runs import linear_regression, record, save_steps
    >>> task, keys = linear_regression(jax.random.key(0), 20, 3), jax.random.split(jax.random.key(1), 4)
    >>> runs = record(keys, task, optax.sgd, jnp.full(10, 0.1), save_steps(10, 5))
    >>> take(runs, [0, 2]).weights.shape == (2, *runs.weights.shape[1:])
    True
    """
    num, of_leaf = _number_of(runs), lambda leaf, chosen: leaf[chosen]
    if isinstance(index, Tracer):  # cannot be checked: JAX keeps it in range
        of_leaf = lambda leaf, chosen: jnp.asarray(leaf)[chosen]
    elif not isinstance(index, slice):
        index = _checked(index, num)
    leaves = jax.tree.map(lambda leaf: of_leaf(leaf, index), runs._replace(layout=None))
    return leaves._replace(layout=runs.layout)


def _checked(index, num):
    chosen = np.asarray(index)
    if not chosen.size:
        return chosen.astype(int)
    if chosen.dtype == bool:
        if chosen.shape != (num,):
            raise ValueError(f"index: expected one Boolean for each of {num} runs, got shape {chosen.shape}")
    elif not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"index: expected numbers of runs or one Boolean a run, got {index!r}")
    elif not (-num <= chosen.min() and chosen.max() < num):
        raise ValueError(f"index: expected numbers of {num} runs, got {index!r}")
    return chosen


def split(runs: Trajectory, num: int | float) -> tuple[Trajectory, Trajectory]:
    """The first runs of a batch, and the others: by run, so that no run stands on both sides.

    Args:
      runs: a batch, led by [runs, saves]. Where runs follow one another in some order, such as that of their learning rates,
        choose by `take` and a permutation.
      num: how many go to the first part, or the fraction of them if it is a float below 1.

    Returns:
      Both parts, neither of them empty.

    Raises:
      ValueError: for a single run, or a number that leaves one part empty.

    >>> import jax, jax.numpy as jnp, optax
    >>> from gfm_jax.runs import linear_regression, record, save_steps
    >>> task, keys = linear_regression(jax.random.key(0), 20, 3), jax.random.split(jax.random.key(1), 4)
    >>> train, test = split(record(keys, task, optax.sgd, jnp.full(10, 0.1), save_steps(10, 5)), 3)
    >>> len(train.weights), len(test.weights)
    (3, 1)
    """
    total = _number_of(runs)
    first = round(num * total) if isinstance(num, float) and 0 < num < 1 else num
    if isinstance(first, float) or not 0 < first < total:
        raise ValueError(f"num: expected 1..{total - 1} of {total} runs, or a fraction of them in (0, 1), got {num}")
    return take(runs, slice(None, first)), take(runs, slice(first, None))


def _number_of(runs):
    if not isinstance(runs, Trajectory):
        raise ValueError(f"runs: expected a Trajectory, got {type(runs).__name__}")
    if np.ndim(runs.step) < 2:
        raise ValueError(f"runs: expected a batch of runs, [runs, saves], got one run with {np.shape(runs.step)}")
    return len(runs.step)
