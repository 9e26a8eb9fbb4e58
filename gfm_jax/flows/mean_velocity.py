"""The two-time flow map: any horizon in one call, and the velocity as its derivative."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from gfm_jax.checks import as_float

__all__ = ["flow_map_step", "velocity_of"]


def flow_map_step(
    s: Float[Array, "*#n"] | float,
    t: Float[Array, "*#n"] | float,
    x: Float[Array, "*n"],
    mean_velocity: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    r"""The flow map that a mean velocity stands for.

    .. math:: X_{s,t}(x) = x + (t - s) \, v_{s,t}(x), \qquad X_{s,s} = \mathrm{id}

    Args:
      s, t: the two times, s <= t.
      x: the point at s.
      mean_velocity: v_{s,t}(x).

    Returns:
      X_{s,t}(x), of the shape of x.

    >>> flow_map_step(0.0, 0.5, jnp.array([1.0]), jnp.array([4.0])).tolist()
    [3.0]
    """
    return x + (t - s) * mean_velocity


def velocity_of(flow_map: Callable[[Array, Array, Array], Array], t: Shaped[Array, ""] | float, x: Array) -> Array:
    r"""The velocity of a flow map: b_t(x) = d/dt X_{s,t}(x) at s = t, by one forward-mode derivative.

    Args:
      flow_map: `(s, t, x) -> X_{s,t}(x)`.
      t: the time.
      x: the point.

    Returns:
      b_t(x), of the shape of x.

    >>> velocity_of(lambda s, t, x: x * jnp.exp(t - s), 0.5, jnp.array([2.0])).tolist()
    [2.0]
    """
    t = as_float("t", t)
    return jax.jvp(lambda later: flow_map(t, later, x), (t,), (jnp.ones_like(t),))[1]
