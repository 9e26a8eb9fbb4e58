"""Networks for tasks that no network was trained on: at once, and after some steps downstream."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from experiments.flown.compute import steps_of_equal_compute
from experiments.flown.contexts import draw_episodes
from experiments.flown.judge import accuracy, loss_of, loss_on, train, tune
from experiments.flown.learn import SOLVER_STEPS, Cast, Codes
from gfm_jax.base import Generator
from gfm_jax.fitting import fit
from gfm_jax.weights import Zoo

__all__ = ["Fitted", "best_of_samples", "episodes_of", "fit_conditional", "judge_tasks"]

LONG = ("hypernetwork", "flow", "flow map")  # to fit
META = ("maml", "reptile")
DRAWN = ("flow", "flow map")  # who makes another network at every call: of several the support set chooses
SHARE = 0.95  # of the trained accuracy, which the steps downstream are counted to
SPLITS = ("validation", "held_out")


class Fitted(NamedTuple):
    """By name, what makes networks for a context, and what it learned."""

    models: dict[str, Generator]
    params: dict[str, PyTree]


def fit_conditional(key, zoo, cast: Cast, codes: Codes, place, name: str) -> Fitted:
    """Everyone fitted to the lessons, and meta-learning to episodes of the training tasks."""
    params = {}
    for number, (row, model) in enumerate(cast.conditional.items()):
        long = {"folder": place / row, "progress": f"{name}, {row}"} if row in LONG else {}
        own = jax.random.fold_in(key, number)
        networks = Zoo(*codes.lessons, codec_params=codes.params)
        params[row], _ = fit(own, model, networks, **long)
    for number, (row, model) in enumerate(cast.meta.items()):
        long = {"folder": place / row, "progress": f"{name}, {row}"}
        data = tuple((zoo.images["train"], split.classes) for split in (zoo.train, zoo.validation))
        own = jax.random.fold_in(key, len(cast.conditional) + number)
        params[row], _ = fit(own, model, data, **long)
    return Fitted(cast.conditional | cast.meta, params)


def episodes_of(key, zoo, context, shots: int):
    """A support set for each validation and each held-out network's task."""
    draw = lambda number, split: draw_episodes(
        context, jax.random.fold_in(key, number), zoo.images["train"], getattr(zoo, split).classes, shots
    )
    return {split: draw(number, split) for number, split in enumerate(SPLITS)}


def judge_tasks(key, config, zoo, codes: Codes, fitted: Fitted, episodes):
    """By row its metrics on held-out tasks, whose networks were trained on all images of them; and the accuracy at each step
    downstream, a mean over tasks."""
    key_make, key_scratch = jax.random.split(key)
    trained = float(accuracy(zoo.apply, *zoo.held_out, zoo.images["test"]).mean())
    rows, curves = {"trained": {"0 steps": trained}}, {}
    for row in fitted.models:
        made, mean = _make_all(key_make, config, zoo, fitted, row, episodes)
        runs = {
            split: (made[split], getattr(zoo, split).classes, episodes[split].images, episodes[split].labels)
            for split in SPLITS
        }
        candidates = [(optax.adam, rate) for rate in config.tuning_rates]
        if row in META:
            candidates += [(optax.sgd, rate) for rate in config.inner_rates]
        images = zoo.images["validation"], zoo.images["test"]
        curve, rate = tune(config, zoo.apply, candidates, runs["validation"], runs["held_out"], *images)
        mean_curve = curve.mean(0)
        reached = np.flatnonzero(mean_curve >= SHARE * trained)
        rows[row] = {
            **{f"{k} steps": float(mean_curve[k]) for k in config.tuning_steps},
            f"steps to {SHARE:.0%} of trained": float(reached[0]) if len(reached) else np.nan,
            "mean of samples": mean,
            "rate": rate,
        }
        curves[row] = mean_curve
    if "retrieval" in fitted.params:
        best = _best_retrieved(zoo.apply, config.num_samples, fitted.params["retrieval"], episodes["held_out"])
        found = accuracy(zoo.apply, best, zoo.held_out.classes, zoo.images["test"])
        rows["retrieval, best of the nearest"] = {"0 steps": float(found.mean())}
    rows["from scratch, equal compute"] = _from_scratch(key_scratch, config, zoo, codes, fitted, episodes)
    return rows, curves


def _make_all(key, config, zoo, fitted, row, episodes):
    """A network for each task of both splits; and the mean accuracy of all that were made for held-out tasks."""
    model, params, made, many = fitted.models[row], fitted.params[row], {}, None
    for own, split in zip(jax.random.split(key, len(SPLITS)), SPLITS, strict=True):
        classes = getattr(zoo, split).classes
        if row in DRAWN:
            made[split], many = best_of_samples(config, zoo, model, params, own, episodes[split])
        else:
            made[split] = model.generate(own, params, len(classes), episodes[split].context)
    if many is None:
        many = made["held_out"]
    classes = jnp.repeat(zoo.held_out.classes, len(many) // len(zoo.held_out.classes), axis=0)
    return made, float(accuracy(zoo.apply, many, classes, zoo.images["test"]).mean())


def best_of_samples(config, zoo, model, params, key, episodes):
    """Of several networks for each support set the one with the least loss on it; and all of them."""
    num = len(episodes.context)
    repeat = lambda leaf: jnp.repeat(leaf, config.num_samples, axis=0)
    options = {"temperature": config.temperature} | ({} if model.flow_map else {"num_steps": SOLVER_STEPS})
    many = model.generate(key, params, num * config.num_samples, repeat(episodes.context), **options)
    losses = _losses(zoo.apply, many, repeat(episodes.images), repeat(episodes.labels)).reshape(num, -1)
    return many.reshape(num, config.num_samples, -1)[jnp.arange(num), losses.argmin(1)], many


@functools.partial(jax.jit, static_argnums=0)
def _losses(apply, weights, support, labels):
    return jax.vmap(lambda w, *examples: loss_on(apply, w, examples))(weights, support, labels)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best_retrieved(apply, count, zoo, episodes):
    """Of the networks of the zoo whose contexts are nearest, the one with the least loss on the support set."""

    def one(task):
        images, labels, context = task
        distance = jnp.sum(((zoo.cond - context) / zoo.scale) ** 2, axis=1)
        near = zoo.weights[jax.lax.top_k(-distance, count)[1]]
        return near[jax.vmap(lambda w: loss_on(apply, w, (images, labels)))(near).argmin()]

    return jax.lax.map(one, tuple(episodes))


def _from_scratch(key, config, zoo, codes, fitted, episodes):
    """Random weights after as many steps of Adam on the support set as the samples of the flow cost, at the rate that is best
    for so many steps on validation tasks."""
    own = episodes["held_out"]
    one = own.images[0], own.labels[0]
    args = fitted.models["flow"], fitted.params["flow"], codes.encoder, own.context[0]
    loss = loss_of(zoo.apply)
    equal = steps_of_equal_compute(*args, loss, zoo.held_out.weights[0], one, 2 * SOLVER_STEPS)
    equal, row = equal * config.num_samples, "random initialisation"
    steps = min(equal, config.most_scratch_steps)

    def found(key, split, rate, images):
        examples, classes = episodes[split], getattr(zoo, split).classes
        start = fitted.models[row].generate(key, fitted.params[row], len(classes))
        weights = train(loss, steps, rate, start, (examples.images, examples.labels))
        return float(accuracy(zoo.apply, weights, classes, images).mean())

    key_choose, key_held_out = jax.random.split(key)
    chosen = [found(key_choose, "validation", rate, zoo.images["validation"]) for rate in config.tuning_rates]
    rate = config.tuning_rates[int(np.argmax(chosen))]
    says = {"steps of training": float(steps), "steps of equal compute": float(equal), "rate": rate}
    return {"0 steps": found(key_held_out, "held_out", rate, zoo.images["test"])} | says
