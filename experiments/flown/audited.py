"""Networks of any task, and the audit that tells whether they are new."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.flown.judge import seeming_accuracy
from experiments.flown.learn import Codes, unconditional
from experiments.flown.zoo import NUM_CLASSES
from gfm_jax.metrics import audit

__all__ = ["Exam", "audit_samples", "make_exam"]


class Exam(NamedTuple):
    """What the audit asks of networks: outputs, their score, and the canonical form."""

    apply: Callable
    score: Callable
    canonical: Callable


def make_exam(zoo, form) -> Exam:
    """Outputs on the training images, by which a network's task is guessed, and on the test images."""
    guess, test = zoo.images["train"], zoo.images["test"]
    score, seen = seeming_accuracy(NUM_CLASSES, guess, test), jnp.concatenate([guess.inputs, test.inputs])
    return Exam(lambda w: zoo.apply(w, seen), lambda outputs, task: score(outputs), form)


def audit_samples(key, config, zoo, codes: Codes, exam: Exam, place, name: str):
    """By (table, row) the metrics of the audit; and what its figure is drawn from."""
    key_fit, key_draw = jax.random.split(key)
    models = unconditional(config, codes.encoder, zoo.init)
    made = {}
    for number, (row, model) in enumerate(models.items()):
        params = model.fit(
            jax.random.fold_in(key_fit, number),
            codes.lessons.weights if row in ("flow", "gaussian") else zoo.train.weights,
            encoder_params=codes.params,
            folder=place / "unconditional" if row == "flow" else None,
            progress=f"{name}, of any task" if row == "flow" else None,
        )
        made[row] = model.generate(jax.random.fold_in(key_draw, number), params, config.num_generated)
    samples = made.pop("flow")
    found = audit(
        samples,
        zoo.train.weights,
        zoo.unseen.weights,
        exam.apply,
        exam.score,
        others=made,
        round_trip=lambda w: codes.encoder.decode(codes.params, codes.encoder.encode(codes.params, w)),
        canonical=exam.canonical,
    )
    rows = {
        ("unconditional", "flow" if row == "samples" else row): {"accuracy": float(values.mean())}
        for row, values in found.accuracy.items()
    }
    for measure, of in found.novelty.items():
        summary = np.median if measure in ("nearest", "ratio") else np.mean
        rows["novelty", measure] = {row: float(summary(values)) for row, values in of.items()}
    rows["novelty", "copies"] = {"samples": float(found.copies.mean())}
    held_out = found.novelty["nearest"]["held_out"]
    rows["novelty", "nearest, over held-out"] = {
        "samples": float(np.median(found.novelty["nearest"]["samples"]) / np.median(held_out))
    }
    arrays = {f"audit/{row}": np.asarray(values) for row, values in found.accuracy.items()}
    arrays |= {
        f"novelty/{measure}/{row}": np.asarray(values)
        for measure, of in found.novelty.items()
        for row, values in of.items()
    }
    return rows, arrays
