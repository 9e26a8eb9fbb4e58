"""Tuning a flow of weights for a task that it was not fitted to: through its solver, or by a reward on its samples.

Both are pure functions from parameters to parameters, to be mapped over tasks and compiled by the caller. The third way, some
steps of an optimizer on the weights that were generated, is `meta_learning.adapted`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Generator
from gfm_jax.checks import check_count, is_traced
from gfm_jax.flows import adjoint_matching_targets, draw_gaussian
from gfm_jax.flows.flow_data import check_conditions
from gfm_jax.minimize import minimize
from gfm_jax.solve import solve_flow
from gfm_jax.weights.flow_to_learn import FlowToLearnParams

__all__ = ["tune_by_adjoint_matching", "tune_through_solver"]


def tune_through_solver(
    generator: Generator,
    loss: Callable[[Array, PyTree], Array],
    *,
    num_steps: int = 30,
    learning_rate: Float[Array, ""] | float = 1e-4,
    batch_size: int = 16,
    num_solver_steps: int = 8,
    temperature: Float[Array, ""] | float = 1.0,
) -> Callable[..., FlowToLearnParams]:
    r"""Descends a loss of what a flow generates, with gradients through its few steps.

    .. math:: \min_\theta E_{z_0} \, \ell(z_\theta(1)), \qquad \dot z = v_\theta(t, z; y), \; z(0) = z_0

    Args:
      generator: as `flow_to_learn` makes it, with a Gaussian source; a flow map is tuned in one step.
      loss: `(z, examples) -> scalar`, of a code, such as the loss of decoded weights on a support set.
      num_steps, learning_rate: of Adam, at least 1 and more than 0.
      batch_size: samples a step, at least 1.
      num_solver_steps: of Heun's method, through which the gradient goes, at least 1.
      temperature: of the source that samples are drawn from, at least 0.

    Returns:
      `(key, params, examples, cond=None) -> params`, of one task; its `cond` is [conditions].

    Raises:
      ValueError: for no flow, a number outside its range; in the call, for a source that is not Gaussian, or conditions that
        are not those of the fit.

    >>> import gfm_jax as gfm
    >>> flow = gfm.with_defaults(gfm.flow_map(gfm.networks.TimeMLP((16,))), num_steps=3)
    >>> generator, zoo = gfm.flow_to_learn(gfm.weights.identity(), flow), jax.random.normal(jax.random.key(0), (50, 2))
    >>> params, _ = gfm.fit(jax.random.key(1), generator, zoo)
    >>> tune = tune_through_solver(generator, lambda z, target: jnp.sum((z - target) ** 2), num_steps=2)
    >>> tuned = tune(jax.random.key(2), params, jnp.ones(2))
    >>> gfm.sample(jax.random.key(3), generator, tuned, 10).shape
    (10, 2)
    """
    _check(learning_rate, num_steps=num_steps, batch_size=batch_size, num_solver_steps=num_solver_steps)
    if not is_traced(temperature) and not 0 <= temperature < jnp.inf:
        raise ValueError(f"temperature: expected at least 0, got {temperature}")
    if generator.velocity is None:
        raise ValueError("generator: expected one that follows a velocity, got none")
    of_codes: Callable[..., Array] = generator.velocity
    flow_map = generator.flow_map

    def ends(params, z, cond) -> Float[Array, "num codes"]:
        """Of all samples, solved as one: each on its own would have a gradient for every parameter."""
        if flow_map is not None:
            start, end = jnp.zeros((), z.dtype), jnp.ones((), z.dtype)
            follow = functools.partial(flow_map, params, start, end)
            return jax.vmap(lambda z: follow(z, cond))(z)
        import diffrax  # on first use: it takes half a second

        velocity = lambda t, z: jax.vmap(lambda z: of_codes(params, t, z, cond))(z)
        return solve_flow(velocity, z, num_steps=num_solver_steps, solver=diffrax.Heun())[0]

    def objective(params, key, examples, cond):
        z_0 = draw_gaussian(key, params.source, batch_size, temperature)
        return jnp.mean(jax.vmap(lambda z: loss(z, examples))(ends(params, z_0, cond)))

    def tune(key, params: FlowToLearnParams, examples, cond=None):
        return _tuned(key, params, examples, cond, objective, num_steps, learning_rate)

    return tune


def tune_by_adjoint_matching(
    generator: Generator,
    reward: Callable[[Array, PyTree], Array],
    *,
    num_steps: int = 30,
    learning_rate: Float[Array, ""] | float = 1e-4,
    batch_size: int = 16,
    num_solver_steps: int = 20,
) -> Callable[..., FlowToLearnParams]:
    r"""Tilts the law of what a flow generates by a reward, and stays near to it otherwise.

    .. math:: p(z) \propto p_{\text{base}}(z; y) \, e^{r(z)}, \qquad
       \min_\theta E \sum_s | v_\theta(s, z_s; y) - v^*(s, z_s) |^2

    with the targets of `flows.adjoint_matching_targets` along paths of the flow that is being tuned. The law that is tilted is
    that of temperature 1.

    Args:
      generator: as `flow_to_learn` makes it, of a velocity along straight lines (the `linear` interpolant).
      reward: `(z, examples) -> scalar`, of a code, such as minus the loss of decoded weights on a support set, in nats.
      num_steps, learning_rate, batch_size: as in `tune_through_solver`.
      num_solver_steps: of the diffusion that adjoints go back, at least 1.

    Returns:
      `(key, params, examples, cond=None) -> params`, of one task; its `cond` is [conditions].

    Raises:
      ValueError: for a flow map or no flow at all, a number outside its range; in the call, as `tune_through_solver`, and for
        a source that is coupled to the codes: only from an independent Gaussian is there a diffusion with the flow's marginals
        that forgets where it started, and without that the law would be tilted by the value of the start as well.

    >>> import gfm_jax as gfm
    >>> flow = gfm.with_defaults(gfm.flow_matching(gfm.networks.TimeMLP((16,))), num_steps=3)
    >>> generator, zoo = gfm.flow_to_learn(gfm.weights.identity(), flow), jax.random.normal(jax.random.key(0), (100, 2))
    >>> params, _ = gfm.fit(jax.random.key(1), generator, zoo)
    >>> tune = tune_by_adjoint_matching(generator, lambda z, target: z @ target, num_steps=2)
    >>> generator.velocity(tune(jax.random.key(2), params, jnp.ones(2)), 0.5, jnp.zeros(2)).shape
    (2,)

    Adjoint matching, arXiv 2409.08861; of weights, arXiv 2507.10623.
    """
    of_codes = generator.velocity
    if of_codes is None or generator.flow_map is not None:
        got = "none" if of_codes is None else "a flow map, which adjoints do not tune"
        raise ValueError(f"generator: expected one that follows a velocity, got {got}")
    _check(learning_rate, num_steps=num_steps, batch_size=batch_size, num_solver_steps=num_solver_steps)

    def tune(key, params: FlowToLearnParams, examples, cond=None):
        if params.source is not None and params.origin.coupling != "independent":
            raise ValueError(
                f"params: expected a source independent of the codes, got coupling {params.origin.coupling!r}: "
                "the samples would be tilted by where they start too"
            )

        def objective(own, key, examples, cond):
            velocity = lambda t, z: of_codes(own, t, z, cond)
            base = lambda t, z: of_codes(params, t, z, cond)
            gain = lambda z: reward(z, examples)
            key_source, key_paths = jax.random.split(key)

            def one(key, z_0):
                args = (key, velocity, base, gain, own.source, z_0, num_solver_steps)
                times, points, targets = adjoint_matching_targets(*args)
                return jnp.mean(jnp.sum((jax.vmap(velocity)(times, points) - targets) ** 2, axis=-1))

            z_0 = draw_gaussian(key_source, own.source, batch_size)
            return jnp.mean(jax.vmap(one)(jax.random.split(key_paths, batch_size), z_0))

        return _tuned(key, params, examples, cond, objective, num_steps, learning_rate)

    return tune


def _check(learning_rate, **counts):
    for name, count in counts.items():
        check_count(name, count)
    if not is_traced(learning_rate) and not 0 < learning_rate < jnp.inf:
        raise ValueError(f"learning_rate: expected more than 0, got {learning_rate}")


def _tuned(key, params, examples, cond, objective, num_steps, learning_rate):
    """The parameters after steps of Adam on those of the flow's network, by `objective(params, key, examples, cond)`."""
    if params.source is None:
        raise ValueError(f"params: expected a flow from a Gaussian source, got source {params.origin.source!r}")
    if cond is not None:
        if jnp.ndim(cond) != 1:
            raise ValueError(
                f"cond: expected that of one task [conditions], got shape {jnp.shape(cond)}; map with jax.vmap"
            )
        cond = jnp.asarray(cond)[None]
    cond = check_conditions(cond, 1, params.flow.conditions)
    cond = None if cond is None else cond[0]
    of = lambda network: params._replace(flow=params.flow._replace(network=network))
    loss = lambda network, key: objective(of(network), key, examples, cond)
    return of(minimize(loss, params.flow.network, optax.adam(learning_rate), num_steps, key=key))
