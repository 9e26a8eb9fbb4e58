"""MAML and Reptile at the inner learning rate that suits them."""

from collections.abc import Callable

import jax
import numpy as np
import optax

from gfm_jax.base import Generator
from gfm_jax.methods.meta_learning import adapt

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
        found, losses = [], []
        for own, rate, learner in zip(keys, inner_rates, learners, strict=True):
            place = None if folder is None else folder / str(rate)
            told = None if progress is None else f"{progress} at {rate}"
            found.append(learner.fit(own, training, folder=place, progress=told))
            losses.append(float(after(rate, found[-1], key_judge, validation)))
        return found[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]

    return Generator(fit, learners[0].generate)
