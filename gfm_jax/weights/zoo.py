"""What generators of weights are fitted to."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, PyTree

from gfm_jax.checks import as_points, check_finite
from gfm_jax.flows.flow_data import conditions_of

__all__ = ["Zoo", "as_zoo"]


class Zoo(NamedTuple):
    """Networks to learn from.

    Attributes:
      weights: of each network.
      cond: what each is conditioned on; None for a generator without conditions.
      groups: a label for each network; a coupling pairs sources only within a group, since else they would tell its condition.
      codec_params: of a codec that is fitted already; None to fit it to these weights.
    """

    weights: Float[Array, "num dim"]
    cond: Float[Array, "num conditions"] | None = None
    groups: Any = None
    codec_params: PyTree | None = None


def as_zoo(data, least: int = 1) -> Zoo:
    """Weights [num, dim], a pair (weights, cond) or a `Zoo`, checked and in float32 or better.

    Raises:
      ValueError: for weights that are not [num, dim], not finite or of fewer than `least` networks, and conditions or groups
        of another number.
    """
    if not isinstance(data, Zoo):
        data = Zoo(*data) if isinstance(data, tuple) and len(data) == 2 else Zoo(as_points("weights", data))
    weights = as_points("weights", data.weights, least=least)
    check_finite("weights", weights)
    cond = None if data.cond is None else conditions_of(data.cond, len(weights), "networks")
    if data.groups is not None and np.shape(data.groups)[:1] != (len(weights),):
        raise ValueError(f"groups: expected one for each of {len(weights)} networks, got shape {np.shape(data.groups)}")
    return data._replace(weights=weights, cond=cond)
