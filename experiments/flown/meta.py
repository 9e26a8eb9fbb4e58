"""MAML and Reptile at the inner learning rate that suits them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gfm_jax.base import Generator
from gfm_jax.weights.meta_learning import adapt

__all__ = ["at_best_rate"]

NUM_EPISODES = 256


def at_best_rate(
    make: Callable, inner_rates: tuple[float, ...], init, loss, draw, *, inner_steps: int, **choices
) -> Generator:
    """`make`, `maml` or `reptile`, at the rate that leaves the least loss on queries of validation tasks after the inner steps.

    Its `fit` takes `data = (training, validation)`, each as `draw` reads it.
    """
    learners = [make(init, loss, draw, inner_rate=rate, inner_steps=inner_steps, **choices) for rate in inner_rates]

    @jax.jit
    def after(rate, weights, key, data):
        def one(key):
            support, query = draw(key, data)
            return loss(adapt(loss, optax.sgd(rate), inner_steps, weights, support), query)

        return jax.vmap(one)(jax.random.split(key, NUM_EPISODES)).mean()

    def fit(key, data, cond=None, *, encoder_params=None, folder=None, progress=None):
        training, validation = data
        key_judge, *keys = jax.random.split(key, 1 + len(learners))
        found = []
        for own, rate, learner in zip(keys, inner_rates, learners, strict=True):
            place = None if folder is None else folder / str(rate)
            told = None if progress is None else f"{progress} at {rate}"
            try:
                weights = learner.fit(own, training, folder=place, progress=told)
            except FloatingPointError:  # the rate is too high for the loss
                continue
            left = jnp.nan_to_num(after(rate, weights, key_judge, validation), nan=jnp.inf)
            found.append((float(left), weights))
        if not found:
            raise FloatingPointError(f"inner_rates: the loss was not finite at any of {inner_rates}")
        return min(found, key=lambda one: one[0])[1]

    return Generator(fit, learners[0].generate)
