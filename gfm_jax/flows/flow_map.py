"""Flow maps by self-distillation: samples in one step or a few, learned without a teacher."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Defaults, Flow, Interpolant, config_of
from gfm_jax.checks import check_count, is_traced
from gfm_jax.flows.flow_data import (
    FlowData,
    adam_on_cosine,
    check_network,
    check_std,
    draw_ends,
    flow_data,
    flow_learner,
)
from gfm_jax.flows.guidance import guided_velocity
from gfm_jax.flows.interpolants import interpolate, linear
from gfm_jax.flows.mean_velocity import flow_map_step
from gfm_jax.flows.residuals import Residual, asked_by, check_residual, error_of, lsd, weighted_square
from gfm_jax.networks import MLP, init_network

__all__ = ["flow_map"]

DEFAULTS = Defaults(num_steps=20_000, learning_rate=2e-3, optimizer=adam_on_cosine)
WEIGHT = MLP((32, 1), nn.silu, zero_output=True)  # w(s, t)


class Batch(NamedTuple):
    """Points on paths, x_s at s, to be moved to t; the first ones have s = t."""

    s: Float[Array, " batch"]
    t: Float[Array, " batch"]
    x_s: Float[Array, "batch ..."]
    dx_s: Float[Array, "batch ..."]
    cond: Float[Array, "batch conditions"] | None
    gamma: Float[Array, " batch"]


def flow_map(
    network: nn.Module,
    residual: Residual | Callable[..., Array] = lsd,
    *,
    diagonal_fraction: float = 0.75,
    interpolant: Interpolant = linear,
    std_0: float | None = None,
    learned_weight: bool = False,
    max_guidance: float | None = None,
    batch_size: int = 256,
) -> Flow:
    r"""A flow whose map from any time to any later one is learned from its own velocity.

    .. math:: \min_\theta \; E |v_{t,t}(x_t) - \dot x_t|^2 + E |r_{s,t}(x_s)|^2, \qquad X_{s,t}(x) = x + (t - s) v_{s,t}(x)

    each over its fraction of a batch, with squares summed over dimensions. Use it where samples have to come in one step or a
    few; `flow_matching` is cheaper to fit.

    Args:
      network: a flax module `(times [2], x, cond) -> dx`, of one point, as `networks.TimeMLP` or `networks.UNet`: the mean
        velocity v_{s,t}(x).
      residual: `flows.lsd`, `esd`, `psd_midpoint`, `psd_uniform`, `mean_flow` or `shortcut`, a `Residual` of your own, or its
        error alone.
      diagonal_fraction: fraction of a batch, in (0, 1), that learns v_{t,t} from paths; the others learn from v_{t,t}.
      interpolant: the path, (alpha, beta).
      std_0: standard deviation of the source N(0, std_0^2 I), above 0; None for that of the data.
      learned_weight: whether a weight w(s, t) of the loss is learned, by a small network.
      max_guidance: the largest strength of classifier-free guidance that the map learns, at least 1; half of the paths of each
        batch are then learned without their condition. None for no guidance.
      batch_size: points in a batch.

    Returns:
      A flow, fitted by `fit(key, flow, data)`, data [num, dim] or of any event shape, such as images, a pair
      (data, cond [num, conditions]) or `FlowData`, and drawn from by `sample`.

    Raises:
      ValueError: for a number out of range, an unknown stop, a network that cannot be hashed, or guidance by a residual that
        takes no teacher; in `fit` for guidance without conditions.

    >>> import gfm_jax as gfm, jax
    >>> flow = gfm.flow_map(gfm.networks.TimeMLP((16,)))
    >>> params, info = gfm.fit(jax.random.key(0), flow, jax.random.normal(jax.random.key(1), (50, 2)), num_steps=3)
    >>> flow.flow_map(params, 0.0, 1.0, jax.numpy.zeros(2)).shape
    (2,)

    How to build a consistency model, arXiv 2505.18825, Algorithm 1.
    """
    check_network(network)
    batch_size = check_count("batch_size", batch_size)
    residual = residual if isinstance(residual, Residual) else Residual(residual)
    check_residual(residual)
    if not 0 < diagonal_fraction < 1:
        raise ValueError(f"diagonal_fraction: expected a fraction in (0, 1), got {diagonal_fraction}")
    num_diagonal = round(diagonal_fraction * batch_size)
    if not 0 < num_diagonal < batch_size:
        raise ValueError(f"batch_size: expected enough for both fractions of {diagonal_fraction}, got {batch_size}")
    if std_0 is not None:
        check_std("std_0", std_0)
    if max_guidance is not None and not 1 <= max_guidance < jnp.inf:
        raise ValueError(f"max_guidance: expected a strength of at least 1, or None, got {max_guidance}")
    if max_guidance is not None and "teacher" not in asked_by(residual):
        raise ValueError(f"max_guidance: expected a residual that takes a teacher, got {residual.error}")
    interpolant = Interpolant(*interpolant)

    def prepare(data):
        data = flow_data(data, std_0)
        if max_guidance is not None and data.cond is None:
            raise ValueError("max_guidance: expected conditions to guide to, got none")
        return data

    def init(key, data):
        key_field, key_weight, _ = jax.random.split(key, 3)
        cond = None if data.cond is None else data.cond[0]
        cond = cond if max_guidance is None else _with_strength(cond, 1.0)
        params = {"field": init_network(network, key_field, jnp.zeros(2), data.x_1[0], cond)}
        if learned_weight:
            params["weight"] = WEIGHT.init(key_weight, jnp.zeros(2))
        return params

    def sample(key, data: FlowData) -> Batch:
        key_ends, key_diagonal, key_times, key_gamma, key_cond = jax.random.split(key, 5)
        now = jax.random.uniform(key_diagonal, (num_diagonal,))
        s, t = (jnp.concatenate([now, off]) for off in residual.times(key_times, batch_size - num_diagonal))
        x_0, x_1, cond = draw_ends(key_ends, data, batch_size)
        path = jax.vmap(functools.partial(interpolate, interpolant))(s.astype(x_1.dtype), x_0, x_1)
        gamma = residual.gamma
        splits = jax.random.uniform(key_gamma, s.shape) if gamma is None else jnp.full_like(s, gamma)
        if max_guidance is not None:
            cond = _draw_strengths(max_guidance, key_cond, cond, num_diagonal)
        return Batch(path.t, t.astype(x_1.dtype), path.x_t, path.dx_t, cond, splits.astype(x_1.dtype))

    def residual_of(apply, one: Batch):
        teacher = None if max_guidance is None else _guided_teacher(max_guidance, apply, one.cond)
        v = lambda s, t, x: apply(s, t, x, one.cond)
        return error_of(residual, v, one.s, one.t, one.x_s, gamma=one.gamma, dx=one.dx_s, teacher=teacher)

    def loss(params, key, batch: Batch):
        apply = lambda s, t, x, cond: network.apply(params["field"], jnp.stack([s, t]), x, cond)
        learned: Callable[..., Any] = WEIGHT.apply
        weight = lambda s, t: learned(params["weight"], jnp.stack([s, t], -1))[..., 0] if learned_weight else 0.0
        here, off = (jax.tree.map(lambda leaf, part=part: leaf[part], batch) for part in _parts(num_diagonal))
        along = jax.vmap(apply)(here.s, here.s, here.x_s, here.cond) - here.dx_s
        errors = jax.vmap(functools.partial(residual_of, apply))(off)
        along, errors = (error.reshape(len(error), -1) for error in (along, errors))
        terms = [weighted_square(along, weight(here.s, here.s)), weighted_square(errors, weight(off.s, off.t))]
        info = {"diagonal": jnp.mean(jnp.sum(along**2, -1)), "residual": jnp.mean(jnp.sum(errors**2, -1))}
        return jnp.concatenate(terms).mean(), info

    def with_strength(strength):
        """The flow at a strength of guidance, in units of the largest, beside the condition."""
        of = lambda cond: (
            cond if max_guidance is None or cond is None else _with_strength(cond, strength / max_guidance)
        )

        def mean_velocity(params, s, t, x, cond) -> Any:
            return network.apply(params.network["field"], jnp.stack([s, t]), x, of(cond))

        velocity = lambda params, t, x, cond=None: mean_velocity(params, t, t, x, cond)
        move = lambda params, s, t, x, cond=None: flow_map_step(s, t, x, mean_velocity(params, s, t, x, cond))
        return Flow(learner, velocity, move, None if max_guidance is None else with_strength_checked)

    def with_strength_checked(strength):
        if not is_traced(strength) and not 0 <= strength <= max_guidance:
            raise ValueError(f"strength: expected at most max_guidance, {max_guidance}, got {strength}")
        return with_strength(strength)

    config = config_of(
        "flows.flow_map",
        network=network,
        residual=residual,
        diagonal_fraction=diagonal_fraction,
        interpolant=interpolant,
        std_0=std_0,
        learned_weight=learned_weight,
        max_guidance=max_guidance,
        batch_size=batch_size,
    )
    learner = flow_learner(init, sample, loss, config, DEFAULTS, prepare)
    return with_strength(1.0)


def _parts(num_diagonal):
    return slice(0, num_diagonal), slice(num_diagonal, None)


# --- guidance: conditions are followed by the strength in units of the largest; nothing known is zero -----------------


def _with_strength(cond, strength):
    return jnp.append(cond, jnp.asarray(strength, cond.dtype))


def _draw_strengths(max_guidance, key, cond, num_diagonal):
    """On the diagonal the plain velocity, of strength 1, of half the points without their condition; off it, any strength."""
    key_drop, key_strength = jax.random.split(key)
    rows = jnp.arange(len(cond))
    dropped = (rows < num_diagonal) & jax.random.bernoulli(key_drop, shape=rows.shape)
    strength = jnp.where(rows < num_diagonal, 1 / max_guidance, jax.random.uniform(key_strength, rows.shape))
    return jnp.concatenate([jnp.where(dropped[:, None], 0.0, cond), strength[:, None].astype(cond.dtype)], axis=1)


def _guided_teacher(max_guidance, apply, cond):
    plain = cond.at[-1].set(1 / max_guidance)
    nothing = plain.at[:-1].set(0)

    def teacher(t, x):
        return guided_velocity(apply(t, t, x, plain), apply(t, t, x, nothing), max_guidance * cond[-1])

    return teacher
