"""The order in which a run sees its data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gfm_jax.base import Task

__all__ = ["branched", "minibatch_indices"]


def minibatch_indices(key: Array, num_examples: int, batch_size: int, num_steps: int) -> Int[Array, "steps batch"]:
    """Indices of the examples of every step: each epoch is a fresh permutation, its incomplete last batch left out.

    Args:
      key: randomness; one key gives one order, and a longer run begins like a shorter one.
      num_examples: size of the data.
      batch_size: 1..num_examples.
      num_steps: number of steps.

    Returns:
      int32 [num_steps, batch_size].

    Raises:
      ValueError: for a batch larger than the data, or of no example.

    >>> index = minibatch_indices(jax.random.key(0), num_examples=5, batch_size=2, num_steps=2)  # one epoch
    >>> index.shape, len(set(index.ravel().tolist()))
    ((2, 2), 4)
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size: expected 1..{num_examples}, the size of the data, got {batch_size}")
    steps_per_epoch = num_examples // batch_size
    num_epochs = -(-num_steps // steps_per_epoch)

    def epoch(i):
        order = _permutation(jax.random.fold_in(key, i), num_examples)
        return order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)

    return jax.vmap(epoch)(jnp.arange(num_epochs)).reshape(-1, batch_size)[:num_steps]


def branched(task: Task) -> Task:
    """The same task, but runs of one key draw different minibatches from some step on.

    Its `variety`: `branch`, an integer, and `branch_step`, the step from which runs of different branches part ways.
    What they still have in common at the end is all that a forecast from before that step can know.

    Args:
      task: whose draws are arrays led by [num_steps].

    Returns:
      The task; its draws raise a ValueError where the variety lacks `branch` or `branch_step`.

    >>> from gfm_jax.runs import quadratic
    >>> task = branched(quadratic(jnp.ones(2), noise=0.1))
    >>> one, other = (task.draws(jax.random.key(1), 9, {"branch": b, "branch_step": 4}) for b in (0, 1))
    >>> int((one != other).argmax())  # the first step with another draw
    4
    """

    def draws(key, num_steps, variety):
        if missing := {"branch", "branch_step"} - set(variety or {}):
            raise ValueError(
                f"variety: expected `branch` and `branch_step` of each run, got no {', '.join(sorted(missing))}"
            )
        rest = {name: value for name, value in variety.items() if not name.startswith("branch")}
        key_of_branch = jax.random.fold_in(key, 1 + variety["branch"])
        common, own = (task.draws(k, num_steps, rest) for k in (key, key_of_branch))
        before = jnp.arange(num_steps) < variety["branch_step"]
        return jax.tree.map(lambda a, b: jnp.where(before.reshape(-1, *[1] * (a.ndim - 1)), a, b), common, own)

    return task._replace(draws=draws)


def _permutation(key, n):
    """A random permutation of range(n). One word holds random high bits and the index, so that a single array is sorted:
    on a CPU five times faster than sorting (key, index) pairs, and ties (n^2 / 2^(33-bits)) are rare up to 2^12."""
    index_bits = (n - 1).bit_length()
    if index_bits > 12:
        return jax.random.permutation(key, n)
    mask = jnp.uint32((1 << index_bits) - 1)
    words = (jax.random.bits(key, (n,), jnp.uint32) & ~mask) | jnp.arange(n, dtype=jnp.uint32)
    return (jax.lax.sort(words) & mask).astype(jnp.int32)  # of different words; on a CPU the stable sort is faster
