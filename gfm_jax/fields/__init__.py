"""Fields: the vector fields and flow maps that move points."""

from gfm_jax.fields.flow_map import jump, velocity_of
from gfm_jax.fields.optimizer_aware import Coefficients, FieldParams, Move, init_field, move

__all__ = ["Coefficients", "FieldParams", "Move", "init_field", "jump", "move", "velocity_of"]
