"""Mistakes of value, caught where values are known: a traced array has none, and passes."""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = [
    "as_float",
    "as_points",
    "check_count",
    "check_finite",
    "check_not_negative",
    "check_source",
    "check_times",
    "is_traced",
    "on_host",
]


def as_float(name: str, values) -> jax.Array:
    """Real numbers as an array of float32 or better: bytes, integers, booleans and floats of 16 bits are widened, so that no
    difference wraps and no sum stands still.

    Args:
      name: of the argument, for the error.
      values: of any shape; lists of numbers too.

    Raises:
      ValueError: for what is no array of real numbers.

    >>> (as_float("pixels", np.array([1, 2], np.uint8)) - 2).tolist()
    [-1.0, 0.0]
    """
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected an array of real numbers, got {type(values).__name__}") from None
    known = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in known):
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def as_points(name: str, points, *, least: int = 1, any_event: bool = False) -> jax.Array:
    """Points [num, dim], or [num, *event] where any event is allowed, in float32 or better.

    Args:
      name: of the argument, for the error.
      points: an array or lists of real numbers.
      least: how many are needed.
      any_event: whether a point may have several axes.

    Raises:
      ValueError: for another shape, or fewer than `least` points.

    >>> as_points("data", [[1, 2], [3, 4], [5, 6]]).shape
    (3, 2)
    >>> as_points("data", [1, 2, 3])
    Traceback (most recent call last):
    ValueError: data: expected points [num, dim], got shape (3,)
    """
    points = as_float(name, points)
    if points.ndim < 2 or 0 in points.shape[1:] or (points.ndim > 2 and not any_event):
        wanted = "[num, dim] or [num, *event]" if any_event else "[num, dim]"
        raise ValueError(f"{name}: expected points {wanted}, got shape {points.shape}")
    if len(points) < least:
        raise ValueError(f"{name}: expected at least {least} {'point' if least == 1 else 'points'}, got {len(points)}")
    return points


def check_count(name: str, count, least: int = 1) -> int:
    """A number of things, as a Python integer.

    Args:
      name: of the argument, for the error.
      count: an integer of Python or NumPy.
      least: the smallest that is allowed.

    Raises:
      ValueError: for what is no integer, or less than `least`.

    >>> check_count("num_steps", np.int64(3))
    3
    >>> check_count("num_steps", 0)
    Traceback (most recent call last):
    ValueError: num_steps: expected at least 1, got 0
    """
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise ValueError(f"{name}: expected an integer of at least {least}, got {count!r}")
    if count < least:
        raise ValueError(f"{name}: expected at least {least}, got {count}")
    return int(count)


def check_finite(name: str, points) -> None:
    """Raises ValueError where some of the points [num, dim] are not finite.

    >>> check_finite("data", np.array([[1.0, np.nan], [0.0, 0.0]]))
    Traceback (most recent call last):
    ValueError: data: 1 of 2 points are not finite
    """
    if isinstance(points, Tracer):
        return
    xp = np if on_host(points) else jnp
    with jax.ensure_compile_time_eval():  # inside a traced function too
        bad = int(xp.sum(~xp.isfinite(xp.asarray(points)).all(-1)))
    if bad:
        whole = "the point is" if jnp.ndim(points) == 1 else f"{bad} of {len(points)} points are"
        raise ValueError(f"{name}: {whole} not finite")


def check_not_negative(**values) -> None:
    """Raises ValueError for what is not one number from 0 on; schedules of numbers pass.

    >>> check_not_negative(learning_rate=-0.1)
    Traceback (most recent call last):
    ValueError: learning_rate: expected a number from 0 on, or a schedule, got -0.1
    """
    for name, value in values.items():
        if callable(value) or isinstance(value, Tracer):
            continue
        if not (np.ndim(value) == 0 and np.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a number from 0 on, or a schedule, got {value}")


def is_traced(*trees) -> bool:
    """Whether a leaf has no value yet: inside `jax.jit`, `jax.vmap` or `jax.grad`.

    >>> is_traced(jnp.ones(2)), bool(jax.jit(is_traced)(jnp.ones(2)))
    (False, True)
    """
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def on_host(array) -> bool:
    """Whether NumPy can read an array where it lies: it is no tracer, and in the memory of this host.

    >>> on_host(np.ones(2)), bool(jax.jit(on_host)(np.ones(2)))
    (True, False)
    """
    if isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or (
        array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())
    )


def check_times(*, before_end: bool = False, **times) -> None:
    """Raises ValueError for a time outside [0, 1], or one that is later than the next: s <= u <= t, in the order given.

    With `before_end` the first of them has to lie in [0, 1), for what is not defined at the end itself.

    >>> check_times(s=0.5, t=0.25)
    Traceback (most recent call last):
    ValueError: s, t: expected s <= t, got 0.5 and 0.25
    """
    known = {name: np.asarray(t) for name, t in times.items() if not isinstance(t, Tracer)}
    for name, t in known.items():
        if not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"{name}: expected a flow time in [0, 1{')' if before_end else ']'}, got {t}")
    if before_end and (first := next(iter(times))) in known and (known[first] == 1).any():
        raise ValueError(f"{first}: expected a flow time in [0, 1), got {known[first]}: at 1 it is no longer defined")
    for (early, s), (late, t) in zip(list(known.items())[:-1], list(known.items())[1:], strict=True):
        if (s > t).any():
            raise ValueError(f"{early}, {late}: expected {early} <= {late}, got {s} and {t}")


def check_source(source) -> tuple[float, float]:
    """The mean and the standard deviation of a Gaussian source; closed forms are known for no other.

    Args:
      source: `(mean, std)`, numbers, the second one positive.

    Returns:
      The same, as floats.

    Raises:
      ValueError: for anything else.

    >>> check_source((0, 2))
    (0.0, 2.0)
    """
    if not (isinstance(source, tuple | list) and len(source) == 2 and all(_is_number(part) for part in source)):
        raise ValueError(f"source: expected the mean and the standard deviation of a Gaussian, got {source!r}")
    mean, std = (float(part) for part in source)
    if not math.isfinite(mean):
        raise ValueError(f"source: expected a finite mean, got {mean}")
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"source: expected a Gaussian with a positive standard deviation, got {std}")
    return mean, std


def _is_number(part):
    return isinstance(part, numbers.Real) and not isinstance(part, bool)
