"""Optimizers as vector fields on (weights, slots), with the sum of learning rates as their clock.

A discrete optimizer is one step of an integrator through its field, so that the field says where the optimizer goes as the
learning rate becomes small. With g the gradient, lr the learning rate, tau_i = lr / (1 - beta_i) the memory of a slot:

    sgd        w' = -g
    momentum   w' = -v,                                     v' = (g - (1 - beta) v) / lr        (optax's trace)
    nesterov   w' = -(g + beta v),                          v' as above
    rmsprop    w' = -g / sqrt(s + eps),                     s' = (g^2 - s) / tau
    adam       w' = -(m / c_1) / (sqrt(s / c_2) + eps),     m' = (g - m) / tau_1,  s' = (g^2 - s) / tau_2,
               c_i = 1 - exp(-t / tau_i)
    adamw      w' = adam's - lambda w
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from gfm_jax.base import OptimizerField

__all__ = ["adam", "adamw", "momentum", "nesterov", "rmsprop", "sgd", "transformation_velocity"]


def _check(**ranges):
    for name, value in ranges.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a decay in [0, 1), got {value}")


def _field(names: tuple[str, ...], velocity: Callable) -> OptimizerField:
    """A field from `(time, w, slots, g, lr) -> (w', slots')` of one leaf, mapped over pytrees."""

    def init(weights):
        return {name: optax.tree.zeros_like(weights) for name in names}

    def of_tree(time, weights, slots, gradient, learning_rate):
        leaves, treedef = jax.tree.flatten(weights)
        slot_leaves = [treedef.flatten_up_to(slots[name]) for name in names]
        moved = [
            velocity(time, w, dict(zip(names, own, strict=True)), g, learning_rate)
            for w, g, *own in zip(leaves, treedef.flatten_up_to(gradient), *slot_leaves, strict=True)
        ]
        d_weights = treedef.unflatten([d_w for d_w, _ in moved])
        return d_weights, {name: treedef.unflatten([d_slots[name] for _, d_slots in moved]) for name in names}

    return OptimizerField(init, of_tree)


def sgd() -> OptimizerField:
    """Gradient flow: w' = -g."""
    return _field((), lambda time, w, slots, g, lr: (-g, {}))


def momentum(decay: float = 0.9) -> OptimizerField:
    r"""Heavy ball, with optax's `trace` v_{k+1} = decay v_k + g as its slot.

    .. math:: w' = -v, \qquad v' = \frac{g - (1 - \beta) v}{lr}

    Here the clock is that of the learning rate as it stands: the effective one is lr / (1 - beta).
    """
    _check(decay=decay)

    def velocity(time, w, slots, g, lr):
        v = slots["trace"]
        return -v, {"trace": (g - (1 - decay) * v) / lr}

    return _field(("trace",), velocity)


def nesterov(decay: float = 0.9) -> OptimizerField:
    r"""Nesterov's momentum, with optax's `trace`: w' = -(g + beta v), v' = (g - (1 - beta) v) / lr."""
    _check(decay=decay)

    def velocity(time, w, slots, g, lr):
        v = slots["trace"]
        return -(g + decay * v), {"trace": (g - (1 - decay) * v) / lr}

    return _field(("trace",), velocity)


def rmsprop(decay: float = 0.9, eps: float = 1e-8) -> OptimizerField:
    r"""RMSprop: w' = -g / sqrt(s + eps), s' = (1 - rho)(g^2 - s) / lr, with optax's `nu` as s."""
    _check(decay=decay)

    def velocity(time, w, slots, g, lr):
        s = slots["nu"]
        return -g / jnp.sqrt(s + eps), {"nu": (1 - decay) * (g**2 - s) / lr}

    return _field(("nu",), velocity)


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> OptimizerField:
    r"""Adam, with optax's `mu` and `nu`.

    .. math:: w' = -\frac{m / c_1}{\sqrt{s / c_2} + \epsilon}, \quad m' = \frac{g - m}{\tau_1}, \quad
       s' = \frac{g^2 - s}{\tau_2}, \quad c_i = 1 - e^{-t/\tau_i}, \quad \tau_i = \frac{lr}{1 - \beta_i}
    """
    return adamw(b1, b2, eps, weight_decay=0.0)


def adamw(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4) -> OptimizerField:
    r"""Adam with decoupled weight decay: w' = adam's - lambda w."""
    _check(b1=b1, b2=b2)

    def velocity(time, w, slots, g, lr):
        m, s = slots["mu"], slots["nu"]
        tau_1, tau_2 = lr / (1 - b1), lr / (1 - b2)
        # c_i ~ t / tau_i as t -> 0, where m and s vanish in the same way: their ratio starts at the first gradient.
        c_1, c_2 = -jnp.expm1(-time / tau_1), -jnp.expm1(-time / tau_2)
        started = time > 0
        m_hat = jnp.where(started, m / jnp.where(started, c_1, 1.0), g)
        s_hat = jnp.where(started, s / jnp.where(started, c_2, 1.0), g**2)
        d_w = -m_hat / (jnp.sqrt(s_hat) + eps) - weight_decay * w
        return d_w, {"mu": (g - m) / tau_1, "nu": (g**2 - s) / tau_2}

    return _field(("mu", "nu"), velocity)


def transformation_velocity(
    transform: optax.GradientTransformation, learning_rate: float
) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]:
    r"""The field of any optax transformation, from one of its steps.

    .. math:: w' = \frac{\mathrm{update}(g, s, w)}{lr}, \qquad s' = \frac{s_{+} - s}{lr}

    Args:
      transform: built with that learning rate.
      learning_rate: time that one step takes, above 0.

    Returns:
      `(weights, state, gradient) -> (weights', state')`; integers in the state (step counters) count as time and have no
      velocity of their own: theirs is their change.
    """
    if learning_rate <= 0:
        raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")

    def velocity(weights, state, gradient):
        updates, new_state = transform.update(gradient, state, weights)

        def change(new, old):
            new, old = jnp.asarray(new), jnp.asarray(old)
            return (new - old) / learning_rate if jnp.issubdtype(new.dtype, jnp.floating) else new - old

        return jax.tree.map(lambda u: u / learning_rate, updates), jax.tree.map(change, new_state, state)

    return velocity
