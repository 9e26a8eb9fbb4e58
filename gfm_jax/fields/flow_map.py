"""The two-time flow map: any horizon in one call, the velocity as its derivative, and caution on the way."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["cautious", "jump", "velocity_of"]


def jump(
    s: Float[Array, "*#n"], t: Float[Array, "*#n"], x: Float[Array, "*n"], mean_velocity: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    r"""The flow map that a mean velocity stands for.

    .. math:: X_{s,t}(x) = x + (t - s) \, v_{s,t}(x), \qquad X_{s,s} = \mathrm{id}

    Args:
      s, t: the two times, s <= t.
      x: the point at s.
      mean_velocity: v_{s,t}(x).
    """
    return x + (t - s) * mean_velocity


def cautious(moved: Float[Array, " dim"], expected_error: Float[Array, " dim"], caution: float) -> Float[Array, " dim"]:
    r"""A forecast of a whole run, shortened where its error is expected to be large against its length.

    .. math:: \frac{|\delta|^2}{|\delta|^2 + c\,|\sigma|^2} \, \delta

    Most runs hardly change; it is for the few that are about to stand still, of which a field that sees one weight at a time
    cannot be sure.

    Args:
      moved: delta, the displacement of every weight.
      expected_error: sigma, in the same units.
      caution: c, at least 0, where nothing is shortened.
    """
    length, error = jnp.sum(moved**2), jnp.sum(expected_error**2)
    return moved * length / jnp.maximum(length + caution * error, 1e-30)


def velocity_of(flow_map: Callable[[Array, Array, Array], Array], t: Float[Array, ""], x: Array) -> Array:
    r"""The velocity of a flow map: b_t(x) = d/dt X_{s,t}(x) at s = t, by one forward-mode derivative.

    Args:
      flow_map: `(s, t, x) -> X_{s,t}(x)`.
      t: the time.
      x: the point.
    """
    return jax.jvp(lambda later: flow_map(t, later, x), (t,), (jnp.ones_like(t),))[1]
