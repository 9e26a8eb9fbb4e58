"""Reference points: further points of the data set, from which the paths that cross a point might have come as well."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gfm_jax.checks import check_count

__all__ = ["distinct", "draw_reference_points"]


def distinct(key: Array, num: int, count: int) -> Int[Array, " count"]:
    """`count` different integers below `num`, every ordered choice equally likely.

    By Floyd's algorithm: its cost grows with the square of `count`, and not at all with `num`.

    Args:
      key: randomness.
      num: the integers are those of 0..num-1.
      count: how many, 0..num.

    Raises:
      ValueError: for a count that is not in 0..num.

    >>> sorted(distinct(jax.random.key(0), 5, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    if not 0 <= count <= num:
        raise ValueError(f"count: expected 0 to {num} different integers, got {count}")
    if not count:
        return jnp.zeros(0, int)
    key_draws, key_order = jax.random.split(key)
    last = jnp.arange(num - count, num)
    drawn = jax.random.randint(key_draws, (count,), 0, last + 1)  # the i-th from 0..last_i

    def choose(i, chosen):
        return chosen.at[i].set(jnp.where((chosen == drawn[i]).any(), last[i], drawn[i]))

    chosen = jax.lax.fori_loop(0, count, choose, jnp.full(count, -1))
    return jax.random.permutation(key_order, chosen)


def draw_reference_points(
    key: Array,
    num: int,
    batch_size: int,
    num_reference_points: int,
    sharing: Literal["per_sample", "shared"] = "shared",
    replacement: bool = False,
) -> tuple[Int[Array, " batch"], Int[Array, "..."]]:
    r"""Targets for a batch, and reference points among which each of them is one.

    On the closed form of flow matching, arXiv 2506.03719, Algorithm 2: b^(1) is the point that made x_t, the others are
    fresh. Given the set, each of its members is equally likely to be b^(1): that is what makes the target unbiased.

    Args:
      key: randomness.
      num: points in the data set.
      batch_size: targets to draw.
      num_reference_points: M, the total, the sample's own point among them.
      sharing: "per_sample" draws M - 1 others for every sample; "shared" lets the whole batch share one set, its own
        points and M - batch_size fresh ones, which is cheaper.
      replacement: whether a point may come twice. Without, the variance is less, and M = num gives the exact field.

    Returns:
      Indices of the targets, [batch], and of the reference points: [batch, M], the first its own, or [M], the first the batch.

    Raises:
      ValueError: for an M below 1 (below the batch size where it is shared), above num where no point may come twice, or for
        another word.

    >>> own, reference = draw_reference_points(jax.random.key(0), 100, 4, 16)
    >>> own.shape, reference.shape
    ((4,), (16,))
    """
    if sharing not in ("per_sample", "shared"):
        raise ValueError(f"sharing: expected 'per_sample' or 'shared', got {sharing!r}")
    num, batch_size = check_count("num", num), check_count("batch_size", batch_size)
    num_reference_points = check_count("num_reference_points", num_reference_points, least=0)
    least = batch_size if sharing == "shared" else 1
    if num_reference_points < least:
        why = ", since the batch is part of the shared set" if sharing == "shared" else ""
        raise ValueError(f"num_reference_points: expected at least {least}{why}, got {num_reference_points}")
    if not replacement and num_reference_points > num:
        raise ValueError(f"num_reference_points: expected at most {num} different points, got {num_reference_points}")
    if sharing == "shared":
        draw = _with_replacement if replacement else distinct
        index = draw(key, num, num_reference_points)
        return index[:batch_size], index
    key_own, key_others = jax.random.split(key)
    own = jax.random.randint(key_own, (batch_size,), 0, num)
    keys = jax.random.split(key_others, batch_size)
    if replacement:
        others = jax.vmap(lambda key: _with_replacement(key, num, num_reference_points - 1))(keys)
    else:  # of those that remain, counted from its own onwards
        others = jax.vmap(lambda key: distinct(key, num - 1, num_reference_points - 1))(keys)
        others = (own[:, None] + 1 + others) % num
    return own, jnp.concatenate([own[:, None], others], axis=1)


def _with_replacement(key, num, count):
    return jax.random.randint(key, (count,), 0, num)
