"""The folder that every experiment leaves: whose it is, that it is whole, and what is drawn from numbers that are none."""

import dataclasses
import json
import os
import pathlib
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import run_folder
from experiments.closed_form.config import PRESETS as CLOSED_FORM
from experiments.closed_form.stages import compare_with_closed_form
from experiments.drawing import draw_all
from experiments.flow_maps.config import PRESETS as FLOW_MAPS
from experiments.flow_maps.figures import figures_of, residuals
from experiments.flow_maps.stages import learn_flow_maps
from experiments.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.1
    widths: tuple[int, ...] = (8, 8)


def line(arrays):
    figure, axis = plt.subplots()
    axis.plot(arrays["x"], arrays["y"])
    axis.set(xscale="log", yscale="log")
    return figure


def finished(out, config=Config()):
    folder = RunFolder(out, config)
    folder.add("table", "row", loss=1.0)
    (out / "checkpoints" / "fit").mkdir(parents=True, exist_ok=True)
    folder.finish("A run", "python", {"x": np.arange(1, 3), "y": np.ones(2)}, [line])


def names(out):
    return sorted(path.name for path in out.iterdir())


WHOLE = ["arrays.npz", "config.json", "figures", "report.md", "results.json"]


def test_a_run_can_be_made_again(tmp_path):
    for _ in range(2):
        finished(tmp_path / "run")
        assert names(tmp_path / "run") == WHOLE
        assert names(tmp_path / "run" / "figures") == ["line.png"]


def test_another_config_is_refused(tmp_path):
    """It says what differs, and changes nothing (wrong before 0.2)."""
    finished(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    message = r"out: .* another config: rate 0\.1, here 0\.2; widths \[8, 8\], here \[9\]; choose another folder"
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path, Config(0.2, (9,)))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", ["thesis.tex", "results.json"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    """(wrong before 0.2)"""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"out: expected .* empty or with a run in it, got {name} in it"):
        RunFolder(tmp_path, Config())
    assert names(tmp_path) == [name]
    with pytest.raises(ValueError, match="out: expected a folder or a name for one, got the file"):
        RunFolder(tmp_path / name, Config())
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"out: .*config\.json is not the config of a run"):
        RunFolder(tmp_path, Config())


def test_two_processes_in_one_folder(tmp_path):
    """The second is refused while the first one runs (wrong before 0.2)."""
    first = RunFolder(tmp_path, Config())
    with pytest.raises(ValueError, match=rf"out: .* is being written by another process \(process {os.getpid()} on"):
        RunFolder(tmp_path, Config())
    first.finish("A run", "python", {}, [])
    RunFolder(tmp_path, Config())  # free again


def test_a_run_that_was_killed_at_its_very_start_goes_on(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "config.json.partial").write_text("{")
    finished(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["rate"] == 0.1


def test_checkpoints_go_all_at_once(tmp_path, monkeypatch):
    """Killed while they are removed, a run starts anew, and does not find half of a fit (wrong before 0.2)."""

    class Killed(Exception):
        pass

    def killed(path, **_):
        next(pathlib.Path(path).iterdir()).rmdir()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "shutil", type("", (), {"rmtree": staticmethod(lambda *a, **_: None)}))
        folder = RunFolder(tmp_path, Config())
        (tmp_path / "checkpoints" / "fit").mkdir(parents=True)
        (tmp_path / "checkpoints" / "other").mkdir(parents=True)
        run_folder.shutil.rmtree = killed
        with pytest.raises(Killed):
            folder.finish("A run", "python", {}, [])
    del folder
    assert not (tmp_path / "checkpoints").exists()
    finished(tmp_path)
    assert names(tmp_path) == sorted({*WHOLE})
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0, np.inf])
def test_figures_of_what_is_not_positive(tmp_path, bad):
    """A fit that diverged does not cost the report (wrong before 0.2)."""
    rows = {f"history/lsd/{name}": np.full(30, bad) for name in ("diagonal", "residual", "gradient_norm")}
    draw_all(
        tmp_path, [residuals, line], {"rows": np.array(["lsd"]), **rows, "x": np.full(3, bad), "y": np.full(3, bad)}
    )
    assert names(tmp_path) == ["line.png", "residuals.png"]


def test_axes_stay_logarithmic_where_they_can(tmp_path):
    drawn = []

    def kept(arrays):
        drawn.append(line(arrays))
        return drawn[-1]

    draw_all(tmp_path, [kept], {"x": np.array([1.0, 2, 3]), "y": np.array([np.nan, 0.0, 5.0])})
    assert [drawn[0].axes[0].get_xscale(), drawn[0].axes[0].get_yscale()] == ["log", "log"]
    draw_all(tmp_path, [kept], {"x": np.array([1.0, 2, 3]), "y": np.zeros(3)})
    assert [drawn[1].axes[0].get_xscale(), drawn[1].axes[0].get_yscale()] == ["log", "linear"]


def test_no_figure_of_fits_that_all_diverged():
    assert figures_of({"rows": np.array([]), "images/rows": np.array([])}) == []
    assert [draw.__name__ for draw in figures_of({"rows": np.array([]), "images/rows": np.array(["lsd"])})] == [
        "images"
    ]


@pytest.mark.parametrize(
    ("experiment", "config"),
    [
        (learn_flow_maps, dataclasses.replace(FLOW_MAPS["smoke"], num_train=1797)),
        (compare_with_closed_form, dataclasses.replace(CLOSED_FORM["smoke"], num_train=1797, sizes=(10, 1797))),
    ],
)
def test_too_few_images_are_noticed_before_a_folder_is_made(tmp_path, experiment, config):
    """(wrong before 0.2)"""
    with pytest.raises(ValueError, match="num_train: expected fewer than the 1797 images of digits, got 1797"):
        experiment(config, tmp_path / "run", "")
    assert not (tmp_path / "run").exists()
