"""Samples of a flow, in one compiled call."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Flow, Generator
from gfm_jax.checks import check_count
from gfm_jax.flows.flow_data import Conditions, FlowParams, check_conditions, map_points, sources_of
from gfm_jax.solve import solve_flow, solve_flow_map

__all__ = ["sample"]


def sample(
    key: Array | None,
    method: Flow | Generator,
    params: Any,
    num: int | None = None,
    cond: Float[Array | np.ndarray, "*num conditions"] | None = None,
    *,
    x_0: Float[Array, "num ..."] | None = None,
    num_steps: int | None = None,
    solver: Any = None,
    temperature: float | None = None,
) -> Float[Array, "num ..."]:
    r"""Draws samples of a fitted flow, or of a generator of weights.

    .. math:: x_0 \sim p_0, \qquad \dot x = v(t, x), \; x(0) = x_0, \qquad \text{or} \qquad
       x(1) = X_{t_{k-1}, t_k} \circ \dots \circ X_{t_0, t_1}(x_0)

    Args:
      key: randomness; None where `x_0` is given.
      method, params: as fitted.
      num: how many, at least 1; by default as many as `x_0` or `cond` has.
      cond: a condition for each sample, or one for all `num`, where the method was fitted with conditions.
      x_0: points to start from, in place of draws from the source.
      num_steps: of the solver, 50 by default; of a flow map, 1 by default.
      solver: a diffrax solver for a velocity, `diffrax.Heun()` by default. Of a flow map, one makes it follow the map's
        velocity, 50 steps by default.
      temperature: scales the deviation of a Gaussian source, 1 by default; of generators of weights alone.

    Returns:
      Samples, [num, dim] or of the event shape of what was fitted to.

    Raises:
      ValueError: for a number below 1, conditions or starting points of another number or length than the fit had, and as the
        method's own checks.

    >>> import gfm_jax as gfm, jax
    >>> flow = gfm.flow_map(gfm.networks.TimeMLP((16,)))
    >>> params, info = gfm.fit(jax.random.key(0), flow, jax.random.normal(jax.random.key(1), (50, 2)), num_steps=3)
    >>> gfm.sample(jax.random.key(2), flow, params, 10, num_steps=2).shape
    (10, 2)
    """
    known = getattr(getattr(params, "flow", params), "conditions", Conditions())
    if num is not None and cond is not None and np.ndim(cond) == 1 and known.columns in (None, len(cond)):
        cond = jnp.broadcast_to(jnp.asarray(cond), (check_count("num", num), len(cond)))
    if num is None:
        given = x_0 if x_0 is not None else cond
        if given is None:
            raise ValueError("num: expected how many samples to draw, got None")
        num = len(given)
    num = check_count("num", num)
    if not isinstance(method, Flow):
        options = {"x_0": x_0, "num_steps": num_steps, "solver": solver, "temperature": temperature}
        given = {name: value for name, value in options.items() if value is not None}
        return method.generate(key, params, num, cond, **given)
    if temperature is not None:
        raise ValueError(f"temperature: expected None for a flow, got {temperature}; scale x_0")
    if not isinstance(params, FlowParams):
        raise ValueError(f"params: expected those of a fitted flow, got {type(params).__name__}")
    by_map = method.flow_map is not None and solver is None
    num_steps = check_count("num_steps", (1 if by_map else 50) if num_steps is None else num_steps)
    cond = check_conditions(cond, num, params.conditions)
    x_0 = sources_of(key, params, num, x_0)
    if by_map:
        return _follow_map(method.flow_map, num_steps, params, x_0, cond)
    return _follow_velocity(method.velocity, num_steps, solver, params, x_0, cond)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _follow_map(flow_map, num_steps, params, x_0, cond):
    def one(ends):
        x, c = ends
        return solve_flow_map(lambda s, t, x: flow_map(params, s, t, x, c), x, num_steps=num_steps)

    return map_points(one, (x_0, cond))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _follow_velocity(velocity, num_steps, solver, params, x_0, cond):
    import diffrax  # on first use: it takes half a second

    def one(ends):
        x, c = ends
        chosen = diffrax.Heun() if solver is None else solver
        return solve_flow(lambda t, x: velocity(params, t, x, c), x, num_steps=num_steps, solver=chosen)[0]

    return map_points(one, (x_0, cond))
