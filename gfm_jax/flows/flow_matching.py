"""Flow matching: learn the velocity that carries a source to the data. Empirical flow matching is one of its recipes."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from gfm_jax.base import Defaults, Flow, Interpolant, config_of
from gfm_jax.checks import check_count
from gfm_jax.flows.flow_data import (
    FlowData,
    adam_on_cosine,
    check_network,
    check_std,
    draw_ends,
    flow_data,
    flow_learner,
)
from gfm_jax.flows.guidance import guided
from gfm_jax.flows.interpolants import interpolate, linear
from gfm_jax.flows.reference_points import draw_reference_points
from gfm_jax.flows.targets import empirical_path, flow_matching_loss
from gfm_jax.flows.times import uniform
from gfm_jax.networks import init_network

__all__ = ["EmpiricalTargets", "empirical_flow_matching", "flow_matching"]

DEFAULTS = Defaults(num_steps=10_000, learning_rate=1e-3, optimizer=adam_on_cosine)


class EmpiricalTargets(NamedTuple):
    """Targets of empirical flow matching: the mean velocity over M points of the data set, `flows.empirical_path`.

    Attributes:
      num_reference_points: M.
      sharing: "shared" by the batch, which M then includes, or "per_sample".
      replacement: whether a reference point may come twice.
    """

    num_reference_points: int
    sharing: Literal["shared", "per_sample"] = "shared"
    replacement: bool = False


def flow_matching(
    network: nn.Module,
    *,
    interpolant: Interpolant = linear,
    times: Callable[[Array, int], Array] = uniform,
    coupling: Callable[[Array, Array, Array], Array] | None = None,
    targets: EmpiricalTargets | None = None,
    std_0: float = 1.0,
    condition_dropout: float = 0.0,
    batch_size: int = 256,
) -> Flow:
    r"""A flow that is learned by regression of its velocity on those of paths.

    .. math:: \min_\theta E | v_\theta(t, x_t) - \dot x_t |^2, \qquad x_t = \alpha(t) x_0 + \beta(t) x_1

    Use it where samples may cost many evaluations of the network; `flow_map` learns to sample in a few.

    Args:
      network: a flax module `(times [1], x, cond) -> dx`, of one point, as `networks.TimeMLP` or `networks.UNet`.
      interpolant: the path, (alpha, beta).
      times: `(key, num) -> t [num]`, the law of flow times, of `flows.times`.
      coupling: `(key, x_0, x_1) -> index`, of points [num, dim], which pairs the sources of a batch with the targets
        `x_1[index]`, such as `flows.sinkhorn`; None for independent ones. For pairs that are known hand
        `FlowData(x_1, x_0=...)` to `fit`.
      targets: `EmpiricalTargets` for the mean velocity over points of the data set; None for the velocity of each path.
      std_0: standard deviation of the source N(0, std_0^2 I), above 0.
      condition_dropout: probability in [0, 1) that a path is learned without its condition, zeros in its place; above 0 the
        flow can be `guided`.
      batch_size: paths in a batch.

    Returns:
      A flow, fitted by `fit(key, flow, data)`, data [num, dim] or of any event shape, such as images, a pair
      (data, cond [num, conditions]) or `FlowData`, and drawn from by `sample`.

    Raises:
      ValueError: for a number out of range, a network that cannot be hashed, or empirical targets with a coupling; in `fit` for
        either with conditions or paired sources, whose closed form is another one.

    >>> import gfm_jax as gfm, jax
    >>> flow = gfm.flow_matching(gfm.networks.TimeMLP((16,)))
    >>> data = 3 + 0.1 * jax.random.normal(jax.random.key(0), (100, 2))
    >>> params, info = gfm.fit(jax.random.key(1), flow, data, num_steps=3)
    >>> gfm.sample(jax.random.key(2), flow, params, 7).shape
    (7, 2)

    Flow matching for generative modeling, arXiv 2210.02747.
    """
    check_network(network)
    batch_size = check_count("batch_size", batch_size)
    check_std("std_0", std_0)
    if not 0 <= condition_dropout < 1:
        raise ValueError(f"condition_dropout: expected a probability in [0, 1), got {condition_dropout}")
    if targets is not None and targets.sharing not in ("per_sample", "shared"):
        raise ValueError(f"sharing: expected 'per_sample' or 'shared', got {targets.sharing!r}")
    if targets is not None and coupling is not None:
        raise ValueError(f"coupling: expected None with targets, which are of independent pairs, got {coupling}")
    interpolant = Interpolant(*interpolant)

    def prepare(data):
        data = flow_data(data, std_0)
        for name, choice in (("targets", targets), ("coupling", coupling)):
            if choice is not None and not (data.cond is None and data.x_0 is None):
                raise ValueError(f"{name}: expected None with conditions or paired sources, got {choice}")
        if targets is not None:  # what is wrong with them is said before any long work
            draw = functools.partial(
                draw_reference_points, num=len(data.x_1), batch_size=batch_size, **targets._asdict()
            )
            jax.eval_shape(draw, jax.random.key(0))
        return data

    def init(key, data):
        return init_network(network, key, jnp.zeros(1), data.x_1[0], None if data.cond is None else data.cond[0])

    def sample(key, data: FlowData):
        key_ends, key_time, key_index = jax.random.split(key, 3)
        x_0, x_1, cond = draw_ends(key_ends, data, batch_size)
        if condition_dropout and cond is not None:
            dropped = jax.random.bernoulli(key_index, condition_dropout, (batch_size, 1))
            cond = jnp.where(dropped, 0.0, cond)
        if targets is not None:
            own, index = draw_reference_points(key_index, len(data.x_1), batch_size, *targets)
            x_1 = data.x_1[own]
        if coupling is not None:
            x_1 = x_1[coupling(jax.random.fold_in(key, 3), *(x.reshape(batch_size, -1) for x in (x_0, x_1)))]
        t = times(key_time, batch_size).astype(x_1.dtype)
        path = jax.vmap(functools.partial(interpolate, interpolant))(t, x_0, x_1)
        if targets is not None:
            path = empirical_path(path, data.x_1[index], interpolant=interpolant, source=(0.0, std_0))
        return path, cond

    def loss(params, key, batch):
        path, cond = batch
        v: Any = jax.vmap(lambda t, x, cond: network.apply(params, t[None], x, cond))(path.t, path.x_t, cond)
        return flow_matching_loss(v, path), {}

    def velocity(params, t, x, cond=None) -> Any:
        return network.apply(params.network, jnp.atleast_1d(t), x, cond)

    config = config_of(
        "flows.flow_matching",
        network=network,
        interpolant=interpolant,
        times=times,
        coupling=coupling,
        targets=targets,
        std_0=std_0,
        condition_dropout=condition_dropout,
        batch_size=batch_size,
    )
    learner = flow_learner(init, sample, loss, config, DEFAULTS, prepare)
    return Flow(learner, velocity, None, functools.partial(guided, learner, velocity) if condition_dropout else None)


def empirical_flow_matching(
    network: nn.Module,
    num_reference_points: int = 256,
    *,
    sharing: Literal["shared", "per_sample"] = "shared",
    replacement: bool = False,
    interpolant: Interpolant = linear,
    std_0: float = 1.0,
    batch_size: int = 256,
) -> Flow:
    r"""Flow matching whose targets are mean velocities over M points of the data set: of less variance.

    .. math:: \min_\theta E | v_\theta(t, x_t) - \hat u_M(t, x_t; b) |^2, \qquad b^{(1)} = x_1

    Args:
      network: a flax module `(times [1], x, cond) -> dx`, of one point, as `networks.TimeMLP` or `networks.UNet`.
      num_reference_points: M, at least 1; where the batch shares its reference points, at least `batch_size`.
      sharing, replacement: as in `EmpiricalTargets`.
      interpolant, std_0, batch_size: as in `flow_matching`.

    Returns:
      A flow, as `flow_matching` makes it.

    Raises:
      ValueError: as `flow_matching`; in `fit` for an M out of range, or more than the data set has without replacement.

    >>> import gfm_jax as gfm
    >>> flow = gfm.empirical_flow_matching(gfm.networks.TimeMLP((16,)), 32, batch_size=16)
    >>> dict(flow.learner.config.choices)["targets"]
    EmpiricalTargets(num_reference_points=32, sharing='shared', replacement=False)

    On the closed form of flow matching, arXiv 2506.03719, Algorithm 2.
    """
    targets = EmpiricalTargets(num_reference_points, sharing, replacement)
    return flow_matching(network, targets=targets, interpolant=interpolant, std_0=std_0, batch_size=batch_size)
