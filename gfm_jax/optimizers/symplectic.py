r"""Momentum as mechanics with friction: integrators that keep its geometry, at one gradient an update.

    w' = p,        p' = -g(w) - gamma p

Here the learning rate is the step in the time of THIS equation: weights move by lr^2 g at a first update.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from gfm_jax.checks import check_not_negative
from gfm_jax.optimizers.accumulators import zero_accumulators

__all__ = ["SymplecticState", "leapfrog", "scale_by_leapfrog", "scale_by_symplectic_euler", "symplectic_euler"]


class SymplecticState(NamedTuple):
    """Updates taken, the step that the momentum was last kicked by, and the momentum, in float32 at least."""

    count: Int[Array, ""]
    step: Float[Array, ""]
    momentum: PyTree


def scale_by_leapfrog(
    learning_rate: optax.ScalarOrSchedule, friction: float | Array = 0.0
) -> optax.GradientTransformation:
    r"""The conformal leapfrog: half a kick, a drift, half a kick, and friction solved exactly on either side.

    .. math:: p_k = e^{-\gamma h_- / 2} \Big(p_{k - 1/2} - \tfrac{h_-}{2} g_k\Big), \qquad
       p_{k + 1/2} = e^{-\gamma h / 2} p_k - \tfrac{h}{2} g_k, \qquad w_{k+1} = w_k + h\, p_{k + 1/2}

    of order 2; without friction it is symplectic and reversible, and its energy does not drift.

    Args:
      learning_rate: h, the one that follows.
      friction: gamma, from 0 on.

    Returns:
      A transformation, to be chained with `optax.scale_by_learning_rate` of the same rate. Its state keeps p_{k + 1/2}.

    Raises:
      ValueError: for a negative rate or friction.

    >>> optimizer, w = scale_by_leapfrog(0.1), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # half a kick
    0.05
    """

    def kick(momentum, gradient, before, step):
        p = jnp.exp(-friction * before / 2) * (momentum - before / 2 * gradient)
        return jnp.exp(-friction * step / 2) * p - step / 2 * gradient

    return _transformation(learning_rate, friction, kick)


def scale_by_symplectic_euler(
    learning_rate: optax.ScalarOrSchedule, friction: float | Array = 0.0
) -> optax.GradientTransformation:
    r"""The conformal symplectic Euler method: a kick, then a drift.

    .. math:: p_{k+1} = e^{-\gamma h} p_k - h\, g_k, \qquad w_{k+1} = w_k + h\, p_{k+1}

    of order 1: the heavy ball `optax.sgd(h**2, momentum=exp(-gamma h))`.

    Args:
      learning_rate: h, the one that follows.
      friction: gamma, from 0 on.

    Returns:
      A transformation, to be chained with `optax.scale_by_learning_rate` of the same rate. Its state keeps p_{k+1}.

    Raises:
      ValueError: for a negative rate or friction.

    >>> optimizer, w = scale_by_symplectic_euler(0.1), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)
    0.1
    """
    kick = lambda momentum, gradient, before, step: jnp.exp(-friction * step) * momentum - step * gradient
    return _transformation(learning_rate, friction, kick)


def _transformation(learning_rate, friction, kick):
    check_not_negative(learning_rate=learning_rate, friction=friction)
    rate_at = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)

    def init(params):
        momentum = zero_accumulators(params)
        return SymplecticState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.result_type(float)), momentum)

    def update(updates, state, params=None):
        del params
        step = jnp.asarray(rate_at(state.count), state.step.dtype)
        move = lambda p, g: kick(p, g.astype(p.dtype), state.step.astype(p.dtype), step.astype(p.dtype))
        momentum = jax.tree.map(move, state.momentum, updates)
        new_state = SymplecticState(jnp.asarray(optax.safe_increment(state.count)), step, momentum)
        return jax.tree.map(lambda p, g: (-p).astype(g.dtype), momentum, updates), new_state

    return optax.GradientTransformation(init, update)


# --- recipes ----------------------------------------------------------------------------------------------------------


def leapfrog(learning_rate: optax.ScalarOrSchedule, friction: float | Array = 0.0) -> optax.GradientTransformation:
    """The momentum equation by the conformal leapfrog, of order 2; arguments as of `scale_by_leapfrog`.

    >>> optimizer, w = leapfrog(0.1), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # -lr^2 / 2
    -0.005
    """
    return optax.chain(scale_by_leapfrog(learning_rate, friction), optax.scale_by_learning_rate(learning_rate))


def symplectic_euler(
    learning_rate: optax.ScalarOrSchedule, friction: float | Array = 0.0
) -> optax.GradientTransformation:
    """The momentum equation by the conformal symplectic Euler method; arguments as of `scale_by_symplectic_euler`.

    >>> optimizer, w = symplectic_euler(0.1), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # -lr^2
    -0.01
    """
    return optax.chain(scale_by_symplectic_euler(learning_rate, friction), optax.scale_by_learning_rate(learning_rate))
