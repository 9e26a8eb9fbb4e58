"""Programs that run once: compiled with little optimisation, the only place that hands options to XLA."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gfm_jax.checks import is_traced

__all__ = ["inside_a_trace", "quick_jit"]


def quick_jit(function: Callable, *, static_argnums: int | tuple[int, ...] = (), level: int = 0) -> Callable:
    """`jax.jit(function)` that compiles fast and runs slower, for programs whose compilation would take longer than their run.

    Use it for what runs once or a few times (initial weights, features of a prefix). Inside another transformation
    (`jax.jit`, `jax.vmap`, `jax.grad`, `jax.lax.scan`) it is a plain `jax.jit`: JAX takes compiler options at the top level
    only, and the outer program is compiled as its own `jax.jit` says. Both give the same numbers to rounding.

    Args:
      function: pure, as for `jax.jit`. Under `jax.grad` it must not close over the values that are differentiated: hand these
        over as arguments.
      static_argnums: as of `jax.jit`.
      level: XLA's backend optimization level, 0 (none) to 3 (the default of `jax.jit`).

    Returns:
      The compiled function, with `_cache_size()`, the number of programs compiled at the top level.

    Raises:
      ValueError: for another level.
    """
    if level not in (0, 1, 2, 3):
        raise ValueError(f"level: expected an optimization level 0, 1, 2 or 3, got {level!r}")
    at_the_top = jax.jit(
        function, static_argnums=static_argnums, compiler_options={"xla_backend_optimization_level": level}
    )
    inside = jax.jit(function, static_argnums=static_argnums)

    @functools.wraps(function)
    def call(*args):
        return (inside if inside_a_trace(args) else at_the_top)(*args)

    call._cache_size = at_the_top._cache_size  # pyright: ignore[reportAttributeAccessIssue]  jax.jit's type lacks it
    return call


_probe = jax.jit(lambda: jnp.zeros(()))  # an array, but a tracer wherever all that is computed is being traced


def inside_a_trace(*values: object) -> bool:
    """Whether a call with these values is being traced: one of them is a tracer, or the call stands inside `jax.jit`."""
    return is_traced(_probe(), values)
