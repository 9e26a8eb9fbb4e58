"""Three ways to go on from a flow when a task is at hand: downstream, through its solver, and by adjoint matching."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.flown.contexts import Episodes
from experiments.flown.held_out import SPLITS, best_of_samples
from experiments.flown.judge import accuracy, loss_on, tune
from gfm_jax.methods.flow_tuning import TuningRecipe, tune_by_adjoint_matching, tune_through_solver

__all__ = ["tuned_flows"]

WAYS = {
    "through its solver": (tune_through_solver, TuningRecipe(num_steps=20, batch_size=8, solver_steps=4)),
    "by adjoint matching": (tune_by_adjoint_matching, TuningRecipe(num_steps=20, batch_size=8, solver_steps=10)),
}
RATES = (1e-4, 1e-3)


def tuned_flows(key, config, zoo, codes, generator, params, episodes):
    """By way its metrics on the first of the held-out tasks, the rate of each chosen on as many validation tasks.

    The reward is minus the support set's loss in nats, all examples together.
    """
    some = {split: jax.tree.map(lambda leaf: leaf[: config.num_tuned], episodes[split]) for split in SPLITS}
    first = {
        split: getattr(zoo, split)._replace(
            weights=getattr(zoo, split).weights[: config.num_tuned],
            classes=getattr(zoo, split).classes[: config.num_tuned],
        )
        for split in SPLITS
    }
    few = zoo._replace(**first)
    images = {"validation": zoo.images["validation"], "held_out": zoo.images["test"]}
    made = {}
    for number, split in enumerate(SPLITS):
        own = jax.random.fold_in(key, number)
        made[split], _ = best_of_samples(config, few, generator, params, own, some[split])
    rows = {"nothing": _row(few, made["held_out"])}
    runs = [(made[s], first[s].classes, some[s].images, some[s].labels) for s in SPLITS]
    candidates = [(optax.adam, rate) for rate in config.tuning_rates]
    begin = time.perf_counter()
    curve, _ = tune(config, zoo.apply, candidates, *runs, *images.values())
    last = config.tuning_steps[-1]
    rows[f"downstream, {last} steps"] = {
        "accuracy": float(curve[:, last].mean()),
        "seconds": time.perf_counter() - begin,
    }
    for row, (way, recipe) in WAYS.items():
        begin, found = time.perf_counter(), {}
        for rate in RATES[: len(config.tuning_rates)]:
            own = recipe._replace(learning_rate=rate)
            weights = _tune_all(way, own, zoo.apply, codes.encoder, generator, config, key, params, some["validation"])
            found[rate] = float(accuracy(zoo.apply, weights, first["validation"].classes, images["validation"]).mean())
        best = max(found, key=found.get)
        own = recipe._replace(learning_rate=best)
        weights = _tune_all(way, own, zoo.apply, codes.encoder, generator, config, key, params, some["held_out"])
        rows[row] = _row(few, weights) | {"rate": best, "seconds": time.perf_counter() - begin}
    return rows


def _row(zoo, weights):
    return {"accuracy": float(accuracy(zoo.apply, weights, zoo.held_out.classes, zoo.images["test"]).mean())}


def _tune_all(way, recipe, apply, encoder, generator, config, key, params, episodes: Episodes):
    """A network for each support set, the best of the samples of a flow that was tuned to it."""
    like = jnp.asarray(recipe.learning_rate)
    return np.asarray(
        _tuned(
            (
                way,
                recipe._replace(learning_rate=0.0),
                apply,
                encoder,
                generator,
                config.num_samples,
                config.temperature,
            ),
            key,
            params,
            like,
            episodes,
        )
    )


@functools.partial(jax.jit, static_argnums=0)
def _tuned(static, key, params, rate, episodes):
    way, recipe, apply, encoder, generator, num_samples, temperature = static
    recipe = recipe._replace(learning_rate=rate)

    def loss(z, examples):
        return loss_on(apply, encoder.decode(params.encoder, z), examples)

    def reward(z, examples):  # in nats
        return -len(examples[1]) * loss(z, examples)

    judge = reward if way is tune_by_adjoint_matching else loss

    def one(task):
        key, images, labels, context = task
        key_tune, key_draw = jax.random.split(key)
        examples = images, labels
        tuned = way(generator, judge, recipe)(key_tune, params, examples, context)
        contexts = jnp.broadcast_to(context, (num_samples, len(context)))
        many = generator.generate(key_draw, tuned, num_samples, contexts, temperature=temperature)
        return many[jax.vmap(lambda w: loss_on(apply, w, examples))(many).argmin()]

    keys = jax.random.split(key, len(episodes.labels))
    return jax.lax.map(one, (keys, *episodes))
