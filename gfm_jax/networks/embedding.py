"""Flow times and conditions as vectors that a network can use."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["since_first", "sinusoids"]


def sinusoids(t: Float[Array, "*times"], num: int, highest: float = 8.0) -> Float[Array, "*times num"]:
    r"""sin and cos of 2 pi f t, at num / 2 frequencies f from 1/4 to `highest`, evenly in their logarithm.

    Higher ones make derivatives in time steep, and flow maps are learned by them.
    """
    frequencies = jnp.geomspace(0.25, highest, num // 2)
    angle = 2 * jnp.pi * t[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def since_first(times: Float[Array, " times"]) -> Float[Array, " times"]:
    """(s, t) as (s, t - s): where a flow-map step starts and how far it goes."""
    return jnp.concatenate([times[:1], times[1:] - times[:1]])
