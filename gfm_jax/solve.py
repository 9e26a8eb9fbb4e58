"""Solving flows: from a velocity, or a flow map, to where it leads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jaxtyping import Array, Float, PyTree, Shaped

from gfm_jax.checks import as_float, check_count, check_finite, check_times, is_traced
from gfm_jax.convolutions import fast_in_loops

__all__ = ["log_likelihood", "solve_flow", "solve_flow_map", "solve_hybrid"]

MOST_STEPS = 4096  # of a solve whose steps are chosen by a controller


def solve_flow(
    velocity: Callable[[Array, PyTree], PyTree],
    x_0: PyTree,
    t_0: Float[Array, ""] | float = 0.0,
    t_1: Float[Array, ""] | float = 1.0,
    *,
    num_steps: int = 16,
    solver: Any = None,
    adjoint: Any = None,
    stepsize_controller: Any = None,
    saveat: Any = None,
) -> tuple[PyTree, dict[str, Array]]:
    r"""Integrates a velocity over even steps, by diffrax.

    .. math:: \dot x = v(t, x), \qquad x(t_0) = x_0

    The default solver is the midpoint method, of second order. Its stages lie at the beginning and in the middle of a step, so
    that it never looks at t_1, where a velocity such as `closed_form_velocity` is not defined.

    Args:
      velocity: `(t, x) -> dx/dt`, for one point.
      x_0: where the flow starts: an array or a pytree of arrays. Integers and floats of 16 bits are computed with, and come
        back, as float32.
      t_0, t_1: the time at which it starts and ends, in the velocity's own clock, in either order. Where one of them is traced,
        the integration runs over a time from 0 to 1, with the same steps.
      num_steps: number of steps, at least 1. With a controller the length of the first step, of at most 4096 that it may take.
      solver: a diffrax solver; `diffrax.Midpoint()` by default. An implicit one needs a controller with tolerances, from
        which it takes those of its root finder.
      adjoint: how to differentiate through the solve: `diffrax.RecursiveCheckpointAdjoint()` by default, for one derivative in
        reverse; `diffrax.ForwardMode()` for `jax.jvp` and `jax.jacfwd`, `diffrax.DirectAdjoint()` for either and for second
        derivatives.
      stepsize_controller: such as `diffrax.PIDController(rtol=1e-5, atol=1e-5)`; steps of one length by default.
      saveat: what to keep of the way, such as `diffrax.SaveAt(ts=jnp.linspace(0, 1, 9))`; x(t_1) alone by default. It needs
        times that are known.

    Returns:
      x(t_1), or what `saveat` asks for, led by its times; and `{"finite": ...}`: a solve that diverged is a value, not an
      exception. A solve that stopped before t_1 gives NaN: its controller asked for too many steps, or its solver found no
      root.

    Raises:
      ValueError: for a number of steps that is no integer above 0, a time that is not finite, traced times with `saveat`, a
        velocity of another shape than x_0, or, as the velocity raises it, for a known time at which the solver has to look and
        the velocity is not defined.

    >>> x_1, info = solve_flow(lambda t, x: -x, jnp.ones(()))
    >>> round(float(x_1), 3), bool(info["finite"])  # exp(-1)
    (0.368, True)
    """
    import diffrax  # on first use: it takes half a second

    num_steps = check_count("num_steps", num_steps)
    solver = diffrax.Midpoint() if solver is None else solver
    if isinstance(solver, type):
        raise ValueError(f"solver: expected one made, diffrax.{solver.__name__}(), got the class {solver.__name__}")
    _check_ends(t_0=t_0, t_1=t_1)
    x_0 = jax.tree.map(lambda leaf: as_float("x_0", leaf), x_0)
    ends = (t_0, t_1) if _looks_at_the_end(solver) else (t_0,)
    _ask_at(velocity, [t for t in ends if not is_traced(t)], x_0)
    if saveat is not None and is_traced(t_0, t_1, jax.tree.leaves(saveat)):
        raise ValueError(
            "saveat: expected times that are known, t_0 and t_1 among them, got traced ones; make it outside of the trace"
        )
    if not is_traced(t_0, t_1):
        field_of, start, end = velocity, t_0, t_1
    else:  # diffrax compares times by a callback to the host where it does not know them
        duration = t_1 - t_0
        along = lambda u, x: velocity(t_0 + u * duration, x)
        field_of = lambda u, x: jax.tree.map(lambda v: duration * v, along(u, x))
        start, end = 0.0, 1.0
    step = (end - start) / num_steps
    clock = jnp.result_type(start, end, step)  # as diffrax has it
    clock = clock if jnp.issubdtype(clock, jnp.floating) else jnp.result_type(float)
    x_0 = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, clock)), x_0)
    field, closed_over = _open(fast_in_loops(field_of), clock, x_0)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        start,
        end,
        dt0=step,
        y0=x_0,
        args=closed_over,
        stepsize_controller=diffrax.ConstantStepSize() if stepsize_controller is None else stepsize_controller,
        saveat=diffrax.SaveAt(t1=True) if saveat is None else saveat,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=num_steps + 1 if stepsize_controller is None else MOST_STEPS,  # rounding may leave a sliver of a step
        throw=False,
    )
    arrived = solution.result == diffrax.RESULTS.successful  # false after too many steps, or where no root was found
    found = solution.ys if saveat is not None else jax.tree.map(lambda saved: saved[-1], solution.ys)
    found = jax.tree.map(lambda x: jnp.where(arrived, x, jnp.nan), found)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)]).all()
    return found, {"finite": finite}


def _check_ends(**times):
    for name, t in times.items():
        if not is_traced(t) and not (np.ndim(t) == 0 and np.isfinite(t)):
            raise ValueError(f"{name}: expected a finite time, got {t}")


def _open(field, clock, x):
    """A field as `(t, x, closed_over) -> dx/dt`, and the arrays that it closes over.

    diffrax keeps functions in caches: one that closed over traced arrays would leak them.
    """
    program, like = jax.make_jaxpr(field, return_shape=True)(jax.ShapeDtypeStruct((), clock), x)
    found, expected = (jax.tree.map(jnp.shape, tree) for tree in (like, x))
    if found != expected:
        raise ValueError(f"velocity: expected dx/dt of the shape of x_0, {expected}, got {found}")
    jaxpr, structure = program.jaxpr, jax.tree.structure(like)

    def opened(t, x, closed_over):
        return jax.tree.unflatten(structure, eval_jaxpr(jaxpr, closed_over, t, *jax.tree.leaves(x)))

    return opened, list(program.consts)


def _looks_at_the_end(solver) -> bool:
    """Whether a solver may ask for the velocity at the end of a step: by its stages where it has a table of them."""
    import diffrax

    if isinstance(solver, diffrax.Euler):
        return False
    table = getattr(solver, "tableau", None)
    return table is None or not hasattr(table, "c") or bool((np.asarray(table.c) == 1).any())


def _ask_at(velocity, times, x):
    """Lets a velocity refuse, before anything compiles, a time at which it is not defined: inside a solve it knows no times."""
    dtype = jnp.result_type(float, *jax.tree.leaves(x))
    for t in times:
        with jax.ensure_compile_time_eval():
            known = jnp.asarray(t, dtype)
        jax.eval_shape(lambda x, t=known: velocity(t, x), x)


def solve_flow_map(
    flow_map: Callable[[Array, Array, PyTree], PyTree],
    x_0: PyTree,
    t_0: Float[Array, ""] | float = 0.0,
    t_1: Float[Array, ""] | float = 1.0,
    *,
    num_steps: int = 1,
) -> PyTree:
    r"""Follows a flow map in even steps.

    .. math:: X_{t_{k-1}, t_k} \circ \dots \circ X_{t_0, t_1}

    Args:
      flow_map: `(s, t, x) -> X_{s,t}(x)`, for one point.
      x_0: where the flow starts.
      t_0, t_1: the flow times at which it starts and ends, t_0 <= t_1.
      num_steps: k, at least 1.

    Returns:
      x(t_1).

    Raises:
      ValueError: for fewer than one step, or times that are not in order in [0, 1].

    >>> round(float(solve_flow_map(lambda s, t, x: x * jnp.exp(s - t), jnp.ones(()), num_steps=2)), 4)  # exp(-1)
    0.3679
    """
    num_steps = check_count("num_steps", num_steps)
    check_times(t_0=t_0, t_1=t_1)
    x_0 = jax.tree.map(lambda leaf: as_float("x_0", leaf), x_0)
    times = jnp.linspace(t_0, t_1, num_steps + 1, dtype=jnp.result_type(*jax.tree.leaves(x_0)))
    step = lambda x, st: (flow_map(st[0], st[1], x), None)
    return jax.lax.scan(step, x_0, (times[:-1], times[1:]))[0]


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
      solver: as in `solve_flow`.

    Returns:
      x(1), and `{"finite": ...}`.

    Raises:
      ValueError: for a tau that is traced, outside [0, 1] or between two steps.

    >>> import diffrax
    >>> one, three = (lambda t, x, speed=speed: jnp.full_like(x, speed) for speed in (1.0, 3.0))
    >>> x_1, _ = solve_hybrid(one, three, jnp.zeros(()), 0.5, num_steps=4, solver=diffrax.Euler())
    >>> round(float(x_1), 4)  # 1 * 0.5 + 3 * 0.5
    2.0
    """
    num_steps = check_count("num_steps", num_steps)
    if is_traced(tau):
        raise ValueError("tau: expected a number that is known before compilation, got a traced one")
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
    x_1: Shaped[Array | np.ndarray, " dim"],
    log_density: Callable[[Array], Array],
    *,
    key: Array | None = None,
    num_probes: int = 1,
    num_steps: int = 100,
    solver: Any = None,
    t_1: float = 1.0,
) -> Float[Array, ""]:
    r"""The log-density of a point under a flow, by the change of variables.

    .. math:: \log p_{t_1}(x_1) = \log p_0(x_0) - \int_0^{t_1} \nabla \cdot v(x_t, t) \, dt

    Args:
      velocity: `(t, x) -> dx/dt`, for one point.
      x_1: the point, at t_1; computed with in float32 or better.
      log_density: `(x_0) -> log p_0(x_0)`, of the source.
      key: None for the exact divergence, dim forward derivatives a step; else randomness of Hutchinson's estimate, by
        Rademacher probes that stay the same along the flow: unbiased for the log-density.
      num_probes: of the estimate, at least 1.
      num_steps, solver: as in `solve_flow`.
      t_1: the time of the density. A flow whose end is no density, such as `closed_form_velocity`, has one at any time below 1.

    Returns:
      The log-density, in nats.

    Raises:
      ValueError: for a number below 1, a point that is no vector or not finite, or a velocity that is not defined at t_1.

    >>> import diffrax
    >>> normal = lambda x: jax.scipy.stats.norm.logpdf(x).sum()
    >>> found = log_likelihood(lambda t, x: -x, jnp.zeros(1), normal, num_steps=4, solver=diffrax.Euler())
    >>> round(float(found), 4)  # log N(0; 0, exp(-1)^2) = 1 - log(2 pi) / 2
    0.0811
    """
    num_probes = check_count("num_probes", num_probes)
    x_1 = as_float("x_1", x_1)
    if x_1.ndim != 1:
        raise ValueError(f"x_1: expected one point [dim], got shape {x_1.shape}; map with jax.vmap")
    check_finite("x_1", x_1)
    check_times(t_1=t_1)
    if key is None:
        probes = jnp.eye(x_1.shape[-1], dtype=x_1.dtype)
    else:
        probes = jax.random.rademacher(key, (num_probes, *x_1.shape), x_1.dtype) / jnp.sqrt(num_probes)

    def joint(t, state):
        v, push = jax.linearize(lambda x: velocity(t, x), state[0])
        return v, jnp.sum(probes * jax.vmap(push)(probes))

    start = (x_1, jnp.zeros((), x_1.dtype))
    (x_0, change), _ = solve_flow(joint, start, t_1, 0.0, num_steps=num_steps, solver=solver)
    return log_density(x_0) + change
