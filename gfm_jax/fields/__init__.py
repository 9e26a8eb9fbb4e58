"""Fields: the vector fields and flow maps that move points."""

from gfm_jax.fields.closed_form import Posterior, closed_form_velocity, posterior, velocity_to
from gfm_jax.fields.flow_map import jump, velocity_of
from gfm_jax.fields.optimizer_aware import Coefficients, FieldParams, Move, check_widths, init_field, move
from gfm_jax.fields.oracles import Oracle, gaussian, single_point, uniform_on_boxes

__all__ = [
    "Coefficients",
    "FieldParams",
    "Move",
    "Oracle",
    "Posterior",
    "check_widths",
    "closed_form_velocity",
    "gaussian",
    "init_field",
    "jump",
    "move",
    "posterior",
    "single_point",
    "uniform_on_boxes",
    "velocity_of",
    "velocity_to",
]
