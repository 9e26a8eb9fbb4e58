"""Solving flows: from a velocity, or a flow map, to where it leads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gfm_jax.checks import check_times

__all__ = ["log_likelihood", "solve_flow", "solve_flow_map", "solve_hybrid"]


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


def solve_flow_map(
    flow_map: Callable[[Array, Array, PyTree], PyTree],
    x_0: PyTree,
    t_0: Float[Array, ""] | float = 0.0,
    t_1: Float[Array, ""] | float = 1.0,
    *,
    num_jumps: int = 1,
) -> PyTree:
    r"""Follows a flow map in even jumps.

    .. math:: X_{t_{k-1}, t_k} \circ \dots \circ X_{t_0, t_1}

    Args:
      flow_map: `(s, t, x) -> X_{s,t}(x)`, for one point.
      x_0: where the flow starts.
      t_0, t_1: the flow times at which it starts and ends, t_0 <= t_1.
      num_jumps: k, at least 1.

    Returns:
      x(t_1).

    Raises:
      ValueError: for fewer than one jump, or times that are not in order in [0, 1].
    """
    if num_jumps < 1:
        raise ValueError(f"num_jumps: expected at least 1, got {num_jumps}")
    check_times(t_0=t_0, t_1=t_1)
    times = jnp.linspace(t_0, t_1, num_jumps + 1)
    jump = lambda x, st: (flow_map(st[0], st[1], x), None)
    return jax.lax.scan(jump, x_0, (times[:-1], times[1:]))[0]


def solve_hybrid(
    first: Callable[[Array, PyTree], PyTree],
    second: Callable[[Array, PyTree], PyTree],
    x_0: PyTree,
    tau: float,
    *,
    num_steps: int = 100,
    solver: Any = None,
) -> tuple[PyTree, dict[str, Array]]:
    r"""Follows one velocity on [0, tau], and another one from there to 1, on one grid of steps.

    With the exact field first and a learned one second this shows when a flow decides what it will end in. On the closed form
    of flow matching, arXiv 2506.03719, Figure 3. tau = 0 gives what `solve_flow` gives of the second, to the last bit.

    Args:
      first, second: `(t, x) -> dx/dt`, for one point.
      x_0: where the flow starts.
      tau: in [0, 1], on the grid.
      num_steps: steps in all, at least 1.
      solver: any diffrax solver; `diffrax.Heun()` by default.

    Returns:
      x(1), and `{"finite": ...}`.

    Raises:
      ValueError: for a tau outside [0, 1] or between two steps.
    """
    check_times(tau=tau)
    num_first = round(tau * num_steps)
    if abs(num_first - tau * num_steps) > 1e-6 * num_steps:
        raise ValueError(f"tau: expected a multiple of 1/{num_steps}, the length of a step, got {tau}")
    x, info = x_0, {"finite": jnp.array(True)}
    parts = ((first, 0.0, tau, num_first), (second, tau, 1.0, num_steps - num_first))
    for velocity, start, end, steps in parts:
        if steps:
            x, info = solve_flow(velocity, x, start, end, num_steps=steps, solver=solver)
    return x, info


def log_likelihood(
    velocity: Callable[[Array, Array], Array],
    x_1: Float[Array, " dim"],
    log_density: Callable[[Array], Array],
    *,
    key: Array | None = None,
    num_probes: int = 1,
    num_steps: int = 100,
    solver: Any = None,
) -> Float[Array, ""]:
    r"""The log-density of a point under a flow, by the change of variables.

    .. math:: \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla \cdot v(x_t, t) \, dt

    Args:
      velocity: `(t, x) -> dx/dt`, for one point.
      x_1: the point, at t = 1.
      log_density: `(x_0) -> log p_0(x_0)`, of the source.
      key: None for the exact divergence, dim forward derivatives a step; else randomness of Hutchinson's estimate, by
        Rademacher probes that stay the same along the flow: unbiased for the log-density.
      num_probes: of the estimate, at least 1.
      num_steps, solver: as in `solve_flow`.

    Returns:
      The log-density, in nats.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes: expected at least 1, got {num_probes}")
    if key is None:
        probes = jnp.eye(x_1.shape[-1], dtype=x_1.dtype)
    else:
        probes = jax.random.rademacher(key, (num_probes, *x_1.shape), x_1.dtype) / jnp.sqrt(num_probes)

    def joint(t, state):
        v, push = jax.linearize(lambda x: velocity(t, x), state[0])
        return v, jnp.sum(probes * jax.vmap(push)(probes))

    start = (x_1, jnp.zeros((), x_1.dtype))
    (x_0, change), _ = solve_flow(joint, start, 1.0, 0.0, num_steps=num_steps, solver=solver)
    return log_density(x_0) + change
