"""The history of a run in fixed memory: saves that stay evenly spread, however long the run becomes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.optimizers.accumulators import as_accumulator, zero_accumulators

__all__ = ["DTYPES", "OFF_START", "History", "as_floats", "new_history", "saved"]

DTYPES = (jnp.bfloat16, jnp.float32)  # of what is kept

MEANS = ("loss", "mean_weights", "gradient")  # over the steps since the save before
BEFORE = ("loss", "gradient")  # of these, what is known before a step: the segment that ends at a save does without it
OFF_START = ("weights", "mean_weights")  # kept as what they are off the first weights


class History(NamedTuple):
    """The saves of a run so far. They stay in the rows that they were written to; `order` says which save is where.

    Attributes:
      count: updates taken.
      stride: steps between saves.
      num: saves that are held.
      order: the row of each save, and from `num` on the rows that are free.
      time, rate: the sum of the learning rates of the updates taken, and the last of them; None without rates.
      moments: of each row, its step, time, learning rate and loss, [rows].
      start: the weights at first.
      rows: by part, a tree like the weights, with leaves [rows, ...]; of weights and mean weights, what they are off `start`.
        The bits of bfloat16 are held as uint16: on a CPU XLA would bring all rows into float32 and back to write one of them.
      sums: by part, since the last save: of losses, and of what is kept as a mean.
      last: the step of the last save, -1 before the first.
      calls, losses: since the last save, how often an update was asked for, and how many of these were given their loss. An
        optimizer that leaves updates out, as `optax.MultiSteps` does, is asked more often than it takes one.
    """

    count: Int[Array, ""]
    stride: Int[Array, ""]
    num: Int[Array, ""]
    order: Int[Array, " rows"]
    time: Float[Array, ""] | None
    rate: Float[Array, ""] | None
    moments: dict[str, Array]
    start: PyTree
    rows: dict[str, PyTree]
    sums: dict[str, PyTree]
    last: Int[Array, ""]
    calls: Int[Array, ""]
    losses: Int[Array, ""]


def new_history(like: dict[str, PyTree], num_saves: int, dtype, rate: Float[Array, ""] | None) -> History:
    """A history without a save.

    Args:
      like: by part, a tree of the shapes to keep; "weights" as they are at first.
      num_saves: rows, an even number.
      dtype: of the rows.
      rate: the first learning rate, None where the clock is the number of steps.
    """
    names = ("step", "loss") if rate is None else ("step", "time", "learning_rate", "loss")
    row = lambda leaf: jnp.broadcast_to(as_row(jnp.zeros_like(leaf), dtype), (num_saves, *jnp.shape(leaf)))
    number = lambda value: jnp.full((), value, jnp.int32)  # arrays of their own: they may be donated
    return History(
        count=number(0),
        stride=number(1),
        num=number(0),
        order=jnp.arange(num_saves, dtype=jnp.int32),
        time=None if rate is None else jnp.zeros((), jnp.float32),
        rate=rate,
        moments={name: jnp.zeros(num_saves, jnp.int32 if name == "step" else jnp.float32) for name in names},
        start=jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), like["weights"]),  # they may be donated as well
        rows=jax.tree.map(row, like),
        sums={name: zero_accumulators(tree) for name, tree in like.items() if name in MEANS} | {"loss": jnp.zeros(())},
        last=number(-1),
        calls=number(0),
        losses=number(0),
    )


def saved(history: History, now: dict[str, PyTree]) -> History:
    """The history with what is known at step `count`, before its update is taken: saved there, where the stride says so.

    A mean is taken over the segment that ends at a save: the weights after each of its steps, the losses and gradients before
    them. At save 0 it is what is known there. A loss of None was not given.
    """
    loss, weights = now["loss"], now["weights"]
    if "mean_weights" in now:
        now = now | {"mean_weights": _less(now["mean_weights"], history.start)}
    now["loss"] = jnp.zeros(()) if loss is None else jnp.asarray(loss, jnp.float32)
    fresh = history.count != history.last
    history = _halved(history, fresh & (history.count % history.stride == 0) & (history.num == len(history.order)))
    due = fresh & (history.count % history.stride == 0)  # by the stride as it is now
    first, sums = history.last < 0, dict(history.sums)
    if "mean_weights" in sums:
        sums["mean_weights"] = _plus(sums["mean_weights"], now["mean_weights"])
    ended = dict(sums)
    for name in set(BEFORE) & set(sums):  # at save 0 the loss and the gradient of the first minibatch
        ended[name] = jax.tree.map(lambda total, new: jnp.where(first, new, total), sums[name], now[name])
    calls = jnp.where(first, 1, history.calls)
    losses = jnp.where(first, loss is not None, history.losses)
    row = history.order[jnp.minimum(history.num, len(history.order) - 1)]

    def write(i, rows):
        # i is 0, and added so that XLA does not work out the row at every step, outside of the loop.
        off_start = _less(jax.tree.map(lambda leaf: leaf + i.astype(leaf.dtype), weights), history.start)
        means = {
            name: jax.tree.map(lambda total: total * (1 / calls.astype(total.dtype)), ended[name]) for name in ended
        }
        kept = {name: means[name] if name in means else now[name] for name in rows} | {"weights": off_start}
        put = lambda array, new: jax.lax.dynamic_update_index_in_dim(array, as_row(new, array.dtype), row, 0)
        return jax.tree.map(put, rows, kept)

    # A loop of one step or none: it works in place, where a branch would copy the rows.
    rows = jax.lax.fori_loop(0, due.astype(jnp.int32), write, history.rows)
    mean_loss = jnp.where(losses > 0, ended["loss"] / losses, jnp.nan)
    numbers = {"step": history.count, "time": history.time, "learning_rate": history.rate, "loss": mean_loss}
    moments = history.moments
    moments = {name: array.at[row].set(jnp.where(due, numbers[name], array[row])) for name, array in moments.items()}
    sums = jax.tree.map(lambda total: jnp.where(due, 0, total), sums)
    for name in set(BEFORE) & set(sums):
        sums[name] = _plus(sums[name], now[name])
    return history._replace(
        num=history.num + due,
        moments=moments,
        rows=rows,
        sums=sums,
        last=jnp.where(due, history.count, history.last),
        calls=jnp.where(due, 0, history.calls) + 1,
        losses=jnp.where(due, 0, history.losses) + int(loss is not None),
    )


def _halved(history: History, full) -> History:
    """Every other save goes, where the rows are full; its means pass into those of the save after it, half of each."""
    order = history.order
    means = {name: history.rows[name] for name in MEANS if name in history.rows} | {"loss": history.moments["loss"]}
    nums = {name: history.losses if name == "loss" else history.calls for name in means}

    def merged(_, carry):
        means, sums = carry
        at = lambda array, row: as_floats(jax.lax.dynamic_index_in_dim(array, row, keepdims=False))

        def pair(k, parts):
            gone, stays = order[2 * k + 1], order[2 * k + 2]
            mean = lambda array: (at(array, gone) + at(array, stays)) / 2
            put = lambda array: jax.lax.dynamic_update_index_in_dim(array, as_row(mean(array), array.dtype), stays, 0)
            return jax.tree.map(put, parts)

        add = lambda total, array, num: total + num.astype(total.dtype) * at(array, order[-1]).astype(total.dtype)
        added = {name: functools.partial(add, num=num) for name, num in nums.items()}
        sums = {name: jax.tree.map(added[name], sums[name], means[name]) for name in means}
        return jax.lax.fori_loop(0, len(order) // 2 - 1, pair, means), sums

    means, sums = jax.lax.fori_loop(0, full.astype(jnp.int32), merged, (means, history.sums))
    return history._replace(
        stride=jnp.where(full, 2 * history.stride, history.stride),
        num=jnp.where(full, len(order) // 2, history.num),
        order=jnp.where(full, jnp.concatenate([order[::2], order[1::2]]), order),
        moments=history.moments | {"loss": means.pop("loss")},
        rows=history.rows | means,
        sums=sums,
        calls=jnp.where(full, 2 * history.calls, history.calls),
        losses=jnp.where(full, 2 * history.losses, history.losses),
    )


def as_row(x: Array, dtype) -> Array:
    """Numbers as rows hold them: of bfloat16 the bits."""
    if jnp.dtype(dtype) in (jnp.bfloat16, jnp.uint16):
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def as_floats(row: Array) -> Array:
    """The numbers that rows hold."""
    return jax.lax.bitcast_convert_type(row, jnp.bfloat16).astype(jnp.float32) if row.dtype == jnp.uint16 else row


def _less(tree, other):
    return jax.tree.map(lambda a, b: as_accumulator(jnp.asarray(a)) - as_accumulator(b), tree, other)


def _plus(total, new):
    return jax.tree.map(lambda a, b: a + as_accumulator(jnp.asarray(b)), total, new)
