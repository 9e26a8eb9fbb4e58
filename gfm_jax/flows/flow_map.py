"""Flow maps by self-distillation: any horizon in one call, learned without a teacher."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Generator, Interpolant
from gfm_jax.checks import check_choices, check_count
from gfm_jax.fitting import fit as minimise
from gfm_jax.flows.flow_data import (
    Conditions,
    FlowData,
    FlowParams,
    adam_on_cosine,
    check_conditions,
    check_network,
    check_recipe,
    check_start,
    draw_ends,
    flow_data,
    map_points,
    sources_of,
)
from gfm_jax.flows.mean_velocity import jump
from gfm_jax.flows.interpolants import interpolate, linear
from gfm_jax.flows.residuals import eulerian, guided, lagrangian, progressive, weighted_square
from gfm_jax.flows.times import dyadic, triangle
from gfm_jax.networks import MLP, init_network
from gfm_jax.solve import solve_flow_map

__all__ = ["OBJECTIVES", "FlowMapRecipe", "self_distilled_flow_map"]

OBJECTIVES = ("lsd", "esd", "psd_m", "psd_u", "mean_flow", "shortcut")
STOPS_OF = {
    "lsd": ("teacher", "point", "none"),
    "esd": ("teacher", "velocity", "bracket", "none"),
    "psd_m": ("teacher", "point", "none"),
    "psd_u": ("teacher", "point", "none"),
    "mean_flow": ("teacher", "velocity", "bracket", "none"),
    "shortcut": ("teacher", "point", "none"),
}
STOPS = {"lsd": "teacher", "esd": "teacher", "mean_flow": "bracket"}  # as published; of the others "teacher"


class FlowMapRecipe(NamedTuple):
    """How a flow map is fitted.

    Attributes:
      objective: "lsd", "esd", "psd_m", "psd_u" (Lagrangian, Eulerian, progressive with the midpoint or a uniform point),
        "mean_flow" or "shortcut".
      stop: where the teacher's gradient stops, as `flows.residuals` names it; by default as published.
      diagonal_share: share of a batch that learns v_{t,t} from paths; the others learn from their own velocity.
      interpolant: the path.
      std_0: standard deviation of the source N(0, std_0^2 I); by default that of the data.
      learned_weight: whether w(s, t) is learned, by a small network.
      guidance: the largest strength a of classifier-free guidance that a map is distilled for, at least 1: conditions are then
        followed by a / guidance, and half of each batch's paths forget their condition. 0 for none.
      num_steps, batch_size, peak_rate, clip, average: of the fit, by Adam on a cosine; the average is over parameters.
      optimizer: another one, which makes `peak_rate` and `clip` its own affair.
    """

    objective: str = "lsd"
    stop: str | None = None
    diagonal_share: float = 0.75
    interpolant: Interpolant = linear
    std_0: float | None = None
    learned_weight: bool = False
    guidance: float = 0.0
    num_steps: int = 20_000
    batch_size: int = 256
    peak_rate: float = 2e-3
    clip: float = 10.0
    average: float = 0.999
    optimizer: optax.GradientTransformation | None = None


def self_distilled_flow_map(network: nn.Module, objective: str = "lsd", **choices) -> Generator:
    r"""A generator that learns the flow map of its own velocity.

    .. math:: \min_\theta \; E |v_{t,t}(x_t) - \dot x_t|^2 + E |r_{s,t}(x_s)|^2

    each over its share of a batch, with r one of the residuals of `flows.residuals`, s <= t uniform on the triangle,
    and squares summed over dimensions.

    Args:
      network: a flax module `(times [2], x [dim], cond) -> [dim]`, as `networks.TimeMLP`: the mean velocity v_{s,t}(x).
      objective: one of "lsd", "esd", "psd_m", "psd_u", "mean_flow", "shortcut".
      **choices: any other field of `FlowMapRecipe`.

    Returns:
      A generator: `fit(key, data, cond=None, *, x_0=None, start=None, folder=None, mesh=None, progress=None)`, where `x_0` are
      sources paired with the targets, and `generate(key, params, num, cond=None, *, num_jumps=1, x_0=None)`, in one compiled
      call. Under guidance `cond` has one more column at the end: the strength, in units of the largest.

    Raises:
      ValueError: for an unknown objective, stop or choice, a share outside (0, 1), guidance without conditions, or with an
        objective that has no velocity as its teacher.

    How to build a consistency model, arXiv 2505.18825, Algorithm 1.
    """
    check_choices(FlowMapRecipe, choices)
    recipe = FlowMapRecipe(objective, **choices)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    check_network(network)
    check_recipe(recipe)
    stops = STOPS_OF[objective]
    if recipe.stop is not None and recipe.stop not in stops:
        raise ValueError(f"stop: expected one of {', '.join(stops)} with {objective!r}, got {recipe.stop!r}")
    if not 0 < recipe.diagonal_share < 1:
        raise ValueError(f"diagonal_share: expected a share in (0, 1), got {recipe.diagonal_share}")
    if not 0 < _num_diagonal(recipe) < recipe.batch_size:
        raise ValueError(
            f"batch_size: expected enough for both shares of {recipe.diagonal_share}, got {recipe.batch_size}"
        )
    if recipe.std_0 is not None and not 0 < recipe.std_0 < jnp.inf:
        raise ValueError(f"std_0: expected a positive standard deviation, got {recipe.std_0}")
    if recipe.guidance and not 1 <= recipe.guidance < jnp.inf:
        raise ValueError(f"guidance: expected a largest strength of at least 1, or 0 for none, got {recipe.guidance}")
    if recipe.guidance and objective not in ("lsd", "esd"):
        raise ValueError(
            f"guidance: expected an objective with a velocity as its teacher, lsd or esd, got {objective!r}"
        )

    def flow_map(params, s, t, x, cond=None):
        return jump(s, t, x, network.apply(params.network["field"], jnp.stack([s, t]), x, cond))

    def velocity(params, t, x, cond=None):
        return network.apply(params.network["field"], jnp.stack([t, t]), x, cond)

    fit, generate = functools.partial(_fit, network, recipe), functools.partial(_generate, flow_map)
    return Generator(fit, generate, velocity, flow_map)


def _fit(
    network, recipe, key, data, cond=None, *, x_0=None, start=None, folder=None, mesh=None, progress=None
) -> FlowParams:
    data = flow_data(data, cond, x_0, recipe.std_0)
    if recipe.guidance and cond is None:
        raise ValueError("guidance: expected conditions to guide to, got none")
    key_init, key_weight, key_fit = jax.random.split(key, 3)
    inputs = (jnp.zeros(2), data.x_1[0], _cond_of_one(recipe, data))
    conditions = Conditions(0 if cond is None else len(inputs[2]))
    if start is None:
        params = {"field": init_network(network, key_init, *inputs)}
        if recipe.learned_weight:
            params["weight"] = WEIGHT.init(key_weight, jnp.zeros(2))
    else:
        params = {"field": jax.eval_shape(network.init, key_init, *inputs)}
        if recipe.learned_weight:
            params["weight"] = jax.eval_shape(WEIGHT.init, key_weight, jnp.zeros(2))
        params = check_start(start, params, conditions)
    loss, sample, optimizer = _objective(network, recipe)
    options = {"average": recipe.average, "folder": folder, "mesh": mesh, "progress": progress}
    fitted = minimise(key_fit, loss, params, data, sample, optimizer, recipe.num_steps, **options)
    history = {"loss": fitted.losses, "gradient_norm": fitted.gradient_norms, **fitted.info}
    return FlowParams(fitted.params, jnp.full_like(data.x_1[0], data.std_0), history, conditions)


# --- the loss ---------------------------------------------------------------------------------------------------------

WEIGHT = MLP((32, 1), nn.silu, zero_output=True)  # w(s, t)


class Batch(NamedTuple):
    """Points on paths, x_s at s, to be moved to t; the first ones have s = t."""

    s: Float[Array, " batch"]
    t: Float[Array, " batch"]
    x_s: Float[Array, "batch dim"]
    dx_s: Float[Array, "batch dim"]
    cond: Float[Array, "batch conditions"] | None
    gamma: Float[Array, " batch"]


def _num_diagonal(recipe):
    return round(recipe.diagonal_share * recipe.batch_size)


@functools.cache  # so that a second fit compiles nothing
def _objective(network, recipe: FlowMapRecipe):
    num_diagonal = _num_diagonal(recipe)

    def sample(key, data: FlowData) -> Batch:
        key_ends, key_diagonal, key_times, key_gamma, key_cond = jax.random.split(key, 5)
        num_off = recipe.batch_size - num_diagonal
        now = jax.random.uniform(key_diagonal, (num_diagonal,))
        draw_times = dyadic if recipe.objective == "shortcut" else triangle
        s, t = (jnp.concatenate([now, off]) for off in draw_times(key_times, num_off))
        x_0, x_1, cond = draw_ends(key_ends, data, recipe.batch_size)
        path = jax.vmap(functools.partial(interpolate, recipe.interpolant))(s.astype(x_1.dtype), x_0, x_1)
        gamma = jax.random.uniform(key_gamma, s.shape) if recipe.objective == "psd_u" else jnp.full_like(s, 0.5)
        if recipe.guidance:
            cond = _with_strength(recipe, key_cond, cond, num_diagonal)
        return Batch(path.t, t.astype(x_1.dtype), path.x_t, path.dx_t, cond, gamma.astype(x_1.dtype))

    def loss(params, key, batch: Batch):
        apply = lambda s, t, x, cond: network.apply(params["field"], jnp.stack([s, t]), x, cond)
        weight = lambda s, t: (
            WEIGHT.apply(params["weight"], jnp.stack([s, t], -1))[..., 0] if recipe.learned_weight else 0.0
        )
        here, off = (jax.tree.map(lambda leaf, part=part: leaf[part], batch) for part in _shares(num_diagonal))
        along = jax.vmap(apply)(here.s, here.s, here.x_s, here.cond) - here.dx_s
        jumps = jax.vmap(functools.partial(_residual, recipe, apply))(off)
        terms = [weighted_square(along, weight(here.s, here.s)), weighted_square(jumps, weight(off.s, off.t))]
        info = {"diagonal": jnp.mean(jnp.sum(along**2, -1)), "residual": jnp.mean(jnp.sum(jumps**2, -1))}
        return jnp.concatenate(terms).mean(), info

    return loss, sample, recipe.optimizer or adam_on_cosine(recipe.peak_rate, recipe.num_steps, recipe.clip)


def _shares(num_diagonal):
    return slice(0, num_diagonal), slice(num_diagonal, None)


def _residual(recipe, apply, one: Batch):
    """r_{s,t}(x_s) of one point."""
    v = lambda s, t, x: apply(s, t, x, one.cond)
    stop = recipe.stop or STOPS.get(recipe.objective, "teacher")
    teacher = _guided_teacher(recipe, apply, one.cond) if recipe.guidance else None
    if recipe.objective == "lsd":
        return lagrangian(v, one.s, one.t, one.x_s, stop=stop, teacher=teacher)
    if recipe.objective == "esd":
        return eulerian(v, one.s, one.t, one.x_s, stop=stop, teacher=teacher)
    if recipe.objective == "mean_flow":
        return eulerian(v, one.s, one.t, one.x_s, stop=stop, tangent=one.dx_s)
    return progressive(v, one.s, one.t, one.x_s, one.gamma, stop=stop)


# --- guidance: conditions are followed by the strength in units of the largest; nothing known is zero -----------------


def _cond_of_one(recipe, data):
    if data.cond is None:
        return None
    return jnp.append(data.cond[0], 1.0) if recipe.guidance else data.cond[0]


def _with_strength(recipe, key, cond, num_diagonal):
    """On the diagonal the plain velocity, of strength 1, of half the points without their condition; off it, any strength."""
    key_forget, key_strength = jax.random.split(key)
    rows = jnp.arange(len(cond))
    forget = (rows < num_diagonal) & jax.random.bernoulli(key_forget, shape=rows.shape)
    strength = jnp.where(rows < num_diagonal, 1 / recipe.guidance, jax.random.uniform(key_strength, rows.shape))
    return jnp.concatenate([jnp.where(forget[:, None], 0.0, cond), strength[:, None].astype(cond.dtype)], axis=1)


def _guided_teacher(recipe, apply, cond):
    plain = cond.at[-1].set(1 / recipe.guidance)
    nothing = plain.at[:-1].set(0)

    def teacher(t, x):
        return guided(apply(t, t, x, plain), apply(t, t, x, nothing), recipe.guidance * cond[-1])

    return teacher


# --- generation -------------------------------------------------------------------------------------------------------


def _generate(flow_map, key, params: FlowParams, num: int, cond=None, *, num_jumps: int = 1, x_0=None):
    num_jumps = check_count("num_jumps", num_jumps)
    cond = check_conditions(cond, check_count("num", num), params.conditions)
    x_0 = sources_of(key, params, num, x_0)
    return _jump_all(flow_map, num_jumps, params._replace(history={}), x_0, cond)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jump_all(flow_map, num_jumps, params, x_0, cond):
    def one(ends):
        x, c = ends
        return solve_flow_map(lambda s, t, x: flow_map(params, s, t, x, c), x, num_jumps=num_jumps)

    return map_points(one, (x_0, cond))
