"""Flow to learn: weights as codes, a flow from a source to the codes, and back to weights, for any context."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from gfm_jax.base import Encoder, Generator
from gfm_jax.checks import as_points, check_count, check_finite
from gfm_jax.flows import GaussianSource, draw_gaussian, fit_gaussian, optimal_transport, unit_gaussian
from gfm_jax.flows.flow_data import check_conditions, conditions_of
from gfm_jax.weights.codes import decode_all, encode_all

__all__ = ["FlowToLearnParams", "Origin", "flow_to_learn"]

COUPLINGS = ("independent", "optimal_transport")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a flow starts: "gaussian", "fitted" or "initial"; and how its starts were paired with codes."""

    source: str
    coupling: str


class FlowToLearnParams(NamedTuple):
    """What a fit finds: of the encoder, of the flow, and the source where it is a Gaussian; and what it was fitted by."""

    encoder: PyTree
    flow: PyTree
    source: GaussianSource | None
    origin: Origin


def flow_to_learn(
    encoder: Encoder,
    flow: Generator,
    *,
    source: str | Callable[[Array], Array] = "gaussian",
    coupling: str = "independent",
) -> Generator:
    r"""Generates weights, of networks like those of a zoo, by a flow between codes.

    .. math:: z_1 = \mathrm{encode}(w), \quad z_0 \sim p_0, \quad
       \min_\theta E | v_\theta(z_t, t; y) - (z_1 - z_0) |^2, \quad \hat w = \mathrm{decode}(z(1))

    Args:
      encoder: from weights to codes.
      flow: from a source to codes: `empirical_flow_matching`, or `self_distilled_flow_map`, which generates in one call.
      source: "gaussian" for noise of the flow's own deviation, its `std_0`; "fitted" for the Gaussian that has the codes' mean
        and covariance; or the law of the networks' own initial weights, `(key) -> w [dim]`, which is encoded as they are.
        Noise under an independent coupling is drawn afresh in every batch; any other source once for each network, and noise
        that is to be coupled is of unit deviation.
      coupling: "independent", or "optimal_transport" in blocks; where the zoo's networks belong to groups (`groups` of `fit`),
        only within a group, since else a source would tell its condition.

    Returns:
      A generator:
      `fit(key, weights [num, dim], cond=None, *, groups=None, encoder_params=None, folder=None, progress=None)`;
      `generate(key, params, num, cond=None, *, temperature=1.0, x_0=None, **choices)`, where the temperature scales a Gaussian
      source's deviation, x_0 are codes to start from, and the choices are those of the flow's own `generate`, such as guidance
      or the number of jumps; `velocity` and `flow_map` are those of codes.

    Raises:
      ValueError: for an unknown source or coupling; in `fit` as encoder and flow do, for groups of another number, and for
        optimal transport with conditions but no groups; in `generate` for a temperature that is negative, or not 1 with a
        source that is no Gaussian.

    Flow to learn, arXiv 2503.19371.
    """
    if not (callable(source) or source in ("gaussian", "fitted")):
        raise ValueError(f"source: expected 'gaussian', 'fitted' or a law of initial weights, got {source!r}")
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling: expected one of {', '.join(COUPLINGS)}, got {coupling!r}")
    origin = Origin("initial" if callable(source) else source, coupling)

    def fit(key, weights, cond=None, *, groups=None, encoder_params=None, folder=None, progress=None):
        weights = as_points("weights", weights)
        check_finite("weights", weights)
        cond = None if cond is None else conditions_of(cond, len(weights), "networks")
        if groups is not None and np.shape(groups)[:1] != (len(weights),):
            raise ValueError(f"groups: expected one for each of {len(weights)} networks, got shape {np.shape(groups)}")
        if coupling == "optimal_transport" and cond is not None and groups is None:
            raise ValueError("groups: expected with conditions, so that optimal transport stays within a group")
        key_encoder, key_source, key_flow = jax.random.split(key, 3)
        inside = lambda name: None if folder is None else pathlib.Path(folder) / name
        if encoder_params is None:
            encoder_params = encoder.fit(key_encoder, weights, folder=inside("encoder"), progress=progress)
        z_1 = encode_all(encoder, encoder_params, weights)
        gaussian = _gaussian(source, z_1)
        if source == "gaussian" and coupling == "independent":
            x_0 = None  # drawn afresh in every batch
        else:
            x_0 = _draw(encoder, encoder_params, source, gaussian, key_source, len(z_1))
        if coupling == "optimal_transport":
            index = optimal_transport(x_0, z_1, groups)
            z_1, cond = z_1[index], None if cond is None else cond[index]
        params = flow.fit(key_flow, z_1, cond, x_0=x_0, folder=inside("flow"), progress=progress)
        if x_0 is None:
            gaussian = gaussian._replace(factor=jnp.diag(params.std_0))
        return FlowToLearnParams(encoder_params, params, gaussian, origin)

    def generate(key, params, num, cond=None, *, temperature=1.0, x_0=None, **choices):
        known = not isinstance(temperature, jax.core.Tracer)
        if (known and not 0 <= temperature < np.inf) or (params.source is None and not (known and temperature == 1)):
            raise ValueError(f"temperature: expected at least 0, and 1 but for a Gaussian source, got {temperature}")
        num = check_count("num", num)
        cond = check_conditions(cond, num, params.flow.conditions)
        key_source, key_flow = jax.random.split(key)
        if x_0 is None:
            x_0 = _draw(encoder, params.encoder, source, params.source, key_source, num, temperature)
        return decode_all(encoder, params.encoder, flow.generate(key_flow, params.flow, num, cond, x_0=x_0, **choices))

    velocity = lambda params, t, z, cond=None: flow.velocity(params.flow, t, z, cond)
    jump = flow.flow_map and (lambda params, s, t, z, cond=None: flow.flow_map(params.flow, s, t, z, cond))
    return Generator(fit, generate, velocity, jump)


def _gaussian(source, z_1):
    if callable(source):
        return None
    if source == "fitted":
        return fit_gaussian(z_1)
    return unit_gaussian(z_1[0])


def _draw(encoder, encoder_params, source, gaussian, key, num, temperature=1.0):
    """Points of the source."""
    if gaussian is None:
        weights = jax.vmap(source)(jax.random.split(key, num))
        return encode_all(encoder, encoder_params, weights)
    return draw_gaussian(key, gaussian, num, temperature)
