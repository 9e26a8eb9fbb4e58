"""The features of a prefix by name, in the order in which a network reads them."""

import hashlib
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Features

__all__ = [
    "COORDINATE", "DIRECTIONS", "HORIZON", "KRYLOV", "MOTION", "OF_UNITS", "OUTPUTS", "POOLED", "RUN", "TENSOR",
    "fingerprint_of_names", "named", "stack", "stacked",
]  # fmt: skip

KRYLOV = tuple(f"krylov_{k}" for k in range(4))
DIRECTIONS = (
    *(f"since_{j}_8" for j in range(8)),  # displacement since each eighth of the prefix
    "since_last",
    "since_second_last",
    "log_slope",  # slope against log time over the last three quarters
    "slope",  # slope against time over the last half
    "average_since_4_8",  # towards the mean of the last half
    "average_since_6_8",  # of the last quarter
    "average",  # of the last eighth
    "optimizer",  # the optimizer's own direction
    "descent",  # against the gradient
    *KRYLOV,  # down the quadratic model of the loss, where its curvature was measured
)
POOLED = ("since_4_8", "since_6_8", "since_second_last")  # over the weights into and out of a unit
OF_UNITS = tuple(
    f"{mean}_{name}"
    for mean in ("rms_into_unit", "mean_into_unit", "rms_out_of_unit", "mean_out_of_unit")
    for name in POOLED
)
COORDINATE = (
    *(f"arcsinh_{name}" for name in DIRECTIONS),
    *("last_weight", "first_weight", "noise", "second_moment"),
    *OF_UNITS,
)
MOTION = (
    "length_2_to_1", "length_3_to_2", "length_4_to_3",  # of quarters of the prefix
    "turn_quarters", "turn_halves", "turn_steps", "turn_optimizer", "turn_descent",  # cosines
    "noise", "speed_last", "speed_second_last", "speed_last_eighth", "speed_seventh_eighth", "speed_second_half",
    "agreement", "carried", "descent",
)  # fmt: skip
TENSOR = ("scale", *MOTION, "is_vector", "depth", "size")
RUN = (
    "loss", "loss_since_2_8", "loss_since_4_8", "loss_since_6_8", "loss_since_7_8",
    "loss_since_second_last", "loss_since_last", "loss_lowest", "loss_level",
    "loss_to_third_quarter", "loss_to_seventh_eighth", "loss_to_last_eighth", "loss_peak",
    "gradient_to_third_quarter", "gradient_to_seventh_eighth", "gradient_to_last_eighth", "gradient_to_last",
    "rate", "curvature_loss", "curvature_gradient", "has_curvature",
    "has_mu", "has_nu", "has_trace", "has_gradient", "has_loss", *MOTION,
)  # fmt: skip
HORIZON = ("log_steps", "log_time", "time", "rate", "mean_rate")
OUTPUTS = ("x_s", *DIRECTIONS, "residual", "log_error")


def fingerprint_of_names() -> str:
    """The SHA-256 of all names that a network reads or writes, in their order: fitted parameters fit no others.

    >>> len(fingerprint_of_names())
    64
    """
    groups = (COORDINATE, TENSOR, RUN, HORIZON, OUTPUTS)
    return hashlib.sha256("\n".join(" ".join(group) for group in groups).encode()).hexdigest()


def stack(features: dict[str, Float[Array, "*n"]], names: Sequence[str]) -> Float[Array, "*n k"]:
    """Named arrays as one array, in the order of the names; `named` is the inverse.

    >>> stack({"slope": jnp.ones(3), "average": jnp.zeros(3)}, ("average", "slope"))[0]
    Array([0., 1.], dtype=float32)
    """
    return jnp.moveaxis(jnp.stack([features[name] for name in names]), 0, -1)


def named(array: Float[Array, "*n k"], names: Sequence[str]) -> dict[str, Float[Array, "*n"]]:
    """The parts of a stacked array by their names; `stack` is the inverse.

    >>> named(jnp.array([[0.0, 1.0], [2.0, 3.0]]), ("average", "slope"))["slope"]
    Array([1., 3.], dtype=float32)
    """
    return dict(zip(names, jnp.unstack(array, axis=-1), strict=True))


def stacked(features: Features) -> Features:
    """Features as a network reads them: one array of every coordinate, of every tensor, and of the run.

    Directions keep their names: a move is a sum over them, and a stack would write all of them once more.
    """
    parts = {"coordinate": COORDINATE, "tensor": TENSOR, "run": RUN}
    return features._replace(**{part: stack(getattr(features, part), names) for part, names in parts.items()})
