r"""Checks of an integrator: whether its distance to the exact flow falls with the learning rate as its order says.

    |w_n - w(n lr)| = O(lr^p),          w' = -gradient(w)

An order is fitted in double precision (`jax_enable_x64`), to distances far above rounding. Import this module by its own name.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree

from gfm_jax.compiling import quick_jit
from gfm_jax.networks import MLP, init_network

__all__ = ["Problem", "descent", "distance", "exact_flow", "fitted_order", "follow", "regress"]


class Problem(NamedTuple):
    """A loss to descend.

    Attributes:
      loss: `(weights, examples) -> scalar`.
      gradient: `(weights, examples) -> gradient` of the loss in the weights, by default on all examples.
      examples: of the data.
      start: weights to start from.
    """

    loss: Callable
    gradient: Callable
    examples: PyTree
    start: PyTree


def regress(key: Key[Array, ""], num_hidden: int = 8, num_examples: int = 20) -> Problem:
    """Regression on 3 inputs by a smooth perceptron: a loss that is neither convex nor quadratic, of few weights.

    Args:
      key: of the initial weights, the inputs and the noise of the targets.
      num_hidden: hidden units; 8 of them make 41 weights.
      num_examples: at least 1.

    >>> optax.tree.size(regress(jax.random.key(0)).start)
    41
    """
    key_weights, key_inputs, key_targets = jax.random.split(key, 3)
    network = MLP((num_hidden, 1), nn.tanh)
    inputs = jax.random.normal(key_inputs, (num_examples, 3))
    examples = (inputs, jnp.sin(inputs.sum(-1)) + 0.1 * jax.random.normal(key_targets, (num_examples,)))
    apply: Callable[..., Any] = network.apply
    loss = lambda weights, examples: jnp.mean((apply(weights, examples[0])[:, 0] - examples[1]) ** 2) / 2
    # flax does not ask about the precision of the inputs
    start = jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), init_network(network, key_weights, inputs))
    return Problem(loss, lambda weights, examples=examples: jax.grad(loss)(weights, examples), examples, start)


def descent(gradient: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The field of the gradient flow, x' = -gradient(x, ...).

    >>> float(descent(jax.grad(lambda w: w**2))(1.0))
    -2.0
    """
    return lambda x, *rest: jax.tree.map(jnp.negative, gradient(x, *rest))


@functools.partial(quick_jit, static_argnums=0, level=1)  # it would take longer to optimise than to run
def exact_flow(field: Callable[..., PyTree], start: PyTree, time: float | Array, *rest: PyTree) -> PyTree:
    """Where a field leads, to ten digits in double precision.

    Args:
      field: `(x, *rest) -> x'`; it closes over no traced array.
      start: x at time 0.
      time: from 0 on.
      *rest: further arguments of the field.

    Returns:
      x at that time.

    >>> round(float(exact_flow(lambda x: -x, jnp.ones(()), 1.0)), 4)  # exp(-1)
    0.3679
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: field(x, *rest)),
        diffrax.Dopri8(),
        0.0,
        time,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
        max_steps=100_000,
    )
    return jax.tree.map(lambda leaf: leaf[-1], solution.ys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def follow(
    make: Callable[..., optax.GradientTransformation],
    gradient: Callable[..., PyTree],
    start: PyTree,
    learning_rate: ArrayLike,
    num_updates: ArrayLike,
    *rest: PyTree,
) -> PyTree:
    """Where an optimizer is after some updates: one program for all learning rates and numbers of updates.

    Args:
      make: `(learning_rate) -> optax transformation`, which may ask for `grad_fn`.
      gradient: `(weights, *rest) -> gradient`.
      start: weights at first.
      learning_rate: of all updates.
      num_updates: from 0 on.
      *rest: further arguments of the gradient.

    Returns:
      The weights.

    >>> float(follow(optax.sgd, lambda w: w, jnp.ones(()), 0.5, 2))
    0.25
    """
    along = lambda weights: gradient(weights, *rest)
    transform = optax.with_extra_args_support(make(learning_rate))

    def step(_, carry):
        weights, state = carry
        updates, state = transform.update(along(weights), state, weights, grad_fn=along)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, num_updates, step, (start, transform.init(start)))[0]


def distance(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The Euclidean distance of two trees.

    >>> float(distance({"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}))
    5.0
    """
    return optax.tree.norm(optax.tree.sub(a, b))


def fitted_order(steps: Float[np.ndarray, " num"], distances: Float[np.ndarray, " num"]) -> float:
    """The slope of log distance over log step, by least squares.

    Args:
      steps: learning rates, above 0, at least two.
      distances: to the flow, above 0, at each of them.

    >>> steps, make = np.array([0.1, 0.05]), optax.sgd
    >>> end = exact_flow(lambda w: -w, jnp.ones(()), 1.0)
    >>> distances = [distance(follow(make, lambda w: w, jnp.ones(()), lr, round(1 / lr)), end) for lr in steps]
    >>> round(fitted_order(steps, np.array(distances)), 1)
    1.0
    """
    return float(np.polyfit(np.log(steps), np.log(distances), 1)[0])
