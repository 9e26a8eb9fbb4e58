r"""Self-distillation: what the mean velocity v_{s,t} of a flow map owes to its own velocity v_{t,t}.

X_{s,t}(x) = x + (t - s) v_{s,t}(x), and v_{t,t} is learned from paths. Each residual is that of ONE point x at s on its path,
of its shape, and zero for the exact map. Its teacher is the live network; where its gradient stops is the argument `stop`.
How to build a consistency model, arXiv 2505.18825.
"""

import inspect
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.flows.mean_velocity import flow_map_step
from gfm_jax.flows.times import dyadic, triangle

__all__ = [
    "Residual",
    "asked_by",
    "check_residual",
    "error_of",
    "esd",
    "eulerian",
    "lagrangian",
    "lsd",
    "mean_flow",
    "mean_flow_error",
    "progressive",
    "psd_midpoint",
    "psd_uniform",
    "shortcut",
    "weighted_square",
]

MeanVelocity = Callable[[Array, Array, Array], Array]
Velocity = Callable[[Array, Array], Array]


def lagrangian(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, "*event"],
    *,
    stop: Literal["teacher", "point", "none"] = "teacher",
    teacher: Velocity | None = None,
) -> Float[Array, "*event"]:
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

    Returns:
      The residual, of the shape of x.

    Raises:
      ValueError: for another word in `stop`.

    >>> s, t, x = jnp.array(0.0), jnp.array(0.5), jnp.zeros(1)
    >>> lagrangian(lambda s, t, x: (s + t) / 2 + 0 * x, s, t, x).tolist()  # the mean velocity of dx/dt = t
    [0.0]
    >>> lagrangian(lambda s, t, x: t + 0 * x, s, t, x).tolist()
    [0.5]
    """
    _choose(stop, ("teacher", "point", "none"))
    teacher = teacher or (lambda t, x: v(t, t, x))
    x_t, dx_t = jax.jvp(lambda t: flow_map_step(s, t, x, v(s, t, x)), (t,), (jnp.ones_like(t),))
    target = teacher(t, x_t if stop == "none" else jax.lax.stop_gradient(x_t))
    return dx_t - (jax.lax.stop_gradient(target) if stop == "teacher" else target)


def eulerian(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, "*event"],
    *,
    stop: Literal["teacher", "velocity", "bracket", "none"] = "teacher",
    teacher: Velocity | None = None,
    tangent: Float[Array, "*event"] | None = None,
) -> Float[Array, "*event"]:
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

    Returns:
      The residual, of the shape of x.

    Raises:
      ValueError: for another word in `stop`.

    >>> s, t, x = jnp.array(0.0), jnp.array(0.5), jnp.zeros(1)
    >>> eulerian(lambda s, t, x: (s + t) / 2 + 0 * x, s, t, x).tolist()  # the mean velocity of dx/dt = t
    [0.0]
    >>> eulerian(lambda s, t, x: t + 0 * x, s, t, x).tolist()
    [-0.5]

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
    flow_map = lambda s, x: flow_map_step(s, t, x, v(s, t, x))
    if stop != "teacher":
        return jax.jvp(flow_map, (s, x), (one, w))[1]
    d_s = jax.jvp(lambda s: flow_map(s, x), (s,), (one,))[1]
    return d_s + jax.lax.stop_gradient(jax.jvp(lambda x: flow_map(s, x), (x,), (w,))[1])


def progressive(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, "*event"],
    gamma: Float[Array, ""] | float = 0.5,
    *,
    stop: Literal["teacher", "point", "none"] = "teacher",
) -> Float[Array, "*event"]:
    r"""One step is two shorter ones (PSD).

    .. math:: v_{s,t}(x) - \mathrm{sg}\big((1 - \gamma) v_{s,u}(x) + \gamma v_{u,t}(X_{s,u}(x))\big), \qquad
       u = \gamma s + (1 - \gamma) t

    No derivative at all, and of the teacher not even the backward pass. On a dyadic grid of times, with the midpoint, these
    are shortcut models, arXiv 2410.12557. arXiv 2505.18825, progressive self-distillation.

    Args:
      v: `(s, t, x) -> v_{s,t}(x)`.
      s, t: the two times, s <= t.
      x: the point at s.
      gamma: in [0, 1]: 1/2 for the midpoint (PSD-M), uniform for PSD-U.
      stop: "teacher" stops both shorter steps; "point" only the point between them; "none" nothing.

    Returns:
      The residual, of the shape of x.

    Raises:
      ValueError: for another word in `stop`.

    >>> s, t, x = jnp.array(0.0), jnp.array(0.5), jnp.zeros(1)
    >>> progressive(lambda s, t, x: (s + t) / 2 + 0 * x, s, t, x).tolist()  # the mean velocity of dx/dt = t
    [0.0]
    >>> progressive(lambda s, t, x: t + 0 * x, s, t, x).tolist()
    [0.125]
    """
    _choose(stop, ("teacher", "point", "none"))
    u = gamma * s + (1 - gamma) * t
    first = v(s, u, x)
    x_u = flow_map_step(s, u, x, first)
    second = v(u, t, x_u if stop == "none" else jax.lax.stop_gradient(x_u))
    target = (1 - gamma) * first + gamma * second
    return v(s, t, x) - (jax.lax.stop_gradient(target) if stop == "teacher" else target)


def mean_flow_error(
    v: MeanVelocity,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x: Float[Array, "*event"],
    dx: Float[Array, "*event"],
    *,
    stop: Literal["teacher", "velocity", "bracket", "none"] = "bracket",
) -> Float[Array, "*event"]:
    r"""The Eulerian residual with dx, the velocity of the path at s, for v_{s,s}(x): Mean Flow, arXiv 2505.13447.

    Args:
      v, s, t, x, stop: as in `eulerian`.
      dx: dx_s, of the shape of x.

    Returns:
      The residual, of the shape of x.

    >>> s, t, x = jnp.array(0.0), jnp.array(0.5), jnp.zeros(1)
    >>> mean_flow_error(lambda s, t, x: (s + t) / 2 + 0 * x, s, t, x, dx=s + 0 * x).tolist()  # of dx/dt = t
    [0.0]
    """
    return eulerian(v, s, t, x, stop=stop, tangent=dx)


class Residual(NamedTuple):
    """A law that a flow map obeys, by how far a mean velocity is from it.

    Attributes:
      error: `(v, s, t, x) -> r` of one point, in its shape, zero for the exact map. It is also given what it asks for by name
        among `stop` and `gamma`, as below, `dx`, the velocity of the path at s, and `teacher`, `(t, x) -> velocity`, under
        guidance.
      stop: where the teacher's gradient stops; None for the error's own default.
      gamma: in [0, 1], where a progressive residual splits a step; None to draw it uniformly.
      times: `(key, num) -> (s, t)`, the law of the two times s <= t, of `flows.times`.
    """

    error: Callable[..., Array]
    stop: str | None = None
    gamma: float | None = 0.5
    times: Callable[[Array, int], tuple[Array, Array]] = triangle


lsd = Residual(lagrangian)
esd = Residual(eulerian)
psd_midpoint = Residual(progressive)
psd_uniform = Residual(progressive, gamma=None)
mean_flow = Residual(mean_flow_error)
shortcut = Residual(progressive, times=dyadic)  # arXiv 2410.12557


def asked_by(residual: Residual) -> set[str]:
    """What the error of a residual asks for by name."""
    return set(inspect.signature(residual.error).parameters)


def error_of(residual: Residual, v: MeanVelocity, s, t, x, *, gamma, dx, teacher=None) -> Float[Array, "*event"]:
    """The error of one point, given what it asks for."""
    given = {"gamma": gamma, "dx": dx, "teacher": teacher, "stop": residual.stop}
    given = {name: value for name, value in given.items() if value is not None and name in asked_by(residual)}
    return residual.error(v, s, t, x, **given)


def check_residual(residual: Residual) -> None:
    """Raises ValueError for a gamma outside [0, 1], or a stop that the error does not know."""
    if residual.gamma is not None and not 0 <= residual.gamma <= 1:
        raise ValueError(f"gamma: expected a number in [0, 1], or None, got {residual.gamma}")
    if residual.stop is not None and "stop" not in asked_by(residual):
        raise ValueError(f"stop: expected None for an error that takes no stop, got {residual.stop!r}")
    point, zero = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    v = lambda s, t, x: x
    jax.eval_shape(lambda s, x: error_of(residual, v, s, s, x, gamma=s, dx=x), zero, point)


def weighted_square(
    residual: Float[Array, "*batch dim"], log_weight: Float[Array, "*batch"] | float = 0.0
) -> Float[Array, "*batch"]:
    r"""exp(-w) |r|^2 + w: the squared residual, and, where w(s, t) is learned, in units of what it usually is.

    Args:
      residual: r, of each point.
      log_weight: w, of each point or of all.

    >>> weighted_square(jnp.array([[3.0, 4.0]])).tolist()
    [25.0]
    """
    return jnp.exp(-log_weight) * jnp.sum(residual**2, axis=-1) + log_weight


def _choose(stop, choices):
    if stop not in choices:
        raise ValueError(f"stop: expected one of {', '.join(choices)}, got {stop!r}")
