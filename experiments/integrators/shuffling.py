"""Which regulariser minibatches leave behind: where runs end on the mean over orders of the minibatches.

To the first order in the learning rate the mean of a run by gradient descent follows not L, but

    L + lr / 4 (|mean_i g_i|^2 + mean_i |g_i - mean|^2)

over the minibatches i of an epoch. The first part is the error of Euler's rule, the second that of going from one minibatch
to the next.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.integrators.methods import ON_THE_FLOW
from gfm_jax.optimizers.testing import Problem, descent, distance, exact_flow, fitted_order, regress

__all__ = ["FLOWS", "measure_shuffling", "order_when_reversed"]

FLOWS = {"loss": (0.0, 0.0), "squared_mean": (1.0, 0.0), "variance": (0.0, 1.0), "both": (1.0, 1.0)}
MINIBATCHES = 4


def measure_shuffling(config, key: jax.Array) -> dict[str, dict]:
    """By method and learning rate: distances of the mean end to the end of each flow, over that between the first flow and the
    last, which is how far gradient descent is expected to be off; and of runs whose every second epoch is reversed the distance
    to the flow of the loss."""
    key_problem, key_orders = jax.random.split(key)
    problem = regress(key_problem, num_examples=80)
    minibatches = jax.tree.map(lambda leaf: leaf.reshape(MINIBATCHES, -1, *leaf.shape[1:]), problem.examples)
    found, field = {}, _field(problem, minibatches)
    for rate in config.shuffling_rates:
        epochs = 2 * round(config.shuffling_time / rate / MINIBATCHES / 2)
        time = epochs * MINIBATCHES * rate
        ends = {name: exact_flow(field, problem.start, time, rate / 4 * jnp.array(w)) for name, w in FLOWS.items()}
        effect = float(distance(ends["loss"], ends["both"]))
        key_random, key_reversed = jax.random.split(jax.random.fold_in(key_orders, epochs))
        orders = jax.vmap(functools.partial(_epochs, num=epochs))(jax.random.split(key_random, config.shuffles))
        there = _epochs(key_reversed, epochs // 2)
        there_and_back = jnp.stack([there, there[:, ::-1]], axis=1).reshape(1, -1)
        orders = orders.reshape(config.shuffles, -1)
        for name in config.methods:
            run = functools.partial(_ends, ON_THE_FLOW[name].make, problem.loss, minibatches, problem.start, rate)
            runs = run(jnp.concatenate([orders, there_and_back]))
            runs, reversed_run = (jax.tree.map(lambda leaf, part=part: leaf[part], runs) for part in (slice(-1), -1))
            mean = jax.tree.map(lambda leaf: leaf.mean(0), runs)
            noise = jnp.sqrt(sum(jnp.sum(leaf.var(0)) for leaf in jax.tree.leaves(runs)) / config.shuffles)
            found[name, rate] = {flow: float(distance(mean, end)) / effect for flow, end in ends.items()}
            found[name, rate] |= {"standard_error": float(noise) / effect, "effect": effect}
            found[name, rate]["reversed"] = float(distance(reversed_run, ends["loss"]))
    return found


def order_when_reversed(config, found: dict, name: str) -> float:
    """In the learning rate, of the distance to the flow of the loss where every second epoch is reversed."""
    rates = np.array(config.shuffling_rates)
    return fitted_order(rates, np.array([found[name, rate]["reversed"] for rate in config.shuffling_rates]))


def _epochs(key, num):
    """A fresh permutation of the minibatches for each epoch."""
    return jax.vmap(lambda k: jax.random.permutation(k, MINIBATCHES))(jax.random.split(key, num))


def _field(problem: Problem, minibatches):
    """The gradient flow of L and a weight on each part of the regulariser."""

    def regularised(weights, parts):
        losses = jax.vmap(lambda minibatch: problem.loss(weights, minibatch))(minibatches)
        gradients = jax.vmap(lambda minibatch: problem.gradient(weights, minibatch))(minibatches)
        of_mean = optax.tree.norm(jax.tree.map(lambda leaf: leaf.mean(0), gradients), squared=True)
        of_all = optax.tree.norm(gradients, squared=True) / MINIBATCHES
        return losses.mean() + parts @ jnp.stack([of_mean, of_all - of_mean])

    return descent(jax.grad(regularised))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ends(make, loss, minibatches, start, rate, orders):
    """Where runs over the minibatches end, in each of the orders."""
    transform = optax.with_extra_args_support(make(rate))

    def step(carry, i):
        weights, state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[i], minibatches)
        gradient = lambda weights: jax.grad(loss)(weights, minibatch)
        updates, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        return (optax.apply_updates(weights, updates), state), None

    one = lambda order: jax.lax.scan(step, (start, transform.init(start)), order)[0][0]
    return jax.vmap(one)(orders)
