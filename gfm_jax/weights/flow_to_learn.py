"""Flow to learn: weights as codes, a flow from a source to the codes, and back to weights, under any condition."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Codec, Flow, Generator, Procedure, config_of
from gfm_jax.checks import check_count, is_traced
from gfm_jax.fitting import fit
from gfm_jax.flows import (
    FlowData,
    GaussianSource,
    draw_gaussian,
    fit_gaussian,
    optimal_transport,
    sample,
    unit_gaussian,
)
from gfm_jax.flows.flow_data import check_conditions
from gfm_jax.weights.codes import decode_all, encode_all
from gfm_jax.weights.zoo import as_zoo

__all__ = ["FlowToLearnParams", "Origin", "flow_to_learn"]

COUPLINGS = ("independent", "optimal_transport")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a flow starts: "gaussian", "fitted" or "initial"; and how its starts were paired with codes."""

    source: str
    coupling: str


class FlowToLearnParams(NamedTuple):
    """What a fit finds: of the codec, of the flow, and the source where it is a Gaussian; and what it was fitted by."""

    codec: PyTree
    flow: PyTree
    source: GaussianSource | None
    origin: Origin


def flow_to_learn(
    codec: Codec,
    flow: Flow,
    *,
    source: str | Callable[[Array], Array] = "gaussian",
    coupling: str = "independent",
) -> Generator:
    r"""Generates weights, of networks like those of a zoo, by a flow between codes.

    .. math:: z_1 = \mathrm{encode}(w), \quad z_0 \sim p_0, \quad
       \min_\theta E | v_\theta(z_t, t; y) - (z_1 - z_0) |^2, \quad \hat w = \mathrm{decode}(z(1))

    Args:
      codec: from weights to codes.
      flow: from a source to codes: `flow_matching`, or `flow_map`, which generates in one step; guided ones by `flows.guide`.
      source: "gaussian" for noise of the flow's own deviation, its `std_0`; "fitted" for the Gaussian that has the codes' mean
        and covariance; or the law of the networks' own initial weights, `(key) -> w [dim]`, which is encoded as they are.
        Noise under an independent coupling is drawn afresh in every batch; any other source once for each network, and noise
        that is to be coupled is of unit deviation.
      coupling: "independent", or "optimal_transport" in blocks; where the zoo's networks belong to groups (`Zoo.groups`),
        only within a group, since else a source would tell its condition.

    Returns:
      A generator, fitted to weights [num, dim], a pair (weights, cond) or a `Zoo`. Its
      `generate(key, params, num, cond=None, *, temperature=1.0, x_0=None, num_steps=None, solver=None)` scales a Gaussian
      source's deviation by the temperature, starts from the codes x_0 where they are given, and follows the flow as `sample`
      does; `velocity` and `flow_map` are those of codes.

    Raises:
      ValueError: for an unknown source or coupling; in `fit` as codec and flow do, for groups of another number, and for
        optimal transport with conditions but no groups; in `generate` for a temperature that is negative, or not 1 with a
        source that is no Gaussian.

    >>> import gfm_jax as gfm
    >>> flow = gfm.with_defaults(gfm.flow_map(gfm.networks.TimeMLP((16,))), num_steps=3)
    >>> generator, zoo = flow_to_learn(gfm.weights.identity(), flow), jax.random.normal(jax.random.key(0), (50, 2))
    >>> params, _ = gfm.fit(jax.random.key(1), generator, zoo)
    >>> gfm.sample(jax.random.key(2), generator, params, 10).shape
    (10, 2)

    Flow to learn, arXiv 2503.19371.
    """
    if not (callable(source) or source in ("gaussian", "fitted")):
        raise ValueError(f"source: expected 'gaussian', 'fitted' or a law of initial weights, got {source!r}")
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling: expected one of {', '.join(COUPLINGS)}, got {coupling!r}")
    origin = Origin("initial" if callable(source) else source, coupling)

    def fit_all(key, data, *, folder, progress):
        zoo = as_zoo(data)
        if coupling == "optimal_transport" and zoo.cond is not None and zoo.groups is None:
            raise ValueError("groups: expected with conditions, so that optimal transport stays within a group")
        key_codec, key_source, key_flow = jax.random.split(key, 3)
        inside = lambda name: None if folder is None else pathlib.Path(folder) / name
        params, cond = zoo.codec_params, zoo.cond
        if params is None:
            params, _ = fit(key_codec, codec, zoo.weights, folder=inside("codec"), progress=progress)
        z_1 = encode_all(codec, params, zoo.weights)
        gaussian = None if callable(source) else fit_gaussian(z_1) if source == "fitted" else unit_gaussian(z_1[0])
        if source == "gaussian" and coupling == "independent":
            z_0 = None  # drawn afresh in every batch
        else:
            z_0 = _draw(codec, params, source, gaussian, key_source, len(z_1))
        if coupling == "optimal_transport":
            index = optimal_transport(z_0, z_1, zoo.groups)
            z_1, cond = z_1[index], None if cond is None else cond[index]
        found, _ = fit(key_flow, flow, FlowData(z_1, cond, z_0), folder=inside("flow"), progress=progress)
        if z_0 is None:
            gaussian = unit_gaussian(z_1[0])._replace(factor=jnp.diag(found.std_0))
        return FlowToLearnParams(params, found, gaussian, origin)

    def generate(
        key, params, num, cond=None, *, temperature=1.0, x_0=None, num_steps=None, solver=None
    ) -> Float[Array, "num dim"]:
        known = not is_traced(temperature)
        if (known and not 0 <= temperature < np.inf) or (params.source is None and not (known and temperature == 1)):
            raise ValueError(f"temperature: expected at least 0, and 1 but for a Gaussian source, got {temperature}")
        num = check_count("num", num)
        cond = check_conditions(cond, num, params.flow.conditions)
        key_source, key_flow = jax.random.split(key)
        if x_0 is None:
            x_0 = _draw(codec, params.codec, source, params.source, key_source, num, temperature)
        options = {"x_0": x_0, "num_steps": num_steps, "solver": solver}
        return decode_all(codec, params.codec, sample(key_flow, flow, params.flow, num, cond, **options))

    velocity = lambda params, t, z, cond=None: flow.velocity(params.flow, t, z, cond)
    of_codes = flow.flow_map
    flow_map = of_codes and (lambda params, s, t, z, cond=None: of_codes(params.flow, s, t, z, cond))
    config = config_of("weights.flow_to_learn", codec=codec, flow=flow, source=source, coupling=coupling)
    return Generator(Procedure(fit_all, config), generate, velocity, flow_map)


def _draw(codec, codec_params, source, gaussian, key, num, temperature=1.0):
    """Points of the source."""
    if gaussian is None:
        return encode_all(codec, codec_params, jax.vmap(source)(jax.random.split(key, num)))
    return draw_gaussian(key, gaussian, num, temperature)
