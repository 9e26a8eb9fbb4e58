"""How close runs stay to the gradient flow of the digits' loss, and what a field that learns from them is told."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.integrators.methods import ON_THE_FLOW
from gfm_jax.datasets import load_dataset
from gfm_jax.networks import MLP, init_network
from gfm_jax.optimizers.testing import Problem, descent, distance, exact_flow

__all__ = ["SEGMENTS", "measure_fidelity"]

SEGMENTS = 4  # of a run, from each of which a field learns a mean velocity


def measure_fidelity(config, key: jax.Array) -> tuple[dict, dict]:
    """By method and number of gradients, from each start: the distance of a run's end to the flow's; and the error of the mean
    velocities of its segments against the flow from the same weights, relative, where segments are whole numbers of cycles."""
    images, labels = load_dataset("digits")
    some = slice(config.fidelity_images)
    problems = [_classify(k, images[some] / 255, labels[some]) for k in jax.random.split(key, config.num_starts)]
    gradient = problems[0].gradient  # of one and the same loss
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[problem.start for problem in problems])
    flow = functools.partial(_flow, descent(gradient))
    begins = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[:, None], SEGMENTS, axis=1), starts
    )  # of the shape of all others
    ends = jax.tree.map(lambda leaf: leaf[:, 0], flow(begins, config.fidelity_time))
    far, off = {}, {}
    for name in config.methods:
        make = functools.partial(_run, ON_THE_FLOW[name].make, gradient)
        for num in config.fidelity_gradients:
            updates = num // ON_THE_FLOW[name].gradients
            segments = SEGMENTS if num % (20 * SEGMENTS) == 0 else 1
            rate = config.fidelity_time / updates
            saved = make(starts, rate, updates // segments, segments)
            far[name, num] = np.asarray(_distances(jax.tree.map(lambda run: run[:, -1], saved), ends))
            if segments > 1:
                off[name, num] = _target_errors(flow, saved, config.fidelity_time / segments)
    return far, off


def _classify(key, images, labels, num_hidden=16):
    """Classification of images in ten classes by a smooth perceptron."""
    network, cross_entropy = MLP((num_hidden, 10), nn.tanh), optax.softmax_cross_entropy_with_integer_labels
    examples = jnp.asarray(images.reshape(len(images), -1), jnp.result_type(float)), jnp.asarray(labels)
    loss = lambda weights, examples: cross_entropy(network.apply(weights, examples[0]), examples[1]).mean()
    start = init_network(network, key, examples[0])
    start = jax.tree.map(lambda leaf: leaf.astype(examples[0].dtype), start)  # which flax does not ask about
    return Problem(loss, lambda weights: jax.grad(loss)(weights, examples), examples, start)


_distances = jax.jit(jax.vmap(distance))


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _run(make, gradient, starts, rate, length, segments):
    """Weights at the start and after each segment, of runs from all starts."""
    transform = optax.with_extra_args_support(make(rate))

    def step(_, carry):
        weights, state = carry
        updates, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        return optax.apply_updates(weights, updates), state

    def segment(carry, _):
        carry = jax.lax.fori_loop(0, length, step, carry)
        return carry, carry[0]

    def one(start):
        _, saved = jax.lax.scan(segment, (start, transform.init(start)), length=segments)
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, saved)

    return jax.vmap(one)(starts)


def _target_errors(flow, saved, time):
    """|mean velocity of the run - of the flow from the same weights| / |of the flow|, over all segments."""
    begin, end = (
        jax.tree.map(lambda leaf, part=part: leaf[:, part], saved) for part in (slice(None, -1), slice(1, None))
    )
    true = flow(begin, time)
    return np.asarray(_distances(end, true) / _distances(true, begin))


def _flow(field, starts, time):
    """Where the flow is after that time, from starts that are led by two axes."""
    one = functools.partial(exact_flow, field)
    return jax.vmap(jax.vmap(one, (0, None)), (0, None))(starts, time)
