"""Flow matching, and with M > 1 empirical flow matching: learn the velocity, follow it from noise to data."""

import functools
from typing import Any, NamedTuple

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
from gfm_jax.flows.targets import empirical_path, flow_matching_loss
from gfm_jax.flows.interpolants import interpolate, linear
from gfm_jax.flows.reference_points import draw_companions
from gfm_jax.flows.residuals import guided
from gfm_jax.networks import init_network
from gfm_jax.solve import solve_flow

__all__ = ["VelocityRecipe", "empirical_flow_matching"]


class VelocityRecipe(NamedTuple):
    """How a velocity is fitted.

    Attributes:
      num_companions: M; 1 is conditional flow matching.
      companions: "shared" by the batch, which M then includes, or "per_sample".
      replacement: whether a companion may come twice.
      interpolant: the path.
      std_0: standard deviation of the source N(0, std_0^2 I).
      forget: share of the paths that forget their condition, in [0, 1): zeros in its place; needed for guidance.
      num_steps, batch_size, peak_rate, clip, average: of the fit, by Adam on a cosine; the average is over parameters.
      optimizer: another one, which makes `peak_rate` and `clip` its own affair.
      solver_steps: steps of Heun's method that generate.
    """

    num_companions: int = 1
    companions: str = "shared"
    replacement: bool = False
    interpolant: Interpolant = linear
    std_0: float = 1.0
    forget: float = 0.0
    num_steps: int = 10_000
    batch_size: int = 256
    peak_rate: float = 1e-3
    clip: float = 10.0
    average: float = 0.999
    optimizer: optax.GradientTransformation | None = None
    solver_steps: int = 50


def empirical_flow_matching(network: nn.Module, num_companions: int = 1, **choices) -> Generator:
    r"""A generator that learns a velocity from paths, and follows it by an ODE solver.

    .. math:: \min_\theta E | v_\theta(x_t, t) - \hat u_M(x_t, t; b) |^2, \qquad b^{(1)} = x_1

    With M = 1, or with sources that are paired with targets, this is conditional flow matching; with M > 1 its target is the
    mean velocity over companions, `flows.empirical_path`.

    Args:
      network: a flax module `(times [1], x [dim], cond) -> [dim]`, as `networks.TimeMLP`.
      num_companions: M.
      **choices: any other field of `VelocityRecipe`.

    Returns:
      A generator: `fit(key, data, cond=None, *, x_0=None, start=None, folder=None, mesh=None, progress=None)`, and
      `generate(key, params, num, cond=None, *, x_0=None, guidance=1.0, num_steps=None, solver=None)`, in one compiled call,
      where a guidance above 1 moves away from what is generated without a condition.

    Raises:
      ValueError: for an unknown choice, a std_0 that is not positive, a share outside [0, 1); in `generate` for guidance where
        no condition was forgotten; in `fit` for M > 1 with conditions or with paired
        sources, whose closed form is another one.

    On the closed form of flow matching, arXiv 2506.03719, Algorithm 2.
    """
    check_choices(VelocityRecipe, choices)
    recipe = VelocityRecipe(num_companions, **choices)
    check_network(network)
    check_recipe(recipe)
    check_count("solver_steps", recipe.solver_steps)
    if not 0 < recipe.std_0 < jnp.inf:
        raise ValueError(f"std_0: expected a Gaussian source of a positive standard deviation, got {recipe.std_0}")
    if recipe.companions not in ("per_sample", "shared"):
        raise ValueError(f"companions: expected 'per_sample' or 'shared', got {recipe.companions!r}")
    if not 0 <= recipe.forget < 1:
        raise ValueError(f"forget: expected a share in [0, 1), got {recipe.forget}")

    def velocity(params, t, x, cond=None):
        return network.apply(params.network, jnp.atleast_1d(t), x, cond)

    return Generator(functools.partial(_fit, network, recipe), functools.partial(_generate, velocity, recipe), velocity)


def _fit(
    network, recipe, key, data, cond=None, *, x_0=None, start=None, folder=None, mesh=None, progress=None
) -> FlowParams:
    data = flow_data(data, cond, x_0, recipe.std_0)
    conditions = Conditions(0 if cond is None else data.cond.shape[1])
    if recipe.num_companions > 1 and not (cond is None and x_0 is None):
        raise ValueError(
            "num_companions: expected 1 with conditions or paired sources, whose closed form is another one"
        )
    if recipe.num_companions != 1:  # what is wrong with it is said before any long work
        jax.eval_shape(lambda: _draw_index(recipe, key, len(data.x_1)))
    key_init, key_fit = jax.random.split(key)
    cond_one = None if cond is None else data.cond[0]
    inputs = (jnp.zeros(1), data.x_1[0], cond_one)
    if start is None:
        params = init_network(network, key_init, *inputs)
    else:
        params = check_start(start, jax.eval_shape(network.init, key_init, *inputs), conditions)
    loss, sample, optimizer = _objective(network, recipe)
    options = {"average": recipe.average, "folder": folder, "mesh": mesh, "progress": progress}
    fitted = minimise(key_fit, loss, params, data, sample, optimizer, recipe.num_steps, **options)
    return FlowParams(
        fitted.params,
        jnp.full_like(data.x_1[0], data.std_0),
        {"loss": fitted.losses, "gradient_norm": fitted.gradient_norms},
        conditions,
    )


def _draw_index(recipe, key, num):
    return draw_companions(key, num, recipe.batch_size, recipe.num_companions, recipe.companions, recipe.replacement)


@functools.cache  # so that a second fit compiles nothing
def _objective(network, recipe):
    def sample(key, data: FlowData):
        key_ends, key_time, key_index = jax.random.split(key, 3)
        x_0, x_1, cond = draw_ends(key_ends, data, recipe.batch_size)
        if recipe.forget and cond is not None:
            forgotten = jax.random.bernoulli(
                key_index, recipe.forget, (recipe.batch_size, 1)
            )  # never beside companions
            cond = jnp.where(forgotten, 0.0, cond)
        companions = None
        if recipe.num_companions > 1:
            own, index = _draw_index(recipe, key_index, len(data.x_1))
            x_1, companions = data.x_1[own], data.x_1[index]
        t = jax.random.uniform(key_time, (recipe.batch_size,), x_1.dtype)
        path = jax.vmap(functools.partial(interpolate, recipe.interpolant))(t, x_0, x_1)
        if companions is not None:
            source = (0.0, recipe.std_0)
            path = empirical_path(path, companions, interpolant=recipe.interpolant, source=source)
        return path, cond

    def loss(params, key, batch):
        path, cond = batch
        v = jax.vmap(lambda t, x, cond: network.apply(params, t[None], x, cond))(path.t, path.x_t, cond)
        return flow_matching_loss(v, path), {}

    return loss, sample, recipe.optimizer or adam_on_cosine(recipe.peak_rate, recipe.num_steps, recipe.clip)


def _generate(
    velocity,
    recipe,
    key,
    params: FlowParams,
    num: int,
    cond=None,
    *,
    x_0=None,
    guidance: float = 1.0,
    num_steps: int | None = None,
    solver: Any = None,
) -> Float[Array, "num dim"]:
    with_guidance = isinstance(guidance, jax.core.Tracer) or guidance != 1
    if with_guidance and (cond is None or not recipe.forget):
        raise ValueError(f"guidance: expected conditions, some of which the fit forgot, or 1, got {guidance}")
    num_steps = check_count("num_steps", recipe.solver_steps if num_steps is None else num_steps)
    cond = check_conditions(cond, check_count("num", num), params.conditions)
    x_0 = sources_of(key, params, num, x_0)
    kept = params._replace(history={})
    return _solve_all(velocity, num_steps, solver, with_guidance, kept, x_0, cond, guidance)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _solve_all(velocity, num_steps, solver, with_guidance, params, x_0, cond, strength):
    import diffrax  # on first use: it takes half a second

    def one(ends):
        x, c = ends

        def field(t, x):
            v = velocity(params, t, x, c)
            return guided(v, velocity(params, t, x, jnp.zeros_like(c)), strength) if with_guidance else v

        return solve_flow(field, x, num_steps=num_steps, solver=diffrax.Heun() if solver is None else solver)[0]

    return map_points(one, (x_0, cond))
