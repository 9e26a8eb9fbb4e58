"""Gradient descent as a numerical method, as optax transformations; and optimizers as vector fields.

`gfm_jax.optimizers.tableaus` is imported by its own name, since it imports diffrax.
"""

from gfm_jax.optimizers import fields, order_conditions, stability
from gfm_jax.optimizers.chebyshev import chebyshev, chebyshev_growth, chebyshev_interval, scale_by_chebyshev
from gfm_jax.optimizers.fields import transformation_velocity
from gfm_jax.optimizers.joint import joint_runge_kutta
from gfm_jax.optimizers.multistep import (
    ADAMS_BASHFORTH,
    EXTRAPOLATED_BDF2,
    TAYLOR,
    Multistep,
    adams_bashforth,
    extrapolated_bdf2,
    linear_multistep,
    scale_by_linear_multistep,
    taylor_sgd,
)
from gfm_jax.optimizers.runge_kutta import (
    explicit_runge_kutta,
    heun,
    midpoint,
    ralston,
    rk4,
    scale_by_runge_kutta,
)
from gfm_jax.optimizers.step_control import embedded_runge_kutta
from gfm_jax.optimizers.symplectic import leapfrog, scale_by_leapfrog, scale_by_symplectic_euler, symplectic_euler
from gfm_jax.optimizers.whole_gradient import WholeGradient, whole_params

__all__ = [
    "ADAMS_BASHFORTH",
    "EXTRAPOLATED_BDF2",
    "TAYLOR",
    "Multistep",
    "WholeGradient",
    "adams_bashforth",
    "chebyshev",
    "chebyshev_growth",
    "chebyshev_interval",
    "embedded_runge_kutta",
    "explicit_runge_kutta",
    "extrapolated_bdf2",
    "fields",
    "heun",
    "joint_runge_kutta",
    "leapfrog",
    "linear_multistep",
    "midpoint",
    "order_conditions",
    "ralston",
    "rk4",
    "scale_by_chebyshev",
    "scale_by_leapfrog",
    "scale_by_linear_multistep",
    "scale_by_runge_kutta",
    "scale_by_symplectic_euler",
    "stability",
    "symplectic_euler",
    "taylor_sgd",
    "transformation_velocity",
    "whole_params",
]
