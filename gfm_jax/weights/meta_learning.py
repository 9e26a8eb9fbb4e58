"""Learning to be trained: initial weights from which a few steps on a new task lead far; and training itself, as a generator.

Tasks are met as episodes: a support set to take steps on, and a query set to judge by. `draw(key, data) -> (support, query)`
draws one, `loss(w, examples) -> scalar` is that of flat weights on either.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from gfm_jax.base import Defaults, Generator, Learner, config_of
from gfm_jax.checks import check_count
from gfm_jax.flows.flow_data import adam_on_cosine
from gfm_jax.minimize import minimize

__all__ = ["adapted", "maml", "reptile"]


def adapted(
    generator: Generator,
    loss: Callable[[Array, PyTree], Array],
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> Generator:
    r"""A generator whose networks then take steps on a support set; of random initial weights, training from scratch.

    .. math:: w_{k+1} = w_k + \mathrm{update}(\nabla \ell(w_k; \text{support}))

    Args:
      generator: of weights.
      loss: `(w, examples) -> scalar`.
      optimizer, num_steps: as in `minimize`.

    Returns:
      The generator; its `generate` needs `support=`, examples led by [num], one set for each network.

    Raises:
      ValueError: for a negative number of steps; in `generate` for support sets of another number than networks.

    >>> from gfm_jax import fit
    >>> from gfm_jax.weights import baselines
    >>> loss = lambda w, target: jnp.sum((w - target) ** 2) / 2
    >>> method = adapted(baselines.random(lambda key: jnp.zeros(1)), loss, optax.sgd(0.5), num_steps=2)
    >>> params, _ = fit(jax.random.key(0), method, jnp.ones((8, 1)))
    >>> method.generate(jax.random.key(1), params, 2, support=jnp.array([[4.0], [8.0]])).tolist()  # 0, 2, 3 and 0, 4, 6
    [[3.0], [6.0]]
    """

    num_steps = check_count("num_steps", num_steps, least=0)

    def generate(key, params, num, cond=None, *, support):
        num = check_count("num", num)
        wrong = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(support)} - {(num,)}
        if wrong:
            raise ValueError(f"support: expected one set for each of {num} networks, got leading axes {sorted(wrong)}")
        weights = generator.generate(key, params, num, cond)
        return _adapt_all(loss, optimizer, num_steps, weights, support)

    return Generator(generator.learner, generate)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _adapt_all(loss, optimizer, num_steps, weights, support):
    adapt = lambda w, examples: minimize(lambda w: loss(w, examples), w, optimizer, num_steps)
    return jax.vmap(adapt)(weights, support)


def maml(
    init: Callable[[Array], Array],
    loss: Callable[[Array, PyTree], Array],
    draw: Callable[[Array, PyTree], Any],
    *,
    inner_rate: float = 0.01,
    inner_steps: int = 1,
    batch_size: int = 25,
) -> Generator:
    r"""Initial weights that are good after a few steps of gradient descent on a new task.

    .. math:: \min_w E_{\text{task}} \, \ell(U^k(w; \text{support}); \text{query}), \qquad
       U(w) = w - \alpha \nabla \ell(w; \text{support})

    with the gradient through the steps.

    Args:
      init: `(key) -> w [dim]`.
      loss: `(w, examples) -> scalar`, of flat weights on a support set or a query set.
      draw: `(key, data) -> (support, query)`, which draws a task.
      inner_rate, inner_steps: alpha and k.
      batch_size: tasks in a batch.

    Returns:
      A generator of the one initialisation, fitted to the arrays that `draw` reads.

    Raises:
      ValueError: for fewer than one inner step, or an inner rate that is not positive.

    >>> from gfm_jax import fit
    >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
    >>> draw = lambda key, targets: (jax.random.choice(key, targets),) * 2  # support and query
    >>> method = maml(lambda key: jnp.zeros(1), loss, draw, inner_steps=1, batch_size=4)
    >>> params, info = fit(jax.random.key(0), method, jnp.array([[1.0], [3.0]]), num_steps=2)
    >>> method.generate(jax.random.key(1), params, 5).shape
    (5, 1)

    Model-agnostic meta-learning, arXiv 1703.03400, Algorithm 1.
    """
    objective = lambda w, after, query: loss(after, query)
    return _initialisation(
        "weights.meta_learning.maml", init, draw, loss, objective, inner_rate, inner_steps, batch_size
    )


def reptile(
    init: Callable[[Array], Array],
    loss: Callable[[Array, PyTree], Array],
    draw: Callable[[Array, PyTree], Any],
    *,
    inner_rate: float = 0.01,
    inner_steps: int = 10,
    batch_size: int = 25,
) -> Generator:
    r"""Initial weights that are near to where a few steps on any task lead.

    .. math:: \min_w E_{\text{task}} \tfrac12 | w - U^k(w; \text{support}) |^2

    without a gradient through the steps, so that the gradient is w - U^k(w).

    Args:
      init, loss, draw: as in `maml`; query sets are not looked at.
      inner_rate, inner_steps: of gradient descent, above 0 and at least 1.
      batch_size: tasks in a batch, at least 1.

    Returns:
      A generator of the one initialisation, fitted to the arrays that `draw` reads.

    Raises:
      ValueError: for fewer than one inner step, or an inner rate that is not positive.

    >>> from gfm_jax import fit
    >>> loss = lambda w, target: jnp.sum((w - target) ** 2)
    >>> draw = lambda key, targets: (jax.random.choice(key, targets),) * 2  # support and query
    >>> method = reptile(lambda key: jnp.zeros(1), loss, draw, inner_steps=1, batch_size=4)
    >>> params, info = fit(jax.random.key(0), method, jnp.array([[1.0], [3.0]]), num_steps=2)
    >>> method.generate(jax.random.key(1), params, 5).shape
    (5, 1)

    On first-order meta-learning algorithms, arXiv 1803.02999, its batched version.
    """
    objective = lambda w, after, query: jnp.sum((w - jax.lax.stop_gradient(after)) ** 2) / 2
    return _initialisation(
        "weights.meta_learning.reptile", init, draw, loss, objective, inner_rate, inner_steps, batch_size
    )


def _initialisation(method, init, draw, loss, objective, inner_rate, inner_steps, batch_size):
    """The generator of one set of weights, by `objective(w, weights after the inner steps, query) -> scalar` over episodes."""
    check_count("batch_size", batch_size)
    check_count("inner_steps", inner_steps)
    if not 0 < inner_rate < jnp.inf:
        raise ValueError(f"inner_rate: expected more than 0, got {inner_rate}")

    def sample(key, data):
        return jax.vmap(lambda key: draw(key, data))(jax.random.split(key, batch_size))

    def mean_over_tasks(w, key, episodes):
        def one(episode):
            support, query = episode
            after = minimize(lambda w: loss(w, support), w, optax.sgd(inner_rate), inner_steps)
            return objective(w, after, query)

        return jnp.mean(jax.vmap(one)(episodes)), {}

    config = config_of(
        method, init=init, loss=loss, draw=draw, inner_rate=inner_rate, inner_steps=inner_steps, batch_size=batch_size
    )
    learner = Learner(lambda key, data: init(key), sample, mean_over_tasks, config, DEFAULTS)
    return Generator(learner, lambda key, w, num, cond=None: jnp.broadcast_to(w, (check_count("num", num), len(w))))


DEFAULTS = Defaults(num_steps=5000, learning_rate=1e-3, optimizer=adam_on_cosine, ema_decay=0.99)
