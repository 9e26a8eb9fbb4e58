"""What the speed benchmark times, on sizes at which only its form can be looked at."""

import dataclasses
import json

import pytest

from experiments.run_folder import RunFolder
from experiments.speed import flow_tables
from experiments.speed.__main__ import time_everything
from experiments.speed.config import PRESETS, check
from experiments.speed.contestants import CONTESTANTS
from experiments.speed.flows import FLOWS, LOSSES


def test_the_exact_field_beside_its_products():
    found = FLOWS["closed_form"](num=30_000, dim=16, num_queries=256, rounds=2)
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {
        "matrix_products": 2,
        "closed_form": 2,
    }
    assert 0 < found["mb_beyond_data"] < 10  # an array [256, 30000] is 29


def test_one_jump_is_faster_than_many_steps():
    seconds = FLOWS["sampling"](width=32, depth=2, num=2000, num_steps=50, rounds=3)["seconds"]
    assert min(seconds["euler_steps"]) > 5 * min(seconds["one_jump"]) > 0


def test_tables_are_ratios_to_the_first_row(tmp_path, monkeypatch, capsys):
    def timed(config, name, size):
        peers = {"torchcfm": 3.0, "torchdiffeq": 3.0, "flow_matching": 1.5, "euler_steps": 1.5}
        return {"seconds": peers.get(name, {"first": [1.0, 2.0], "second": [3.0, 4.0]})}

    monkeypatch.setattr(flow_tables, "time_contestant", timed)
    monkeypatch.setattr(flow_tables.importlib.util, "find_spec", lambda name: None if name == "torchdiffeq" else name)
    flow_tables.time_flows(RunFolder(tmp_path, PRESETS["smoke"]), PRESETS["smoke"])
    rows = json.loads((tmp_path / "results.json").read_text())
    cells = {(row["table"], row["row"], row["metric"]): row["value"] for row in rows}
    assert cells["flow_steps", "second", "ratio"] == 2.5
    assert (cells["flow_steps", "second", "lowest"], cells["flow_steps", "second", "highest"]) == (2, 3)
    assert cells["torchcfm", "large: torchcfm", "ratio"] == 2
    assert not any(row["table"] == "torchdiffeq" for row in rows)
    assert "torchdiffeq is not installed: its rows are left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["flow_steps", "companions", "convolutional_runs", "unet_steps", "watched_steps"])
def test_what_is_timed_runs(name):
    sizes = {
        "flow_steps": {"width": 8, "depth": 1, "batch": 16, "num_steps": 1, "losses": LOSSES, "rounds": 1},
        "companions": {"side": 4, "channels": (8,), "batch": 4, "counts": (1, 8), "rounds": 1},
        "convolutional_runs": {"batch": 4, "num_steps": 2, "rounds": 1},
        "unet_steps": {"side": 4, "channels": (8,), "batch": 4, "num_steps": 2, "rounds": 1},
        "watched_steps": {"width": 4, "batch": 4, "num_steps": 2, "rounds": 1},
    }
    seconds = CONTESTANTS[name](**sizes[name])["seconds"]
    rows = {
        "flow_steps": ["flow_matching", *LOSSES, "matrix_products"],
        "companions": ["1", "8"],
        "convolutional_runs": ["plain step", "record, one run", "record, 16 runs"],
        "unet_steps": ["plain step", "fit"],
        "watched_steps": ["plain step", "watched: weights", "watched: weights, means", "watched: all"],
    }
    assert list(seconds) == rows[name]
    assert all(len(of_row) == 1 and of_row[0] > 0 for of_row in seconds.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_run(preset):
    check(PRESETS[preset])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", ("tensor", "coordinates")),
        ("heads", ()),
        ("losses", ("lsd", "lds")),
        ("rounds", 0),
        ("scaling_runs", ()),
        ("streaming_runs", (64, 0)),
        ("save_every", 150),
        ("num_saves", 1),
        ("flow_batch", 2),
        ("closed_form", (10, 0, 1)),
        ("companions", (1, 4096)),
        ("image_channels", (16, 20)),
        ("image_side", 33),
    ],
)
def test_configs_that_cannot_be_run_leave_no_folder(field, value, tmp_path):
    """(wrong before 0.2)"""
    config = dataclasses.replace(PRESETS["laptop"], **{field: value})
    with pytest.raises(ValueError, match=f"{field}: expected"):
        time_everything(config, tmp_path / "run", "")
    assert not (tmp_path / "run").exists()
