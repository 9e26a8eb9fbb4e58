"""The integrators experiment, as a user runs it, and its parts against what is known of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_experiment

from experiments.integrators import training
from experiments.integrators.config import PRESETS, check
from experiments.integrators.training import Trained, train
from experiments.precision import double_precision
from gfm_jax.optimizers.testing import descent, exact_flow

run = functools.partial(run_experiment, "integrators")


def test_smoke(tmp_path):
    done = run("--preset", "smoke", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    cells = {(row["table"], row["row"], row["metric"]): row["value"] for row in rows}
    assert cells["order/adams_bashforth_2", "fitted", "order"] == pytest.approx(2, abs=0.3)
    assert cells["stability/adams_bashforth_2", "root test", "interval"] == pytest.approx(1, abs=1e-3)
    assert cells["stability/heun", "measured", "interval"] == pytest.approx(2, rel=0.05)
    assert cells["noise/adams_bashforth_2", "measured", "energy"] == pytest.approx(2.5, rel=0.1)
    assert cells["fidelity/80", "adams_bashforth_2", "sgd_over_it"] > 30
    assert cells["field_target", "heun", "80 gradients"] < cells["field_target", "sgd", "80 gradients"] / 5
    assert np.isfinite(cells["shuffling/sgd", "flow of both", "distance"])
    assert cells["training/mlp", "sgd", "train_loss"] < np.log(10)
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == ["fidelity.png", "learning_curves.png", "stability_regions.png", "valley.png"]


def test_the_exact_flow_is_exact(x64):
    curvature = jnp.array([0.5, 2.0, 10.0])
    found = exact_flow(descent(lambda x: curvature * x), jnp.ones(3), 0.7)
    np.testing.assert_allclose(found, jnp.exp(-0.7 * curvature), rtol=1e-8)


def test_double_precision_is_left_again():
    with double_precision():
        assert jnp.zeros(1).dtype == jnp.float64
    assert jnp.zeros(1).dtype == jnp.float32


@pytest.mark.parametrize("best", [-9, 0, 7])
def test_the_grid_grows_until_the_best_rate_is_inside(best, monkeypatch):
    """Runs that are best at one rate of the grid, wherever it lies, and diverge far above it."""
    config = dataclasses.replace(PRESETS["smoke"], first_rates=4, tuning_seeds=2, fresh_seeds=4)

    def runs(config, task, num_gradients, method, keys, rates):
        exponent = np.log2(np.asarray(rates) / 0.1)
        loss = np.where(exponent > best + 3, np.nan, 0.1 + (exponent - best) ** 2)
        return np.stack([loss, loss], axis=1), np.zeros((len(rates), 2)), np.array([0, num_gradients]), 1.0

    monkeypatch.setattr(training, "_run", runs)
    found = train(config, "mlp", 60, "sgd", jax.random.key(0))
    assert found.rate == pytest.approx(0.1 * 2.0**best)
    assert found.grid[0] < found.rate < found.grid[-1]
    assert found.loss.shape == (4, 2)


def test_seeds_that_tune_are_not_those_that_are_told(monkeypatch):
    config, seen = PRESETS["smoke"], []

    def runs(config, task, num_gradients, method, keys, rates):
        seen.append({tuple(key) for key in np.asarray(jax.random.key_data(keys)).tolist()})
        loss = 1 + np.log2(np.asarray(rates) / 0.1)[:, None] ** 2
        return loss, loss, np.array([num_gradients]), 1.0

    monkeypatch.setattr(training, "_run", runs)
    train(config, "mlp", 60, "sgd", jax.random.key(0))
    assert len(seen[-1]) == config.fresh_seeds
    assert not seen[-1] & set.union(*seen[:-1])


def test_a_trained_optimizer_is_not_trained_again(tmp_path, monkeypatch):
    calls = []

    def fake(*arguments):
        calls.append(arguments)
        return Trained(*(np.arange(2.0) + k for k in range(len(Trained._fields))))

    monkeypatch.setattr(training, "train", fake)
    path = tmp_path / "mlp-sgd.npz"
    (tmp_path / "mlp-sgd.npz.partial").write_bytes(b"half of")
    first, second = (training.train_or_read(path, None, "mlp", 60, "sgd", None) for _ in range(2))
    assert len(calls) == 1
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("sgd", "ab2")}, "methods: expected one or more of sgd, adams_bashforth_2"),
        ({"methods": ("heun",)}, "methods: expected sgd among them"),
        ({"trained": ("sgd", "sgd")}, "trained: expected .* each once"),
        ({"tasks": ("mlp", "rnn")}, "tasks: expected one or more of mlp, cnn"),
        ({"num_gradients": (100,)}, "num_gradients: expected at least 20 for each"),
        ({"order_updates": (50, 100)}, "order_updates: expected rising multiples of 20"),
        ({"fidelity_gradients": (80, 40)}, "fidelity_gradients: expected rising multiples of 20"),
        ({"shuffling_time": 0.0}, "shuffling_time: expected a positive time"),
        ({"shuffling_rates": (0.1,)}, "shuffling_rates: expected two or more positive learning rates"),
        ({"rate_factor": 1.0}, "rate_factor: expected more than 1"),
        ({"tuning_seeds": 0}, "tuning_seeds: expected at least 2"),
        ({"fresh_seeds": 3}, "fresh_seeds: expected a multiple of tuning_seeds"),
        ({"batch_size": 5000}, "batch_size: expected at most 1152"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(PRESETS["laptop"], **change))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_run(preset):
    check(PRESETS[preset])


def test_a_typo_is_an_error():
    done = run("--preset", "smoke", "--fidelity-tim", "3")
    assert done.returncode != 0
    assert "fidelity-tim" in done.stderr + done.stdout
