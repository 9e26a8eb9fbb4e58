"""The experiment that generates networks, as a user runs it, and its parts against what is known of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_experiment

from experiments.flown.audited import in_blocks, make_exam
from experiments.flown.codecs import codecs, judge_codec, round_trip
from experiments.flown.compute import flops, steps_of_equal_compute
from experiments.flown.config import PRESETS, check
from experiments.flown.contexts import Lessons
from experiments.flown.copying import SOLVER_STEPS, copying
from experiments.flown.domains import DOMAINS, letters
from experiments.flown.families import FAMILIES
from experiments.flown.figures import decision_boundaries, sinusoids
from experiments.flown.from_examples import from_examples, make_kit
from experiments.flown.judge import seeming_accuracy
from experiments.flown.meta import at_best_rate
from experiments.flown.stages import generate_networks
from experiments.flown.zoo import record_zoo
from gfm_jax.base import Generator
from gfm_jax.fitting import fit
from gfm_jax.runs import by_class
from gfm_jax.weights import identity, meta_learning, nearest
from gfm_jax.weights.flow_to_learn import FlowToLearnParams, Origin

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
    at_once = {row: cells["held_out_tasks/5", row, "0 steps"] for row in ("random initialisation", "retrieval", "flow")}
    assert 0.1 < at_once["random initialisation"] < 0.35
    assert at_once["retrieval"] > 0.4
    assert cells["held_out_tasks/5", "flow", "5 steps"] > cells["held_out_tasks/5", "random initialisation", "5 steps"]
    assert cells["held_out_tasks/5", "from scratch, equal compute", "0 steps"] > 0.6
    assert [path.name for path in (tmp_path / "run" / "figures").glob("*.png")] == ["fine_tuning_curves.png"]


def test_the_other_tables(tmp_path):
    """All but those of codecs and families, whose parts are tested below."""
    tables = ("unconditional", "out_of_distribution", "fine_tuning")
    config = dataclasses.replace(PRESETS["smoke"], tables=tables, makers=("retrieval",))
    generate_networks(config, tmp_path / "run", "a test")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    cells = {(row["table"], row["row"], row["metric"]): row["value"] for row in rows}
    for domain in ("rotated", "inverted", "letters"):
        table = f"out_of_distribution/{domain}"
        assert cells[table, "trained", "0 steps"] > 0.7
        assert cells[table, "retrieval", "0 steps"] < 0.45  # of what was never rotated, inverted or a letter
        assert cells[table, "retrieval", "5 steps"] > cells[table, "retrieval", "0 steps"]
    for place in ("5 of a class", "rotated"):
        table = f"fine_tuning/{place}"
        at_once = cells[table, "nothing", "accuracy"]
        assert cells[table, "downstream, 5 steps", "accuracy"] > at_once + 0.1
        assert cells[table, "through its solver", "accuracy"] > at_once
    assert cells["novelty", "copies", "samples"] < 0.1
    assert cells["unconditional", "noise around a network", "accuracy"] > 0.8
    assert 0.1 < cells["novelty", "disagreement", "samples"] < 1
    assert cells["copying", "accuracy", "trained"] > 0.8
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == ["audit_chart.png", "latent_space.png"]


def test_codecs_side_by_side(key, tmp_path):
    """All of them can be made; what one leaves of networks, and what is made of its codes."""
    config = dataclasses.replace(PRESETS["smoke"], num_train=64, num_held=4, num_unseen=16, num_generated=16)
    zoo = record_zoo(config)
    others = codecs(config, zoo)
    assert len(others) == 8
    name, encoder = next((name, other) for name, other in others.items() if name.startswith("principal"))
    lessons = Lessons(zoo.train.weights, None)
    exam = make_exam(zoo, lambda w: w)
    found = judge_codec(key, config, zoo, exam, lessons, encoder, tmp_path, name)
    assert found["codes"] == config.num_codes
    params, _ = fit(key, encoder, zoo.train.weights)
    assert 0.2 < found["round trip"] < float(round_trip(identity(), (), zoo).mean())
    assert round_trip(encoder, params, zoo).mean() == pytest.approx(found["round trip"], abs=0.05)
    assert 0.2 < found["gaussian"] < 0.9


TINY = dataclasses.replace(
    PRESETS["smoke"],
    family_train=32,
    family_held=4,
    family_steps=60,
    copies=1,
    num_samples=3,
    tuning_rates=(1e30, 1e-2),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_from_examples_of_a_law(name, key, tmp_path):
    kit = make_kit(TINY, FAMILIES[name])
    found = from_examples(key, TINY, kit, tmp_path, name)
    assert set(found.rows) >= {"maml", "reptile", "hypernetwork", "flow", "flow, mean of its samples", "trained"}
    assert all(np.isfinite(value) for row in found.rows.values() for value in row.values())  # 1e30 was not chosen
    better = min if name == "sinusoid" else max
    trained, random = (found.rows[row]["0 steps"] for row in ("trained", "random initialisation"))
    assert better(trained, random) == trained != random
    assert found.arrays["generated"].shape == found.arrays["nearest"].shape
    figure = sinusoids if name == "sinusoid" else decision_boundaries
    figure({f"{name}/{what}": np.stack([array] * 2) for what, array in found.arrays.items()})


def test_moons_and_sinusoids_are_what_their_laws_say(key):
    sinusoid, moons = FAMILIES["sinusoid"], FAMILIES["moons"]
    law = {"amplitude": jnp.float32(2), "phase": jnp.float32(0.3)}
    x, y = sinusoid.draw(key, law, 50)
    np.testing.assert_allclose(y, 2 * np.sin(x + 0.3), rtol=1e-5)
    law = {"angle": jnp.float32(0), "size": jnp.ones(2), "centre": jnp.zeros(2)}
    x, y = moons.draw(key, law, 400)
    assert np.abs(np.linalg.norm(x[y[:, 0] == 1] + np.array([0.5, 0.25]), axis=1) - 1).mean() < 0.15  # half a circle
    turned, _ = moons.draw(key, law | {"angle": jnp.float32(jnp.pi / 2)}, 400)
    np.testing.assert_allclose(turned, np.stack([-x[:, 1], x[:, 0]], -1), atol=1e-5)


def test_meta_learning_takes_the_inner_rate_that_is_best_on_validation_tasks(key, tmp_path):
    """Bowls whose minimum one step of rate 1 reaches; a smaller one stops short, a larger one diverges."""
    loss = lambda w, minimum: jnp.sum((w - minimum) ** 2) / 2
    draw = lambda key, centre: (centre + jax.random.normal(key, (2,)),) * 2
    init = lambda key: jax.random.normal(key, (2,))
    rates, data = (0.1, 1.0, 1e30), (jnp.zeros(2), jnp.ones(2))
    best_of = at_best_rate(meta_learning.maml, rates, 5, init, loss, draw, inner_steps=2)
    found, _ = fit(key, best_of, data, folder=tmp_path)
    maml = meta_learning.maml(init, loss, draw, inner_rate=1.0, inner_steps=2)
    expected, _ = fit(jax.random.split(key, 4)[2], maml, data[0], num_steps=5)
    np.testing.assert_array_equal(found, expected)


def test_letters_and_other_domains():
    drawn, labels = letters(np.random.default_rng(0), 12, 8)
    assert drawn.shape == (120, 8, 8)
    assert drawn.min() == 0
    assert drawn.max() > 0.5
    assert np.bincount(labels).tolist() == [12] * 10
    means = np.stack([drawn[labels == c].mean(0) for c in range(10)])
    apart = np.linalg.norm(means[:, None] - means[None], axis=(2, 3))
    assert apart[~np.eye(10, dtype=bool)].min() > 0.3
    images = {"train": by_class(np.arange(10 * 4, dtype=np.float32).reshape(10, 4), np.arange(10), 10)}
    rotated = DOMAINS["rotated"](images, (2, 2, 1), 0)["train"].inputs[0]
    assert rotated.tolist() == [1, 3, 0, 2]
    assert DOMAINS["inverted"](images, (2, 2, 1), 0)["train"].inputs[0].tolist() == [39, 38, 37, 36]


def test_the_copying_recipe_copies(key):
    """Points that are far apart, and a source of next to no width: samples are the points."""
    points = 3 * jax.random.normal(key, (12, 30))
    model = copying(12, 1000)
    samples = model.generate(key, fit(key, model, points)[0], 50, num_steps=SOLVER_STEPS)

    def ratio(found):
        distance, _ = nearest(found, points, 2)
        return jnp.median(distance[:, 0] / distance[:, 1])

    assert ratio(samples) < 0.3  # .22, or .24 with jax 0.7.2
    assert ratio(3 * jax.random.normal(jax.random.key(9), (50, 30))) > 0.8  # of new points of the same law


def test_equal_compute_counts_both_sides(key):
    """A velocity of one product of 8 x 8, asked twice, against a step of a loss of its own count."""
    matrix = jnp.ones((8, 8))
    loss = lambda w, examples: jnp.sum((examples @ w) ** 2)
    once = flops(jax.value_and_grad(lambda w: loss(w, jnp.ones((4, 8)))), jnp.ones(8))
    assert flops(lambda z: matrix @ z, jnp.ones(8)) == pytest.approx(2 * 64, rel=0.1)
    generator = Generator(None, None, lambda params, t, z, cond: matrix @ z)
    params = FlowToLearnParams((), None, None, Origin("gaussian", "independent"))
    args = generator, params, identity(), None, loss, jnp.ones(8), jnp.ones((4, 8))
    assert steps_of_equal_compute(*args, 100) == round(100 * flops(lambda z: matrix @ z, jnp.ones(8)) / once)


@pytest.mark.parametrize("size", [1, 12, 1000])
def test_outputs_in_blocks_are_the_outputs(size, key):
    """Of 7 images of 4 numbers: one at a time, three with one left over, and all."""
    inputs, matrix = jax.random.normal(key, (7, 4)), jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_allclose(in_blocks(lambda w, x: x @ w, matrix, inputs, size), inputs @ matrix, rtol=1e-5)


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
        ({"tuning_steps": (1, 5)}, "tuning_steps: expected numbers rising from 0"),
        ({"tuning_steps": (0, 500)}, "tuning_steps: expected at most most_steps, 200"),
        ({"tuning_rates": ()}, "tuning_rates: expected positive learning rates"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"inner_rates": (0.1, -1.0)}, "inner_rates: expected positive learning rates"),
        ({"code_noise": -0.1}, "code_noise: expected at least 0, got -0.1"),
        ({"num_codes": 5000}, "num_codes: expected less than a quarter of num_train, 4096"),
        ({"copies": 0}, "copies: expected at least 1"),
        ({"tables": ("codecs",)}, "tables: expected some of held_out_tasks, .*, got codecs"),
        ({"tables": ()}, "tables: expected at least one"),
        ({"makers": ("mammal",)}, "makers: expected some of mean, .*, got mammal"),
        ({"network": "rnn"}, "network: expected mlp or cnn, got 'rnn'"),
        ({"family_tuning_steps": (1,)}, "family_tuning_steps: expected numbers rising from 0"),
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
