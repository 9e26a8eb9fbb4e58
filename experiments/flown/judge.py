"""How good weights are: on a task that is known, on the task that they seem to be for, and after some steps downstream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfm_jax.tasks import labels_among

__all__ = ["accuracy", "seeming_accuracy", "support_loss", "tune"]


@functools.partial(jax.jit, static_argnums=0)
def accuracy(apply, weights, classes, images):
    """Of each network among its own classes, on a split."""

    def one(run):
        w, own = run
        labels = labels_among(images.labels, own)
        right = apply(w, images.inputs).argmax(-1) == labels
        return jnp.sum(right & (labels >= 0)) / jnp.sum(labels >= 0)

    return jax.lax.map(one, (weights, classes), batch_size=64)


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


@functools.partial(jax.jit, static_argnums=0)
def support_loss(apply, weights, support, labels):
    """The cross-entropy of each network on its support set."""
    one = lambda w, x, y: optax.softmax_cross_entropy_with_integer_labels(apply(w, x), y).mean()
    return jax.vmap(one)(weights, support, labels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tune(apply, num_steps, rate, weights, classes, support, labels, images):
    """Accuracy before and after every step of Adam on the support set, [networks, steps + 1]."""
    optimizer = optax.adam(rate)

    def one(run):
        w, own, x, y = run
        targets = labels_among(images.labels, own)

        def accuracy_of(w):
            return jnp.sum((apply(w, images.inputs).argmax(-1) == targets) & (targets >= 0)) / jnp.sum(targets >= 0)

        def step(carry, _):
            w, state = carry
            loss = lambda w: optax.softmax_cross_entropy_with_integer_labels(apply(w, x), y).mean()
            updates, state = optimizer.update(jax.grad(loss)(w), state, w)
            return (optax.apply_updates(w, updates), state), accuracy_of(w)

        (w, _), before = jax.lax.scan(step, (w, optimizer.init(w)), length=num_steps)
        return jnp.append(before, accuracy_of(w))

    return jax.lax.map(one, (weights, classes, support, labels), batch_size=64)


def tune(config, apply, on_validation, on_held_out, validation_images, test_images):
    """Accuracy [networks, steps + 1] downstream on held-out tasks, at the rate that is best on validation tasks; and the rate.

    Args:
      on_validation, on_held_out: (weights, classes, support, labels) each.
    """
    last = config.tuning_steps[-1]
    ends = [
        float(_tune(apply, last, rate, *on_validation, validation_images)[:, -1].mean()) for rate in config.tuning_rates
    ]
    rate = config.tuning_rates[int(np.argmax(ends))]
    return np.asarray(_tune(apply, config.most_steps, rate, *on_held_out, test_images)), rate
