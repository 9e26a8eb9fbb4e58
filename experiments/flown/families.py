"""Families of tasks that are laws of examples: sinusoids to be regressed, and moons to be told apart in the plane."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array

from gfm_jax.networks import MLP

__all__ = ["FAMILIES", "Family"]


class Family(NamedTuple):
    """A family of tasks, and the networks that learn them.

    Attributes:
      module: of the networks.
      draw_law: `(key) -> law`, a dict of arrays: one task.
      draw: `(key, law, num) -> (inputs [num, ...], targets [num, ...])`, examples of it.
      loss: `(outputs, targets) -> scalar`, which is descended.
      score: `(outputs, targets) -> scalar`, which is reported.
      inputs: where networks are compared, [num, ...].
      num_targets: numbers that tell a target to a context.
    """

    module: nn.Module
    draw_law: Callable[[Array], dict[str, Array]]
    draw: Callable[..., tuple[Array, Array]]
    loss: Callable[[Array, Array], Array]
    score: Callable[[Array, Array], Array]
    inputs: Array
    num_targets: int


# --- sinusoids, as in model-agnostic meta-learning, arXiv 1703.03400, section 5.1 -------------------------------------


def _sinusoid_law(key):
    key_amplitude, key_phase = jax.random.split(key)
    amplitude = jax.random.uniform(key_amplitude, minval=0.1, maxval=5.0)
    return {"amplitude": amplitude, "phase": jax.random.uniform(key_phase, maxval=jnp.pi)}


def _sinusoid(key, law, num):
    x = jax.random.uniform(key, (num, 1), minval=-5.0, maxval=5.0)
    return x, law["amplitude"] * jnp.sin(x + law["phase"])


def _square(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


# --- two moons, turned, stretched and moved ---------------------------------------------------------------------------


def _moons_law(key):
    key_angle, key_size, key_centre = jax.random.split(key, 3)
    return {
        "angle": jax.random.uniform(key_angle, maxval=2 * jnp.pi),
        "size": jax.random.uniform(key_size, (2,), minval=0.6, maxval=1.4),
        "centre": 0.5 * jax.random.normal(key_centre, (2,)),
    }


def _moons(key, law, num):
    key_along, key_noise = jax.random.split(key)
    label = jnp.arange(num) % 2
    along = jnp.pi * jax.random.uniform(key_along, (num,))
    outer = jnp.stack([jnp.cos(along), jnp.sin(along)], -1)
    inner = jnp.stack([1 - jnp.cos(along), 0.5 - jnp.sin(along)], -1)
    x = jnp.where(label[:, None] == 0, outer, inner) - jnp.array([0.5, 0.25])
    x = x + 0.1 * jax.random.normal(key_noise, x.shape)
    c, s = jnp.cos(law["angle"]), jnp.sin(law["angle"])
    return (law["size"] * x) @ jnp.array([[c, s], [-s, c]]) + law["centre"], jax.nn.one_hot(label, 2)


def _cross_entropy(outputs, targets):
    return optax.softmax_cross_entropy(outputs, targets).mean()


def _accuracy(outputs, targets):
    return jnp.mean(outputs.argmax(-1) == targets.argmax(-1))


LINE = jnp.linspace(-5, 5, 64)[:, None]
PLANE = jnp.stack(jnp.meshgrid(*[jnp.linspace(-2.5, 2.5, 24)] * 2), -1).reshape(-1, 2)

FAMILIES = {
    "sinusoid": Family(MLP((40, 40, 1)), _sinusoid_law, _sinusoid, _square, _square, LINE, 1),
    "moons": Family(MLP((16, 2)), _moons_law, _moons, _cross_entropy, _accuracy, PLANE, 2),
}
