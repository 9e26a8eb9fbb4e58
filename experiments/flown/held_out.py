"""Networks for tasks that no network was trained on: at once, and after some steps downstream."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.flown.contexts import draw_episodes
from experiments.flown.judge import accuracy, support_loss, tune
from experiments.flown.learn import Codes, conditional

__all__ = ["OnHeldOut", "on_held_out_tasks"]

DRAWN = ("flow",)  # who makes another network at every call: of several the support set chooses
LONG = ("hypernetwork", "flow")  # to fit
SHARE = 0.95  # of the trained accuracy, which the steps downstream are counted to


class OnHeldOut(NamedTuple):
    """By (table, row) its metrics; and by name the accuracy at each step downstream, a mean over tasks."""

    rows: dict[tuple[str, str], dict[str, float]]
    curves: dict[str, np.ndarray]


def on_held_out_tasks(key, config, zoo, codes: Codes, context, place, name: str) -> OnHeldOut:
    """Fits everyone to the lessons, and asks them for networks of the held-out tasks."""
    key_fit, key_support, key_draw = jax.random.split(key, 3)
    models = conditional(config, codes.encoder, zoo.init)
    fitted = {}
    for number, (row, model) in enumerate(models.items()):
        long = {"folder": place / row, "progress": f"{name}, {row}"} if row in LONG else {}
        key_own = jax.random.fold_in(key_fit, number)
        fitted[row] = model.fit(key_own, *codes.lessons, encoder_params=codes.params, **long)
    trained = float(accuracy(zoo.apply, *zoo.held_out, zoo.images["test"]).mean())
    rows, curves = {}, {}
    for shots in config.shots:
        table = f"held_out_tasks/{shots}"
        episodes = {
            split: draw_episodes(
                context,
                jax.random.fold_in(key_support, number),
                zoo.images["train"],
                getattr(zoo, split).classes,
                shots,
            )
            for number, split in enumerate(("validation", "held_out"))
        }
        for row, model in models.items():
            make = functools.partial(_make, config, zoo, row, model, fitted[row])
            made = {
                split: make(jax.random.fold_in(key_draw, number), episodes[split], getattr(zoo, split).classes)
                for number, split in enumerate(episodes)
            }
            runs = {
                split: (made[split][0], getattr(zoo, split).classes, episodes[split].images, episodes[split].labels)
                for split in episodes
            }
            curve, rate = tune(
                config, zoo.apply, runs["validation"], runs["held_out"], zoo.images["validation"], zoo.images["test"]
            )
            mean = curve.mean(0)
            reached = np.flatnonzero(mean >= SHARE * trained)
            rows[table, row] = {
                **{f"{k} steps": float(mean[k]) for k in config.tuning_steps},
                f"steps to {SHARE:.0%} of trained": float(reached[0]) if len(reached) else np.nan,
                "mean of samples": made["held_out"][1],
                "rate": rate,
            }
            curves[f"curve/{shots}/{row}"] = mean
    return OnHeldOut(rows, curves)


def _make(config, zoo, row, model, params, key, episodes, classes):
    """A network for each task, the best by support loss where there are several; and the mean accuracy of all of them."""
    if row not in DRAWN:
        made = model.generate(key, params, len(classes), episodes.context)
        return made, float(accuracy(zoo.apply, made, classes, zoo.images["test"]).mean())
    repeat = lambda leaf: jnp.repeat(leaf, config.num_samples, axis=0)
    many = model.generate(
        key, params, len(classes) * config.num_samples, repeat(episodes.context), temperature=config.temperature
    )
    losses = support_loss(zoo.apply, many, repeat(episodes.images), repeat(episodes.labels))
    best = losses.reshape(len(classes), -1).argmin(1)
    chosen = many.reshape(len(classes), config.num_samples, -1)[jnp.arange(len(classes)), best]
    return chosen, float(accuracy(zoo.apply, many, repeat(classes), zoo.images["test"]).mean())
