"""The experiment that generates networks, as a user runs it, and its parts against what is known of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_experiment

from experiments.flown.config import PRESETS, check
from experiments.flown.judge import seeming_accuracy
from experiments.flown.zoo import record_zoo
from gfm_jax.tasks import by_class

run = functools.partial(run_experiment, "flown")


def test_smoke(tmp_path):
    done = run("--preset", "smoke", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    cells = {(row["table"], row["row"], row["metric"]): row["value"] for row in rows}
    assert cells["zoo", "held_out", "accuracy"] > 0.8
    assert cells["symmetry", "canonical form", "change_of_outputs"] < 1e-5
    in_order, as_trained = (
        cells["symmetry", row, "round trip, 32 components"] for row in ("canonical form", "as they were trained")
    )
    assert in_order > as_trained + 0.1
    assert 0.1 < cells["held_out_tasks/5", "random initialisation", "0 steps"] < 0.35
    assert cells["held_out_tasks/5", "retrieval", "0 steps"] > 0.4
    assert cells["held_out_tasks/5", "flow", "5 steps"] > cells["held_out_tasks/5", "random initialisation", "5 steps"]
    assert cells["novelty", "copies", "samples"] < 0.1
    assert cells["unconditional", "noise around a network", "accuracy"] > 0.8
    assert 0.1 < cells["novelty", "disagreement", "samples"] < 1
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == ["audit_chart.png", "fine_tuning_curves.png"]


def test_a_network_is_judged_by_the_task_that_it_seems_to_be_for(key):
    """Outputs that tell three of six classes apart, in an order that nobody told."""
    labels = np.arange(60) % 6
    guess, test = (by_class(np.zeros((60, 1), np.float32), labels, 6) for _ in range(2))
    order = np.array([4, 1, 3])
    outputs = jnp.concatenate([jnp.asarray(part.labels[:, None] == order[None], float) for part in (guess, test)])
    outputs += 0.1 * jax.random.normal(key, outputs.shape)  # images of other classes go anywhere
    score = seeming_accuracy(6, guess, test)
    assert score(outputs) == pytest.approx(1)
    wrong = outputs.at[60:].set(outputs[60:, jnp.array([1, 0, 2])])  # two are exchanged on the images that count
    assert score(wrong) == pytest.approx(1 / 3)
    assert score(jax.random.normal(key, outputs.shape)) < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ways": 10}, "num_ways: expected 2..9 of the ten classes"),
        ({"num_fits": 1}, "num_fits: expected at least 2, for a spread"),
        ({"shots": (5, 1)}, "shots: expected rising numbers"),
        ({"tuning_steps": (1, 5)}, "tuning_steps: expected rising from 0"),
        ({"tuning_steps": (0, 500)}, "tuning_steps: expected .* at most most_steps, 200"),
        ({"tuning_rates": ()}, "tuning_rates: expected positive learning rates"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"num_codes": 5000}, "num_codes: expected fewer than num_train, 4096"),
        ({"copies": 0}, "copies: expected at least 1"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(PRESETS["laptop"], **change))


def test_more_shots_than_images_are_refused_before_any_training():
    with pytest.raises(ValueError, match=r"shots: expected at most \d+, the images of the rarest class, got 500"):
        record_zoo(dataclasses.replace(PRESETS["smoke"], shots=(5, 500)))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_run(preset):
    check(PRESETS[preset])
