r"""Self-distillation: what the mean velocity v_{s,t} of a flow map owes to its own velocity v_{t,t}.

X_{s,t}(x) = x + (t - s) v_{s,t}(x), and v_{t,t} is learned from paths. Each residual is that of ONE point x at s on its path,
[dim], and zero for the exact map. Its teacher is the live network; where its gradient stops is the argument `stop`. How to
build a consistency model, arXiv 2505.18825.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.flows.mean_velocity import jump

__all__ = ["eulerian", "guided", "lagrangian", "progressive", "weighted_square"]

MeanVelocity = Callable[[Array, Array, Array], Array]
Velocity = Callable[[Array, Array], Array]


def lagrangian(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, " dim"],
    *,
    stop: Literal["teacher", "point", "none"] = "teacher",
    teacher: Velocity | None = None,
) -> Float[Array, " dim"]:
    r"""The map moves on, where it arrives, with the velocity that is there (LSD).

    .. math:: \partial_t X_{s,t}(x) - \mathrm{sg}\big(v_{t,t}(X_{s,t}(x))\big)

    One forward derivative. arXiv 2505.18825, Lagrangian self-distillation.

    Args:
      v: `(s, t, x) -> v_{s,t}(x)`.
      s, t: the two times, s <= t.
      x: the point at s.
      stop: "teacher" stops all of v_{t,t}(X), as written; "point" only the point at which it is looked at; "none" nothing.
      teacher: a velocity `(t, x)` in the place of v_{t,t}: frozen, it makes this Lagrangian map distillation (LMD). An exact
        one is steep off the path; weigh or clip it.
    """
    _choose(stop, ("teacher", "point", "none"))
    teacher = teacher or (lambda t, x: v(t, t, x))
    x_t, dx_t = jax.jvp(lambda t: jump(s, t, x, v(s, t, x)), (t,), (jnp.ones_like(t),))
    target = teacher(t, x_t if stop == "none" else jax.lax.stop_gradient(x_t))
    return dx_t - (jax.lax.stop_gradient(target) if stop == "teacher" else target)


def eulerian(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, " dim"],
    *,
    stop: Literal["teacher", "velocity", "bracket", "none"] = "teacher",
    teacher: Velocity | None = None,
    tangent: Float[Array, " dim"] | None = None,
) -> Float[Array, " dim"]:
    r"""Where the map arrives does not depend on when along the flow it is asked (ESD).

    .. math:: \partial_s X_{s,t}(x) + \mathrm{sg}\big(\nabla X_{s,t}(x) \, v_{s,s}(x)\big)

    Args:
      v: `(s, t, x) -> v_{s,t}(x)`.
      s, t: the two times, s <= t.
      x: the point at s.
      stop: "teacher" stops the spatial derivative, as written, and takes two forward derivatives. "velocity" stops only
        v_{s,s} in one derivative along (1, v_{s,s}): of the same value, cheaper, and with ANOTHER gradient. "bracket" stops
        all but v_{s,t} itself: v - sg(w + (t - s) dv/ds along the flow), of the opposite sign. "none" stops nothing.
      teacher: a velocity `(t, x)` in the place of v_{s,s}: frozen, it makes this Eulerian map distillation (EMD).
      tangent: a vector in the place of v_{s,s}(x). The velocity dx_s of the path, with "bracket", makes this Mean Flow.

    arXiv 2505.18825, Eulerian self-distillation; Mean Flow is arXiv 2505.13447.
    """
    _choose(stop, ("teacher", "velocity", "bracket", "none"))
    teacher = teacher or (lambda t, x: v(t, t, x))
    w = teacher(s, x) if tangent is None else tangent
    w = w if stop == "none" else jax.lax.stop_gradient(w)
    one = jnp.ones_like(s)
    if stop == "bracket":
        v_st, dv = jax.jvp(lambda s, x: v(s, t, x), (s, x), (one, w))
        return v_st - jax.lax.stop_gradient(w + (t - s) * dv)
    flow_map = lambda s, x: jump(s, t, x, v(s, t, x))
    if stop != "teacher":
        return jax.jvp(flow_map, (s, x), (one, w))[1]
    d_s = jax.jvp(lambda s: flow_map(s, x), (s,), (one,))[1]
    return d_s + jax.lax.stop_gradient(jax.jvp(lambda x: flow_map(s, x), (x,), (w,))[1])


def progressive(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, " dim"],
    gamma: Float[Array, ""] | float = 0.5,
    *,
    stop: Literal["teacher", "point", "none"] = "teacher",
) -> Float[Array, " dim"]:
    r"""One jump is two shorter ones (PSD).

    .. math:: v_{s,t}(x) - \mathrm{sg}\big((1 - \gamma) v_{s,u}(x) + \gamma v_{u,t}(X_{s,u}(x))\big), \qquad
       u = \gamma s + (1 - \gamma) t

    No derivative at all, and of the teacher not even the backward pass. On a dyadic grid of times, with the midpoint, these
    are shortcut models, arXiv 2410.12557. arXiv 2505.18825, progressive self-distillation.

    Args:
      v: `(s, t, x) -> v_{s,t}(x)`.
      s, t: the two times, s <= t.
      x: the point at s.
      gamma: in [0, 1]: 1/2 for the midpoint (PSD-M), uniform for PSD-U.
      stop: "teacher" stops both shorter jumps; "point" only the point between them; "none" nothing.
    """
    _choose(stop, ("teacher", "point", "none"))
    u = gamma * s + (1 - gamma) * t
    first = v(s, u, x)
    x_u = jump(s, u, x, first)
    second = v(u, t, x_u if stop == "none" else jax.lax.stop_gradient(x_u))
    target = (1 - gamma) * first + gamma * second
    return v(s, t, x) - (jax.lax.stop_gradient(target) if stop == "teacher" else target)


def guided(
    conditional: Float[Array, " dim"], unconditional: Float[Array, " dim"], strength: Float[Array, ""] | float
) -> Float[Array, " dim"]:
    r"""Classifier-free guidance: q = v(x; 0) + a (v(x; c) - v(x; 0)); 1 is the conditional velocity itself.

    With it as the teacher a map learns to jump along the guided flow. arXiv 2505.18825, its section on guidance.
    """
    return unconditional + strength * (conditional - unconditional)


def weighted_square(
    residual: Float[Array, "*batch dim"], log_weight: Float[Array, "*batch"] | float = 0.0
) -> Float[Array, "*batch"]:
    r"""exp(-w) |r|^2 + w: the squared residual, and, where w(s, t) is learned, in units of what it usually is."""
    return jnp.exp(-log_weight) * jnp.sum(residual**2, axis=-1) + log_weight


def _choose(stop, choices):
    if stop not in choices:
        raise ValueError(f"stop: expected one of {', '.join(choices)}, got {stop!r}")
