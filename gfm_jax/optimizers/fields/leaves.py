"""Fields that act on one tensor at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import OptimizerField
from gfm_jax.checks import is_traced

__all__ = ["Decay", "check_decays", "field_of_leaves", "zeros"]


Decay = float | Float[Array, ""]


def check_decays(**decays: Decay) -> None:
    """Raises ValueError for a known decay outside [0, 1)."""
    for name, value in decays.items():
        if not is_traced(value) and not 0 <= value < 1:
            raise ValueError(f"{name}: expected a decay in [0, 1), got {value}")


def field_of_leaves(slots: dict[str, Callable], velocity: Callable) -> OptimizerField:
    """A field over pytrees from that of one of their leaves.

    Args:
      slots: by name, `(leaf) -> slot`, the slot that a leaf starts with.
      velocity: `(time, w, slots, g, lr) -> (w', slots')`.
    """

    def init(weights):
        return {name: jax.tree.map(start, weights) for name, start in slots.items()}

    def of_tree(time, weights, state, gradient, learning_rate):
        leaves, treedef = jax.tree.flatten(weights)
        slot_leaves = [treedef.flatten_up_to(state[name]) for name in slots]
        moved = [
            velocity(time, w, dict(zip(slots, own, strict=True)), g, learning_rate)
            for w, g, *own in zip(leaves, treedef.flatten_up_to(gradient), *slot_leaves, strict=True)
        ]
        d_weights = treedef.unflatten([d_w for d_w, _ in moved])
        return d_weights, {name: treedef.unflatten([d_slots[name] for _, d_slots in moved]) for name in slots}

    return OptimizerField(init, of_tree)


def zeros(leaf: jax.Array) -> jax.Array:
    """The slot that most start with."""
    return jnp.zeros_like(leaf)
