"""Fields of optimizers whose slot is a mean of gradients, or that have none."""

import jax.numpy as jnp

from gfm_jax.base import OptimizerField
from gfm_jax.optimizers.fields.leaves import check_decays, field_of_leaves, zeros

__all__ = ["lion", "momentum", "nesterov", "sgd", "sign_sgd"]


def sgd() -> OptimizerField:
    """Gradient flow: w' = -g."""
    return field_of_leaves({}, lambda time, w, slots, g, lr: (-g, {}))


def sign_sgd() -> OptimizerField:
    """Descent at speed one along every coordinate: w' = -sign(g)."""
    return field_of_leaves({}, lambda time, w, slots, g, lr: (-jnp.sign(g), {}))


def momentum(decay: float = 0.9) -> OptimizerField:
    r"""Heavy ball, with optax's `trace` v_{k+1} = decay v_k + g as its slot.

    .. math:: w' = -v, \qquad v' = \frac{g - (1 - \beta) v}{lr}

    Here the clock is that of the learning rate as it stands: the effective one is lr / (1 - beta).
    """
    check_decays(decay=decay)

    def velocity(time, w, slots, g, lr):
        v = slots["trace"]
        return -v, {"trace": (g - (1 - decay) * v) / lr}

    return field_of_leaves({"trace": zeros}, velocity)


def nesterov(decay: float = 0.9) -> OptimizerField:
    r"""Nesterov's momentum, with optax's `trace`: w' = -(g + beta v), v' = (g - (1 - beta) v) / lr."""
    check_decays(decay=decay)

    def velocity(time, w, slots, g, lr):
        v = slots["trace"]
        return -(g + decay * v), {"trace": (g - (1 - decay) * v) / lr}

    return field_of_leaves({"trace": zeros}, velocity)


def lion(b1: float = 0.9, b2: float = 0.99, weight_decay: float = 1e-3) -> OptimizerField:
    r"""Lion, with optax's `mu`.

    .. math:: w' = -\mathrm{sign}\big((1 - \beta_1) g + \beta_1 m\big) - \lambda w, \qquad m' = \frac{g - m}{\tau_2}

    beta_1 mixes and is no memory: it stays what it is as the learning rate becomes small.
    """
    check_decays(b1=b1, b2=b2)

    def velocity(time, w, slots, g, lr):
        m = slots["mu"]
        return -jnp.sign((1 - b1) * g + b1 * m) - weight_decay * w, {"mu": (1 - b2) * (g - m) / lr}

    return field_of_leaves({"mu": zeros}, velocity)
