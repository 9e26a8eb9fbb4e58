"""Optimizers as vector fields."""

from gfm_jax.optimizers import velocity
from gfm_jax.optimizers.velocity import transformation_velocity

__all__ = ["transformation_velocity", "velocity"]
