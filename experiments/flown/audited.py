"""Networks of any task, and the audit that tells whether they are new."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.flown import copying
from experiments.flown.compute import steps_of_equal_compute
from experiments.flown.copying import NUM_COPIED
from experiments.flown.judge import loss_of, seeming_accuracy
from experiments.flown.learn import SOLVER_STEPS, Cast, Codes
from experiments.flown.zoo import NUM_CLASSES, record_runs
from gfm_jax.base import Generator
from gfm_jax.fitting import fit
from gfm_jax.weights import Zoo, audit

__all__ = ["Exam", "audit_copies", "audit_samples", "in_blocks", "make_exam"]


class Exam(NamedTuple):
    """What the audit asks of networks: outputs, their score, the two of many, and the canonical form."""

    apply: Callable
    score: Callable
    accuracy: Callable
    canonical: Callable


def make_exam(zoo, form) -> Exam:
    """Outputs on the training images, by which tasks are guessed, and on the test images; disagreement is over all of them."""
    guess, test = zoo.images["train"], zoo.images["test"]
    score, seen = seeming_accuracy(NUM_CLASSES, guess, test), jnp.concatenate([guess.inputs, test.inputs])
    apply = lambda w: in_blocks(zoo.apply, w, seen)
    accuracy = jax.jit(lambda weights: jax.lax.map(lambda w: score(apply(w)), weights, batch_size=32))
    return Exam(apply, lambda outputs, task: score(outputs), accuracy, form)


def in_blocks(apply, w, inputs, size=2**20):
    """Outputs on so many pixels at a time, where there are more."""
    block = max(1, size // inputs[0].size)
    if len(inputs) <= block:
        return apply(w, inputs)
    return jax.lax.map(lambda x: apply(w, x[None])[0], inputs, batch_size=block)


def audit_samples(key, config, zoo, cast: Cast, codes: Codes, exam: Exam, place, name: str):
    """By (table, row) the metrics of the audit; and what its figures are drawn from."""
    key_fit, key_draw, key_scratch = jax.random.split(key, 3)
    made = {}
    for number, (row, model) in enumerate(cast.unconditional.items()):
        coded, key_own = row in ("flow", "gaussian"), jax.random.fold_in(key_draw, number)
        networks = Zoo(codes.lessons.weights if coded else zoo.train.weights, codec_params=codes.params)
        long = {"folder": place / "unconditional", "progress": f"{name}, of any task"} if row == "flow" else {}
        params, _ = fit(jax.random.fold_in(key_fit, number), model, networks, **long)
        options = {"num_steps": SOLVER_STEPS} if row == "flow" else {}
        made[row] = model.generate(key_own, params, config.num_generated, **options)
        if row == "flow":
            steps = _equal_steps(config, zoo, codes, model, params)
    made[f"from scratch, {steps} steps"] = _from_scratch(key_scratch, config, zoo, steps)
    samples = made.pop("flow")
    found = _audit(zoo, exam, samples, zoo.train.weights, made, codes)
    rows = {
        ("unconditional", "flow" if row == "samples" else row.partition(", ")[0]): {"accuracy": float(values.mean())}
        for row, values in found.accuracy.items()
    }
    rows["unconditional", "from scratch"]["steps of training"] = float(steps)
    for measure, of in found.novelty.items():
        rows["novelty", measure] = {row: _summary(measure, values) for row, values in of.items()}
    rows["novelty", "copies"] = {"samples": float(found.copies.mean())}
    held_out = found.novelty["nearest"]["held_out"]
    rows["novelty", "nearest, over held-out"] = {
        "samples": float(np.median(found.novelty["nearest"]["samples"]) / np.median(held_out))
    }
    arrays = {f"audit/{row.partition(', ')[0]}": np.asarray(values) for row, values in found.accuracy.items()}
    arrays |= {
        f"novelty/{measure}/{row}": np.asarray(values)
        for measure, of in found.novelty.items()
        for row, values in of.items()
    }
    latent = {"zoo": codes.lessons.weights[: config.num_generated], "samples": samples, "held out": zoo.unseen.weights}
    encode = jax.jit(jax.vmap(functools.partial(codes.encoder.encode, codes.params)))
    arrays |= {f"latent/{who}": np.asarray(encode(weights)) for who, weights in latent.items()}
    return rows, arrays


def audit_copies(key, config, zoo, exam: Exam, model: Generator, place, name: str):
    """The audit of the recipe that copies, on networks of one order of the labels each."""
    key_fit, key_draw = jax.random.split(key)
    few = zoo.train.weights[: min(NUM_COPIED, len(zoo.train.weights))]
    params, _ = fit(key_fit, model, few, folder=place / "copying", progress=f"{name}, the copying recipe")
    samples = model.generate(key_draw, params, min(config.num_generated, 100), num_steps=copying.SOLVER_STEPS)
    found = _audit(zoo, exam, samples, few, {}, None)
    return {
        ("copying", "accuracy"): {who: float(found.accuracy[who].mean()) for who in ("samples", "trained")},
        **{
            ("copying", measure): {who: _summary(measure, values) for who, values in of.items()}
            for measure, of in found.novelty.items()
        },
        ("copying", "copies"): {"samples": float(found.copies.mean())},
    }


def _audit(zoo, exam, samples, train, others, codes):
    back = {} if codes is None else {
        "round_trip": lambda w: codes.encoder.decode(codes.params, codes.encoder.encode(codes.params, w))
    }  # fmt: skip
    held_out = zoo.unseen.weights
    return audit(samples, train, held_out, exam.apply, exam.score, others=others, canonical=exam.canonical, **back)


def _summary(measure, values):
    return float((np.median if measure in ("nearest", "ratio") else np.mean)(values))


def _equal_steps(config, zoo, codes, model, params) -> int:
    """Steps of the zoo's own training that cost as much as a sample."""
    batch = jnp.zeros((config.run_batch, zoo.images["train"].inputs.shape[1])), jnp.zeros(config.run_batch, int)
    args = model, params, codes.encoder, None, loss_of(zoo.apply), zoo.train.weights[0], batch
    return steps_of_equal_compute(*args, 2 * SOLVER_STEPS)


def _from_scratch(key, config, zoo, steps):
    """Networks of training tasks, trained for so many steps with the learning rate of the zoo on a cosine."""
    classes = jnp.asarray(
        np.resize(zoo.train.classes, (min(config.num_generated, len(zoo.unseen.weights)), config.num_ways))
    )
    rates = optax.cosine_decay_schedule(config.run_rate, steps)(jnp.arange(steps))
    return record_runs(key, zoo.task, classes, rates)
