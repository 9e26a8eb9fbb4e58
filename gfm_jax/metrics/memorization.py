"""Whether samples are copies of what a model was fitted to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["nearest_distance"]


def nearest_distance(
    samples: Float[Array, "num dim"], data: Float[Array, "others dim"], chunk: int = 256
) -> Float[Array, " num"]:
    """Euclidean distance from each sample to the nearest point of a data set, `chunk` samples at a time.

    By differences, since the expanded square loses in float32 what tells a copy from a near copy.
    """
    if samples.shape[1] != data.shape[1]:
        raise ValueError(f"samples, data: expected points of one dimension, got {samples.shape} and {data.shape}")
    candidates = 8

    def one(sample):
        rough = jnp.sum(data**2, 1) - 2 * data @ sample
        _, near = jax.lax.top_k(-rough, min(candidates, len(data)))
        return jnp.sqrt(jnp.min(jnp.sum((data[near] - sample) ** 2, axis=1)))

    return jax.lax.map(one, samples, batch_size=min(chunk, len(samples)))
