"""Solving flows: from a velocity to where it leads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["solve_flow"]


def solve_flow(
    velocity: Callable[[Array, PyTree], PyTree],
    x_0: PyTree,
    t_0: Float[Array, ""] | float = 0.0,
    t_1: Float[Array, ""] | float = 1.0,
    *,
    num_steps: int = 16,
    solver: Any = None,
) -> tuple[PyTree, dict[str, Array]]:
    r"""Integrates a velocity over even steps, by diffrax.

    .. math:: \dot x = v(t, x), \qquad x(t_0) = x_0

    Args:
      velocity: `(t, x) -> dx/dt`, for one point.
      x_0: where the flow starts: an array or a pytree of arrays.
      t_0, t_1: the time at which it starts and ends, in the velocity's own clock.
      num_steps: number of steps, at least 1.
      solver: any diffrax solver; `diffrax.Heun()` by default.

    Returns:
      x(t_1), and `{"finite": ...}`: a solve that diverged is a value, not an exception.
    """
    import diffrax  # on first use: it takes half a second

    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: velocity(t, x)),
        diffrax.Heun() if solver is None else solver,
        t_0,
        t_1,
        dt0=(t_1 - t_0) / num_steps,
        y0=x_0,
        stepsize_controller=diffrax.ConstantStepSize(),
        max_steps=num_steps + 1,  # rounding may leave a sliver of a step
        throw=False,
    )
    x_1 = jax.tree.map(lambda saved: saved[-1], solution.ys)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x_1)]).all()
    return x_1, {"finite": finite}
