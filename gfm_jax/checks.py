"""Mistakes of value, caught where values are known: a traced array has none, and passes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["check_choices", "check_finite", "check_source", "check_times"]


def check_choices(recipe: type, choices: dict) -> None:
    """Raises ValueError for choices that are no fields of the recipe, a NamedTuple."""
    if unknown := set(choices) - set(recipe._fields):
        names = ", ".join(recipe._fields)
        raise ValueError(f"{', '.join(sorted(unknown))}: expected fields of {recipe.__name__}, {names}")


def check_finite(name: str, points: jax.Array) -> None:
    """Raises ValueError where some of the points [num, dim] are not finite."""
    if isinstance(points, Tracer):
        return
    with jax.ensure_compile_time_eval():  # inside a traced function too
        bad = int(jnp.sum(~jnp.isfinite(jnp.asarray(points)).all(-1)))
    if bad:
        raise ValueError(f"{name}: {bad} of {len(points)} points are not finite")


def check_times(**times) -> None:
    """Raises ValueError for a time outside [0, 1], or one that is later than the next: s <= u <= t, in the order given."""
    known = {name: np.asarray(t) for name, t in times.items() if not isinstance(t, Tracer)}
    for name, t in known.items():
        if not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"{name}: expected a flow time in [0, 1], got {t}")
    for (early, s), (late, t) in zip(list(known.items())[:-1], list(known.items())[1:], strict=True):
        if (s > t).any():
            raise ValueError(f"{early}, {late}: expected {early} <= {late}, got {s} and {t}")


def check_source(source) -> tuple[float, float]:
    """The mean and the standard deviation of a Gaussian source; closed forms are known for no other."""
    if not (isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, int | float) for part in source)):
        raise ValueError(f"source: expected the mean and the standard deviation of a Gaussian, got {source!r}")
    if not source[1] > 0:
        raise ValueError(f"source: expected a Gaussian with a positive standard deviation, got {source[1]}")
    return source
