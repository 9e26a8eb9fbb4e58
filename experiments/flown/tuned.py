"""Three ways to go on from a flow when a task is at hand: downstream, through its solver, and by adjoint matching."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from experiments.flown.held_out import SPLITS, best_of_samples
from experiments.flown.judge import accuracy, loss_on, tune
from experiments.flown.learn import SOLVER_STEPS
from gfm_jax.weights.tuning import tune_by_adjoint_matching, tune_through_solver

__all__ = ["tuned_flows"]

WAYS = {
    "through its solver": functools.partial(tune_through_solver, batch_size=8, num_solver_steps=4),
    "by adjoint matching": functools.partial(tune_by_adjoint_matching, batch_size=8, num_solver_steps=20),
}


def tuned_flows(key, config, zoo, codes, generator, params, episodes):
    """By way its metrics on the first of the held-out tasks, the rate of each chosen on as many validation tasks.

    The reward is minus the support set's loss in nats, all examples together. It tilts the law at temperature 1, beside which
    "nothing" stands as well.
    """
    first = lambda tree: jax.tree.map(lambda leaf: leaf[: config.num_tuned], tree)
    some = {split: first(episodes[split]) for split in SPLITS}
    few = zoo._replace(**{split: first(getattr(zoo, split)) for split in SPLITS})
    images = {"validation": zoo.images["validation"], "held_out": zoo.images["test"]}
    judge = lambda split, weights: float(
        accuracy(zoo.apply, weights, getattr(few, split).classes, images[split]).mean()
    )
    key_made, *keys = jax.random.split(key, 2 + len(WAYS))
    draw = lambda config, key, split: best_of_samples(config, few, generator, params, key, some[split])[0]
    made = {split: draw(config, own, split) for own, split in zip(jax.random.split(key_made), SPLITS, strict=True)}
    warm = dataclasses.replace(config, temperature=1.0)
    rows = {
        "nothing": {"accuracy": judge("held_out", made["held_out"])},
        "nothing, temperature 1": {"accuracy": judge("held_out", draw(warm, keys.pop(), "held_out"))},
    }
    runs = [(made[split], getattr(few, split).classes, some[split].images, some[split].labels) for split in SPLITS]
    candidates = [(optax.adam, rate) for rate in config.tuning_rates]
    curve, rate = tune(config, zoo.apply, candidates, *runs, *images.values())
    last = config.tuning_steps[-1]
    rows[f"downstream, {last} steps"] = {"accuracy": float(curve[:, last].mean()), "rate": rate}
    for own, (row, way) in zip(keys, WAYS.items(), strict=True):
        way, temperature = functools.partial(way, num_steps=config.flow_tuning_steps), 1.0
        if way.func is tune_through_solver:
            temperature = config.temperature
            way = functools.partial(way, temperature=temperature)
        static = way, zoo.apply, codes.encoder, generator, config.num_samples, temperature
        by_split = dict(zip(SPLITS, jax.random.split(own), strict=True))
        tuned = lambda split, rate: judge(split, _tuned(static, by_split[split], params, rate, some[split]))  # noqa: B023
        best = _best(config.flow_tuning_rates, lambda rate: tuned("validation", rate))  # noqa: B023
        rows[row] = {"accuracy": tuned("held_out", best), "rate": best}
    return rows


def _best(rates, score):
    """The rate of the highest score; there is nothing to choose among one."""
    return rates[0] if len(rates) == 1 else max(rates, key=score)


@functools.partial(jax.jit, static_argnums=0)
def _tuned(static, key, params, rate, episodes):
    way, apply, encoder, generator, num_samples, temperature = static

    def loss(z, examples):
        return loss_on(apply, encoder.decode(params.codec, z), examples)

    def reward(z, examples):  # in nats
        return -len(examples[1]) * loss(z, examples)

    judge = reward if way.func is tune_by_adjoint_matching else loss

    def one(task):
        key, images, labels, cond = task
        key_tune, key_draw = jax.random.split(key)
        examples = images, labels
        tuned = way(generator, judge, learning_rate=rate)(key_tune, params, examples, cond)
        conds = jnp.broadcast_to(cond, (num_samples, len(cond)))
        options = {"temperature": temperature, "num_steps": SOLVER_STEPS}
        many = generator.generate(key_draw, tuned, num_samples, conds, **options)
        return many[jax.vmap(lambda w: loss_on(apply, w, examples))(many).argmin()]

    keys = jax.random.split(key, len(episodes.labels))
    return jax.lax.map(one, (keys, *episodes))
