"""How good weights are: on a task that is known, on the task that they seem to be for, and after some steps downstream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfm_jax.minimize import minimize
from gfm_jax.runs import labels_among

__all__ = ["accuracy", "at_once", "loss_of", "loss_on", "seeming_accuracy", "train", "tune"]


def at_once(inputs) -> int:
    """Networks that go through all inputs together: 64, or as many as leave their activations within some gigabytes."""
    return max(1, min(64, 2**26 // inputs.size))


@functools.partial(jax.jit, static_argnums=0)
def accuracy(apply, weights, classes, images):
    """Of each network among its own classes, on a split."""

    def one(run):
        w, own = run
        labels = labels_among(images.labels, own)
        right = apply(w, images.inputs).argmax(-1) == labels
        return jnp.sum(right & (labels >= 0)) / jnp.sum(labels >= 0)

    return jax.lax.map(one, (weights, classes), batch_size=at_once(images.inputs))


def seeming_accuracy(num_classes: int, guess, images):
    """`(outputs) -> accuracy` of a network of which no task is known: outputs go to the classes that they are most often
    highest on, by the Hungarian algorithm on the images to guess by; `outputs` are those on them, then on the others."""
    onehot = jax.nn.one_hot(guess.labels, num_classes)
    of_class = onehot / onehot.sum(0)
    shown = jax.nn.one_hot(images.labels, num_classes)

    def score(outputs):
        hit = jax.nn.one_hot(outputs.argmax(-1), outputs.shape[-1])
        first, second = hit[: len(guess.labels)], hit[len(guess.labels) :]
        ways, classes = optax.assignment.hungarian_algorithm(-(first.T @ of_class))
        right = (second.T @ shown / shown.sum(0))[ways, classes]
        weight = shown.sum(0)[classes]
        return jnp.sum(right * weight) / jnp.sum(weight)

    return score


def loss_on(apply, weights, examples):
    """The cross-entropy of one network on labelled examples."""
    inputs, labels = examples
    return optax.softmax_cross_entropy_with_integer_labels(apply(weights, inputs), labels).mean()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _tune(apply, make, num_steps, rate, weights, classes, support, labels, images):
    """Accuracy before and after every step of an optimizer on the support set, [networks, steps + 1]."""

    def one(run):
        w, own, *examples = run
        targets = labels_among(images.labels, own)
        path = minimize(lambda w: loss_on(apply, w, examples), w, make(rate), num_steps, path=True)
        right = lambda w: jnp.sum((apply(w, images.inputs).argmax(-1) == targets) & (targets >= 0))
        return jax.lax.map(right, path) / jnp.sum(targets >= 0)

    return jax.lax.map(one, (weights, classes, support, labels), batch_size=at_once(images.inputs))


@functools.cache  # so that what is compiled for a loss is found again
def loss_of(apply):
    """`(weights, examples) -> scalar`."""
    return functools.partial(loss_on, apply)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(loss, num_steps, rate, weights, support):
    """The weights after so many steps of Adam, each network on its own support set."""
    one = lambda w, examples: minimize(lambda w: loss(w, examples), w, optax.adam(rate), num_steps)
    return jax.vmap(one)(weights, support)


def tune(config, apply, candidates, on_validation, on_held_out, validation_images, test_images):
    """Accuracy [networks, steps + 1] downstream on held-out tasks, by what is best on validation tasks; and its rate.

    Args:
      candidates: optimizers, (make, rate).
      on_validation, on_held_out: (weights, classes, support, labels) each.
    """
    last = config.tuning_steps[-1]
    ends = [
        float(_tune(apply, make, last, rate, *on_validation, validation_images)[:, -1].mean())
        for make, rate in candidates
    ]
    make, rate = candidates[int(np.argmax(ends))]
    return np.asarray(_tune(apply, make, config.most_steps, rate, *on_held_out, test_images)), rate
