"""Flow times, drawn: one time for a velocity, two for a flow map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.checks import is_traced

__all__ = ["dyadic", "logit_normal", "stratified", "triangle", "uniform"]


def uniform(key: Array, num: int) -> Float[Array, " num"]:
    """Uniform on [0, 1).

    >>> round(float(uniform(jax.random.key(0), 10_000).mean()), 1)
    0.5
    """
    return jax.random.uniform(key, (num,))


def stratified(key: Array, num: int) -> Float[Array, " num"]:
    """Uniform on [0, 1), one in each of `num` equal parts, in order.

    >>> (4 * stratified(jax.random.key(0), 4)).astype(int).tolist()
    [0, 1, 2, 3]
    """
    return (jnp.arange(num) + jax.random.uniform(key, (num,))) / num


def logit_normal(
    key: Array, num: int, mean: float | Float[Array, ""] = 0.0, std: float | Float[Array, ""] = 1.0
) -> Float[Array, " num"]:
    """The logistic function of a normal variable: the middle more often than the ends.

    Args:
      key: randomness.
      num: how many times.
      mean, std: of the normal variable; std at least 0.

    Raises:
      ValueError: for a negative std.

    >>> logit_normal(jax.random.key(0), 2, std=0.0).tolist()
    [0.5, 0.5]
    """
    if not is_traced(std) and not std >= 0:
        raise ValueError(f"std: expected a standard deviation of at least 0, got {std}")
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (num,)))


def triangle(key: Array, num: int) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
    """Two times s <= t, uniform on the triangle.

    >>> s, t = triangle(jax.random.key(0), 10_000)
    >>> round(float((t - s).mean()), 1)  # 1/3
    0.3
    """
    times = jax.random.uniform(key, (2, num))
    return times.min(0), times.max(0)


def dyadic(key: Array, num: int, levels: int = 7) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
    """Two times at a distance of 2^-k, k uniform in 0..levels-1, on the grid of that width: those of shortcut models.

    Raises:
      ValueError: for fewer than one level.

    >>> s, t = dyadic(jax.random.key(0), 100, levels=3)
    >>> sorted(set((t - s).tolist()))
    [0.25, 0.5, 1.0]
    """
    if levels < 1:
        raise ValueError(f"levels: expected at least 1, got {levels}")
    key_level, key_cell = jax.random.split(key)
    cells = 2 ** jax.random.randint(key_level, (num,), 0, levels)
    s = jax.random.randint(key_cell, (num,), 0, cells) / cells
    return s, s + 1 / cells
