"""Tuning a flow of weights for a task that it was not fitted to: through its solver, or by a reward on its samples.

Both are pure functions from parameters to parameters, to be mapped over tasks and compiled by the caller. The third way, some
steps of an optimizer on the weights that were generated, is `meta_learning.adapt`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Generator
from gfm_jax.checks import check_count, is_traced
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.flows import adjoint_matching_targets, draw_gaussian
from gfm_jax.flows.flow_data import check_conditions
from gfm_jax.solve import solve_flow
from gfm_jax.weights.flow_to_learn import FlowToLearnParams

__all__ = ["TuningRecipe", "tune_by_adjoint_matching", "tune_through_solver"]


class TuningRecipe(NamedTuple):
    """How a flow is tuned.

    Attributes:
      num_steps, learning_rate: of Adam.
      batch_size: samples a step.
      solver_steps: steps of Heun's method through which the solver's gradient goes, or of the diffusion that adjoints go back.
      temperature: of the source that samples are drawn from, where it is tuned through the solver.
    """

    num_steps: int = 30
    learning_rate: float = 1e-4
    batch_size: int = 16
    solver_steps: int = 8
    temperature: float = 1.0


def tune_through_solver(
    generator: Generator, loss: Callable[[Array, PyTree], Array], recipe: TuningRecipe = TuningRecipe()
) -> Callable[..., FlowToLearnParams]:
    r"""Descends a loss of what a flow generates, with gradients through its few steps.

    .. math:: \min_\theta E_{z_0} \, \ell(z_\theta(1)), \qquad \dot z = v_\theta(t, z; y), \; z(0) = z_0

    Args:
      generator: as `flow_to_learn` makes it, with a Gaussian source; a flow map is tuned in one jump.
      loss: `(z, examples) -> scalar`, of a code, such as the loss of decoded weights on a support set.
      recipe: of the tuning.

    Returns:
      `(key, params, examples, cond=None) -> params`, of one task; its `cond` is [conditions].

    Raises:
      ValueError: in the call, for a source that is not Gaussian.
    """

    _check_recipe(recipe)

    def tune(key, params: FlowToLearnParams, examples, cond=None):
        source = _gaussian_source(params)
        cond = _one_condition(cond, params)

        def objective(network, key):
            own = params._replace(flow=params.flow._replace(network=network))
            z_0 = draw_gaussian(key, source, recipe.batch_size, recipe.temperature)
            return jnp.mean(jax.vmap(lambda z: loss(z, examples))(_follow(generator, recipe, own, z_0, cond)))

        return _descend(key, params, objective, recipe)

    return tune


def tune_by_adjoint_matching(
    generator: Generator, reward: Callable[[Array, PyTree], Array], recipe: TuningRecipe = TuningRecipe(solver_steps=20)
) -> Callable[..., FlowToLearnParams]:
    r"""Tilts the law of what a flow generates by a reward, and stays near to it otherwise.

    .. math:: p(z) \propto p_{\text{base}}(z; y) \, e^{r(z)}, \qquad
       \min_\theta E \sum_s | v_\theta(s, z_s; y) - v^*(s, z_s) |^2

    with the targets of `flows.adjoint_matching_targets` along paths of the flow that is being tuned.

    Args:
      generator: as `flow_to_learn` makes it, of a velocity along straight lines (the `linear` interpolant).
      reward: `(z, examples) -> scalar`, of a code, such as minus the loss of decoded weights on a support set, in nats.
      recipe: of the tuning.

    Returns:
      `(key, params, examples, cond=None) -> params`, of one task; its `cond` is [conditions].

    Raises:
      ValueError: for a flow map or no flow at all, a temperature that is not 1; in the call, for a source that is not Gaussian
        or is coupled to the codes: only from an independent Gaussian is there a diffusion with the flow's marginals that
        forgets where it started, and without that the law would be tilted by the value of the start as well.

    Adjoint matching, arXiv 2409.08861; of weights, arXiv 2507.10623.
    """
    of_codes = generator.velocity
    if of_codes is None or generator.flow_map is not None:
        got = "none" if of_codes is None else "a flow map, which adjoints do not tune"
        raise ValueError(f"generator: expected one that follows a velocity, got {got}")
    if recipe.temperature != 1:
        raise ValueError(f"temperature: expected 1, the law that is tilted, got {recipe.temperature}")

    _check_recipe(recipe)

    def tune(key, params: FlowToLearnParams, examples, cond=None):
        source = _gaussian_source(params)
        cond = _one_condition(cond, params)
        if params.origin.coupling != "independent":
            raise ValueError(
                f"params: expected a source independent of the codes, got coupling {params.origin.coupling!r}: "
                "the samples would be tilted by where they start too"
            )
        base = lambda t, z: of_codes(params, t, z, cond)

        def objective(network, key):
            own = params._replace(flow=params.flow._replace(network=network))
            velocity = lambda t, z: of_codes(own, t, z, cond)
            key_source, key_paths = jax.random.split(key)

            def one(key, z_0):
                gain = lambda z: reward(z, examples)
                args = (key, velocity, base, gain, source, z_0, recipe.solver_steps)
                times, points, targets = adjoint_matching_targets(*args)
                return jnp.mean(jnp.sum((jax.vmap(velocity)(times, points) - targets) ** 2, axis=-1))

            z_0 = draw_gaussian(key_source, source, recipe.batch_size)
            return jnp.mean(jax.vmap(one)(jax.random.split(key_paths, recipe.batch_size), z_0))

        return _descend(key, params, objective, recipe)

    return tune


def _check_recipe(recipe):
    for name in ("num_steps", "batch_size", "solver_steps"):
        check_count(name, getattr(recipe, name))
    for name, least in (("learning_rate", "more than 0"), ("temperature", "at least 0")):
        value = getattr(recipe, name)
        if is_traced(value):
            continue
        if not 0 <= value < jnp.inf or (name == "learning_rate" and value == 0):
            raise ValueError(f"{name}: expected {least}, got {value}")


def _one_condition(cond, params):
    """The condition of one task, checked as `generate` checks those of many."""
    if cond is not None and jnp.ndim(cond) != 1:
        raise ValueError(
            f"cond: expected that of one task [conditions], got shape {jnp.shape(cond)}; map with jax.vmap"
        )
    many = check_conditions(None if cond is None else jnp.asarray(cond)[None], 1, params.flow.conditions)
    return None if many is None else many[0]


def _gaussian_source(params):
    if params.source is None:
        raise ValueError(f"params: expected a flow from a Gaussian source, got source {params.origin.source!r}")
    return params.source


def _follow(generator, recipe, params, z, cond) -> Float[Array, "num codes"]:
    """Where all of the samples end, solved as one: each on its own would have a gradient for every parameter."""
    if generator.flow_map is not None:
        start, end = jnp.zeros((), z.dtype), jnp.ones((), z.dtype)
        return jax.vmap(lambda z: generator.flow_map(params, start, end, z, cond))(z)
    import diffrax  # on first use: it takes half a second

    velocity = lambda t, z: jax.vmap(lambda z: generator.velocity(params, t, z, cond))(z)
    return solve_flow(velocity, z, num_steps=recipe.solver_steps, solver=diffrax.Heun())[0]


def _descend(key, params, objective, recipe):
    """Adam on the parameters of the flow's network."""
    optimizer = optax.adam(recipe.learning_rate)

    def step(carry, key):
        network, state = carry
        updates, state = optimizer.update(fast_in_loops(jax.grad(objective))(network, key), state, network)
        return (optax.apply_updates(network, updates), state), None

    start = params.flow.network
    keys = jax.random.split(key, recipe.num_steps)
    (network, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return params._replace(flow=params.flow._replace(network=network))
