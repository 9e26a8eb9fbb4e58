"""Fields of optimizers whose slot is a mean of gradients, or that have none."""

import jax.numpy as jnp

from gfm_jax.base import OptimizerField
from gfm_jax.optimizers.fields.leaves import Decay, check_decays, field_of_leaves, zeros

__all__ = ["lion", "momentum", "nesterov", "sgd", "sign_sgd"]


def sgd() -> OptimizerField:
    """Gradient flow: w' = -g.

    >>> field, w = sgd(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -2.0
    """
    return field_of_leaves({}, lambda time, w, slots, g, lr: (-g, {}))


def sign_sgd() -> OptimizerField:
    """Descent at speed one along every coordinate: w' = -sign(g).

    >>> field, w = sign_sgd(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.0
    """
    return field_of_leaves({}, lambda time, w, slots, g, lr: (-jnp.sign(g), {}))


def momentum(decay: Decay = 0.9) -> OptimizerField:
    r"""Heavy ball, with optax's `trace` v_{k+1} = decay v_k + g as its slot.

    .. math:: w' = -v, \qquad v' = \frac{g - (1 - \beta) v}{lr}

    Here the clock is that of the learning rate as it stands: the effective one is lr / (1 - beta).

    Args:
      decay: beta, in [0, 1).

    >>> field, w = momentum(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, {"trace": 3 * w}, jnp.array(2.0), 0.1)[0]), 4)
    -3.0
    """
    check_decays(decay=decay)

    def velocity(time, w, slots, g, lr):
        v = slots["trace"]
        return -v, {"trace": (g - (1 - decay) * v) / lr}

    return field_of_leaves({"trace": zeros}, velocity)


def nesterov(decay: Decay = 0.9) -> OptimizerField:
    r"""Nesterov's momentum, with optax's `trace`: w' = -(g + beta v), v' = (g - (1 - beta) v) / lr.

    Args:
      decay: beta, in [0, 1).

    >>> field, w = nesterov(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, {"trace": 3 * w}, jnp.array(2.0), 0.1)[0]), 4)
    -4.7
    """
    check_decays(decay=decay)

    def velocity(time, w, slots, g, lr):
        v = slots["trace"]
        return -(g + decay * v), {"trace": (g - (1 - decay) * v) / lr}

    return field_of_leaves({"trace": zeros}, velocity)


def lion(b1: Decay = 0.9, b2: Decay = 0.99, weight_decay: float = 1e-3) -> OptimizerField:
    r"""Lion, with optax's `mu`.

    .. math:: w' = -\mathrm{sign}\big((1 - \beta_1) g + \beta_1 m\big) - \lambda w, \qquad m' = \frac{g - m}{\tau_2}

    beta_1 mixes and is no memory: it stays what it is as the learning rate becomes small.

    Args:
      b1: weight of the past in the direction, in [0, 1).
      b2: decay of the mean of gradients, in [0, 1).
      weight_decay: lambda, from 0 on.

    >>> field, w = lion(weight_decay=0.5), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.5
    """
    check_decays(b1=b1, b2=b2)

    def velocity(time, w, slots, g, lr):
        m = slots["mu"]
        return -jnp.sign((1 - b1) * g + b1 * m) - weight_decay * w, {"mu": (1 - b2) * (g - m) / lr}

    return field_of_leaves({"mu": zeros}, velocity)
