"""The field of any optax transformation, from one of its steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.checks import is_traced

__all__ = ["transformation_velocity"]


def transformation_velocity(
    transform: optax.GradientTransformation, learning_rate: float | Float[Array, ""]
) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]:
    r"""The field of any optax transformation, from one of its steps.

    .. math:: w' = \frac{\mathrm{update}(g, s, w)}{lr}, \qquad s' = \frac{s_{+} - s}{lr}

    Args:
      transform: built with that learning rate.
      learning_rate: time that one step takes, above 0.

    Returns:
      `(weights, state, gradient) -> (weights', state')`; integers in the state (step counters) count as time and have no
      velocity of their own: theirs is their change.

    >>> transform, w = optax.sgd(0.1), jnp.ones(())
    >>> moved, _ = transformation_velocity(transform, 0.1)(w, transform.init(w), 2 * w)
    >>> float(moved)
    -2.0
    """
    if not is_traced(learning_rate) and learning_rate <= 0:
        raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")

    def velocity(weights, state, gradient):
        updates, new_state = transform.update(gradient, state, weights)

        def change(new, old):
            new, old = jnp.asarray(new), jnp.asarray(old)
            return (new - old) / learning_rate if jnp.issubdtype(new.dtype, jnp.floating) else new - old

        return jax.tree.map(lambda u: u / learning_rate, updates), jax.tree.map(change, new_state, state)

    return velocity
