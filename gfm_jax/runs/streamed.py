"""Tasks by the thousand: every run has a law of its own, and draws its examples from it on the spot."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gfm_jax.base import Network, Task

__all__ = ["streamed"]


def streamed(network: Network, draw: Callable[..., tuple[Array, Array]], loss: Callable[[Array, Array], Array]) -> Task:
    r"""A loss on fresh examples at every step, from the law that the run's variety names.

    .. math:: L_k(w) = \ell(f_w(x_k), y_k), \qquad (x_k, y_k) \sim p_{\text{law}}

    Its `variety` is the law: a dict of arrays, a run's own; needed.

    Args:
      network: any `init(key)` and `apply(weights, inputs) -> outputs`.
      draw: `(key, law) -> (inputs, targets)`, the examples of a step.
      loss: `(outputs, targets) -> scalar`.

    Returns:
      The task; it has no data, and `evaluate(weights, (inputs, targets))` gives `loss`.

    >>> import optax
    >>> from gfm_jax.runs import record
    >>> line = Network(lambda key: jnp.zeros(1), lambda weights, inputs: weights * inputs)
    >>> draw = lambda key, law: (jnp.ones(8), law["slope"] * jnp.ones(8))
    >>> task = streamed(line, draw, lambda outputs, targets: jnp.mean((outputs - targets) ** 2) / 2)
    >>> run = record(jax.random.key(0), task, optax.sgd, [1.0], variety={"slope": jnp.array(2.0)})
    >>> run.weights.round(4).tolist()
    [[0.0], [2.0]]
    """

    def draws(key, num_steps, variety):
        if not variety:
            raise ValueError("variety: expected the law of each run, got none")
        each = lambda leaf: jnp.broadcast_to(leaf, (num_steps, *jnp.shape(leaf)))
        return jax.random.split(key, num_steps), jax.tree.map(each, variety)

    def of_step(weights, data: PyTree, step):
        inputs, targets = draw(*step)
        return loss(network.apply(weights, inputs), targets)

    def evaluate(weights, split):
        inputs, targets = split
        return {"loss": loss(network.apply(weights, inputs), targets)}

    return Task({}, lambda key, variety=None: network.init(key), draws, of_step, evaluate)
