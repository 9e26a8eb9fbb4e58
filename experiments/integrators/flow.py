"""A small problem whose gradient flow is known to ten digits, and how far from it an optimizer ends."""

import functools
from collections.abc import Callable

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfm_jax.networks import MLP

__all__ = ["exact_flow", "fitted_order", "follow", "problem"]


def problem(key: jax.Array, num_hidden: int = 8, num_examples: int = 20):
    """A regression by a perceptron of 3 inputs, 41 weights with 8 hidden units: (gradient, weights to start from)."""
    key_weights, key_inputs, key_targets = jax.random.split(key, 3)
    network = MLP((num_hidden, 1), nn.tanh)
    inputs = jax.random.normal(key_inputs, (num_examples, 3))
    targets = jnp.sin(inputs.sum(-1)) + 0.1 * jax.random.normal(key_targets, (num_examples,))
    loss = lambda weights: jnp.mean((network.apply(weights, inputs)[:, 0] - targets) ** 2) / 2
    weights = network.init(key_weights, inputs)  # in float32, whatever the inputs are
    return jax.grad(loss), jax.tree.map(lambda leaf: leaf.astype(inputs.dtype), weights)


@functools.partial(jax.jit, static_argnums=0)
def exact_flow(field: Callable, start, times):
    """Where x' = field(x) leads from `start`, at each of the rising times, to ten digits."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: field(x)),
        diffrax.Dopri8(),
        0.0,
        times[-1],
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
        max_steps=100_000,
    )
    return solution.ys


@functools.partial(jax.jit, static_argnums=(0, 1))
def follow(make: Callable, gradient: Callable, start, learning_rate, num_updates):
    """The weights after so many updates of `make(learning_rate)`; one program for every rate and number."""
    transform = optax.with_extra_args_support(make(learning_rate))

    def step(_, carry):
        weights, state = carry
        updates, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, num_updates, step, (start, transform.init(start)))[0]


def fitted_order(steps: np.ndarray, distances: np.ndarray) -> float:
    """The slope of log distance over log step, by least squares."""
    return float(np.polyfit(np.log(steps), np.log(distances), 1)[0])
