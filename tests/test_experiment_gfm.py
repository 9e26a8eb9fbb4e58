"""The experiment as a user runs it, in its smallest preset."""

import collections
import dataclasses
import functools
import json

import chex
import numpy as np
import pytest
from commands import run_experiment

import gfm_jax
from experiments.gfm.checks import check
from experiments.gfm.config import PRESETS
from experiments.gfm.evaluate import loss_on
from experiments.gfm.lessons import learn_from
from experiments.gfm.synthetic import forecast_regressions
from experiments.gfm.zoo import make_tasks, run_specs
from experiments.run_folder import RunFolder
from gfm_jax.forecasting import thin

run = functools.partial(run_experiment, "gfm")


def test_smoke(tmp_path):
    done = run("--preset", "smoke", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(set(row) == {"table", "row", "metric", "value", "std", "num_seeds"} for row in rows)
    cells = {(row["table"], row["row"], row["metric"]): row["value"] for row in rows}
    for split in ("seed", "learning_rate", "optimizer", "architecture"):
        table = f"forecast/{split}/0.5"
        assert cells[table, "persistence", "rel_mse"] == 1
        assert cells[table, "oracle_final", "rel_mse"] == 0
        assert cells[table, "oracle_final", "gap_closed"] == 1
        assert cells[table, "gfm_gated", "forwards"] == 8
        for row in (
            "lawa",
            "dmd",
            "lfd2",
            "gfm_velocity",
            "gfm_self_distilled",
            "gfm_flow_map",
            "gfm_function_space",
            "gfm_gated",
        ):
            assert np.isfinite(cells[table, row, "test_loss"])
        assert 0 < cells[f"calibration/{split}", "gfm_flow_map", "coverage/0.5"] <= 1
    assert 0 <= cells["noise_floor", "sgd", "floor/0.5"] < 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config"]["preset"] == "smoke"
    assert config["versions"]["jax"]
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == ["chart.png", "coordinates.png", "density.png", "error_by_horizon.png", "loss_after_jump.png"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "forecast/seed/0.5" in report
    assert "python -m experiments.gfm --preset smoke" in report
    arrays = np.load(tmp_path / "run" / "arrays.npz")
    assert set(arrays["rows"]) >= {"persistence", "gfm_flow_map"}
    for row in ("velocity", "self_distilled", "flow_map", "function_space"):
        forecaster, params = gfm_jax.load(tmp_path / "run" / "fitted" / f"gfm_{row}-0.safetensors")
        assert forecaster.learner.config.method.startswith("forecasting.")
        assert np.isfinite(params.half_width.value).all()


def test_regressions_end_where_the_closed_form_says(tmp_path):
    config = dataclasses.replace(PRESETS["smoke"], synthetic=("gd",), synthetic_steps=20)
    folder = RunFolder(tmp_path, config)
    forecast_regressions(folder, config, num_problems=2, num_runs=8)
    cells = {(row.row, row.metric): row.value for row in folder.rows if row.table == "synthetic/gd"}
    assert cells["persistence", "rel_mse"] == 1
    assert cells["gfm_optimizer_aware", "rel_mse"] < 0.1
    assert cells["oracle_final", "to_closed_form"] < 1e-6
    assert np.isfinite(cells["gfm_flow_map", "rel_mse"])


def test_lessons_of_some_coordinates_are_a_part_of_all():
    config = dataclasses.replace(PRESETS["smoke"], train_images=32)
    tasks = make_tasks(config)
    specs = [spec for spec in run_specs(config) if spec.split == "train"]
    loss_of = {"mlp": loss_on(tasks["mlp"], "train", slice(config.train_images))}
    every = learn_from(config, tasks, specs, loss_of)
    some = learn_from(dataclasses.replace(config, coordinates=50, whole_runs=2), tasks, specs, loss_of)
    assert every.whole is every.windows
    (windows,), (part,), (whole,) = every.windows, some.windows, some.whole
    chex.assert_trees_all_equal(part, thin(windows, 50))
    assert len(part.run) == len(windows.run) == 3 * len(whole.run)  # of 6 runs 2
    of_two = (np.arange(0, len(windows.run), 6)[:, None] + np.arange(2)).ravel()
    np.testing.assert_allclose(whole.features.origin, np.asarray(windows.features.origin)[of_two])
    assert some.dropped == every.dropped == 0


def test_nothing_to_learn_from_is_said(monkeypatch):
    monkeypatch.setattr("experiments.gfm.evaluate.MAX_LOSS", 0.0)  # nothing ever counts as trained
    config = dataclasses.replace(PRESETS["smoke"], train_images=32, coordinates=50)
    tasks = make_tasks(config)
    specs = [spec for spec in run_specs(config) if spec.split == "train"]
    loss_of = {"mlp": loss_on(tasks["mlp"], "train", slice(config.train_images))}
    with pytest.raises(ValueError, match="every run of mlp"):
        learn_from(config, tasks, specs, loss_of)


def test_typos_are_named(tmp_path):
    preset = run("--preset", "desktop")
    assert preset.returncode != 0
    assert "desktop" in preset.stderr + preset.stdout
    field = run("--preset", "smoke", "--num-stepz", "3", "--out", str(tmp_path))
    assert field.returncode != 0
    assert "num-stepz" in field.stderr + field.stdout


BAD = {
    "networks": ("mlp", "resnet"),
    "more_networks": ("resnet",),
    "unseen_network": "mlp",
    "optimizers": ("rmsprop",),
    "more_optimizers": ("adam_95", "adam_95"),
    "histories": ("gru",),
    "synthetic": ("lbfgs",),
    "prefixes": (0.5, 1.0),
    "num_saves": 2,
    "num_steps": 0,
    "batch_size": 0,
    "fit_seeds": 0,
    "coverage": 0.9,
    "field_steps": 2,
    "train_images": 513,
    "train_seeds": (0, 0, 0),
    "coordinates": 0,
    "whole_runs": 0,
}


@pytest.mark.parametrize("field", BAD)
def test_bad_configs_are_refused(field):
    check(PRESETS["smoke"])
    with pytest.raises(ValueError, match=rf"^{field}: "):
        check(dataclasses.replace(PRESETS["smoke"], **{field: BAD[field]}))


@pytest.mark.parametrize("sizes", [(1500, 297), (0, 100), (100, 0)])
def test_sizes_leave_a_test_set(sizes):
    with pytest.raises(ValueError, match="sizes: expected"):
        make_tasks(dataclasses.replace(PRESETS["smoke"], sizes=sizes))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_accepted(preset):
    check(PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_splits_share_nothing(preset):
    specs = run_specs(PRESETS[preset])
    assert len({spec.seed for spec in specs}) == len(specs)
    seen = [spec for spec in specs if spec.split == "train"]
    structures = {(spec.network, spec.optimizer) for spec in seen}
    assert {spec.optimizer for spec in specs if spec.split == "optimizer"} == {"rmsprop"}
    assert "rmsprop" not in {optimizer for _, optimizer in structures}
    held_out = {spec.network for spec in specs if spec.split == "architecture"}
    assert not held_out & {network for network, _ in structures}
    rates = {(spec.optimizer, spec.peak_rate) for spec in seen}
    assert not rates & {(spec.optimizer, spec.peak_rate) for spec in specs if spec.split == "learning_rate"}


def test_laptop_has_the_runs_of_the_study():
    laptop = PRESETS["laptop"]
    specs = run_specs(dataclasses.replace(laptop, more_networks=(), more_optimizers=()))
    counts = collections.Counter(spec.split for spec in specs)
    assert counts == {
        "train": 240, "validation": 48, "seed": 96, "learning_rate": 64, "optimizer": 32, "architecture": 48
    }  # fmt: skip
    # What else there is to learn from leaves them as they are.
    assert run_specs(laptop)[: len(specs)] == specs
    assert {spec.split for spec in run_specs(laptop)[len(specs) :]} == {"train"}
