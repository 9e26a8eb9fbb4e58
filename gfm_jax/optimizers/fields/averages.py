"""Fields of optimizers that average their own path."""

import jax.numpy as jnp

from gfm_jax.base import OptimizerField
from gfm_jax.optimizers.fields.leaves import Decay, check_decays, field_of_leaves

__all__ = ["schedule_free"]


def schedule_free(b1: Decay = 0.9) -> OptimizerField:
    r"""Schedule-free gradient descent at a constant learning rate, with optax's `z`.

    .. math:: z' = -g(w), \qquad x' = \frac{z - x}{t}, \qquad w = (1 - \beta) z + \beta x

    so that w' = -(1 - beta) g + (z - w) / t, where gradients are taken; the weights to be evaluated are
    x = (w - (1 - beta) z) / beta. At t = 0, where all three are one, w' = -(1 - beta / 2) g.

    Args:
      b1: beta, in [0, 1).

    >>> field, w = schedule_free(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.1
    """
    check_decays(b1=b1)

    def velocity(time, w, slots, g, lr):
        started = time > 0
        pulled = jnp.where(started, (slots["z"] - w) / jnp.where(started, time, 1.0), -b1 / 2 * g)
        return -(1 - b1) * g + pulled, {"z": -g}

    return field_of_leaves({"z": lambda leaf: jnp.array(leaf)}, velocity)
