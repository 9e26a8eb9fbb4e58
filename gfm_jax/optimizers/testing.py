"""Problems whose gradient flow is known to ten digits, and how far from it an optimizer ends."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfm_jax.compiling import quick_jit
from gfm_jax.networks import MLP, init_network

__all__ = [
    "Problem",
    "classify",
    "descent",
    "distance",
    "distances",
    "exact_flow",
    "fitted_order",
    "follow",
    "regress",
    "stack",
]


class Problem(NamedTuple):
    """`loss(weights, examples)`, the examples, and weights to start from."""

    loss: Callable
    examples: Any
    start: Any

    def gradient(self, weights, examples=None):
        """On the given examples, by default on all."""
        return jax.grad(self.loss)(weights, self.examples if examples is None else examples)


def regress(key: jax.Array, num_hidden: int = 8, num_examples: int = 20) -> Problem:
    """Regression on 3 inputs by a perceptron: 41 weights with 8 hidden units."""
    key_weights, key_inputs, key_targets = jax.random.split(key, 3)
    network = MLP((num_hidden, 1), nn.tanh)
    inputs = jax.random.normal(key_inputs, (num_examples, 3))
    targets = jnp.sin(inputs.sum(-1)) + 0.1 * jax.random.normal(key_targets, (num_examples,))
    loss = lambda weights, examples: jnp.mean((network.apply(weights, examples[0])[:, 0] - examples[1]) ** 2) / 2
    return Problem(loss, (inputs, targets), _start(network, key_weights, inputs))


def classify(key: jax.Array, images: np.ndarray, labels: np.ndarray, num_hidden: int = 16) -> Problem:
    """Classification of images in ten classes by a smooth perceptron."""
    network = MLP((num_hidden, 10), nn.tanh)
    inputs = jnp.asarray(images.reshape(len(images), -1), jnp.result_type(float))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda weights, examples: cross_entropy(network.apply(weights, examples[0]), examples[1]).mean()
    return Problem(loss, (inputs, jnp.asarray(labels)), _start(network, key, inputs))


def _start(network, key, inputs):
    """In the precision of the inputs, which flax does not ask about."""
    return jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), init_network(network, key, inputs))


def descent(gradient: Callable) -> Callable:
    """The field of the gradient flow, x' = -gradient(x, ...)."""
    return lambda x, *rest: jax.tree.map(jnp.negative, gradient(x, *rest))


def exact_flow(field: Callable, start, time, *rest):
    """Where x' = field(x, ...) leads from `start` in that time, to ten digits."""
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


exact_flow = quick_jit(exact_flow, static_argnums=0, level=1)  # it would take longer to optimise than to run


@functools.partial(jax.jit, static_argnums=(0, 1))
def follow(make: Callable, gradient: Callable, start, learning_rate, num_updates, *rest):
    """The weights after so many updates of make(learning_rate) along gradient(x, ...): one program for all rates, numbers."""
    along = lambda weights: gradient(weights, *rest)
    transform = optax.with_extra_args_support(make(learning_rate))

    def step(_, carry):
        weights, state = carry
        updates, state = transform.update(along(weights), state, weights, grad_fn=along)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, num_updates, step, (start, transform.init(start)))[0]


def stack(trees):
    """Trees of one structure as one tree, led by their number."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def distance(a, b) -> float:
    """The Euclidean distance of two trees."""
    return float(optax.tree.norm(optax.tree.sub(a, b)))


@jax.jit
def distances(a, b):
    """Those of trees led by their number, one by one."""
    return jax.vmap(lambda one, other: optax.tree.norm(optax.tree.sub(one, other)))(a, b)


def fitted_order(steps: np.ndarray, far: np.ndarray) -> float:
    """The slope of log distance over log step, by least squares."""
    return float(np.polyfit(np.log(steps), np.log(far), 1)[0])
