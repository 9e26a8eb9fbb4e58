"""MAML and Reptile at the inner learning rate that suits them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gfm_jax.base import Generator, Procedure
from gfm_jax.fitting import fit
from gfm_jax.minimize import minimize

__all__ = ["at_best_rate"]

NUM_EPISODES = 256


def at_best_rate(
    make: Callable, inner_rates: tuple[float, ...], num_steps: int, init, loss, draw, *, inner_steps: int, batch_size=25
) -> Generator:
    """`make`, `maml` or `reptile`, at the rate that leaves the least loss on queries of validation tasks after the inner steps.

    It is fitted to `(training, validation)`, each as `draw` reads it.
    """
    options = {"inner_steps": inner_steps, "batch_size": batch_size}
    learners = [make(init, loss, draw, inner_rate=rate, **options) for rate in inner_rates]

    @jax.jit
    def after(rate, weights, key, data):
        def one(key):
            support, query = draw(key, data)
            return loss(minimize(lambda w: loss(w, support), weights, optax.sgd(rate), inner_steps), query)

        return jax.vmap(one)(jax.random.split(key, NUM_EPISODES)).mean()

    def fit_all(key, data, *, folder, progress):
        training, validation = data
        key_judge, *keys = jax.random.split(key, 1 + len(learners))
        found = []
        for own, rate, learner in zip(keys, inner_rates, learners, strict=True):
            place = None if folder is None else folder / str(rate)
            told = progress and f"{progress} at {rate}"
            try:
                weights, _ = fit(own, learner, training, num_steps=num_steps, folder=place, progress=told)
            except FloatingPointError:  # the rate is too high for the loss
                continue
            left = jnp.nan_to_num(after(rate, weights, key_judge, validation), nan=jnp.inf)
            found.append((float(left), weights))
        if not found:
            raise FloatingPointError(f"inner_rates: the loss was not finite at any of {inner_rates}")
        return min(found, key=lambda one: one[0])[1]

    return Generator(Procedure(fit_all), learners[0].generate)
