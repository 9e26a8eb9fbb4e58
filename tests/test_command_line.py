"""`python -m gfm_jax forecast`: what it prints, writes and refuses."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import gfm_jax as gfm
from gfm_jax.__main__ import main


@pytest.fixture
def folder(tmp_path):
    """A run whose first layer goes straight on and whose last layer rests; with a counter beside them."""
    for step in (100, 200, 300, 400):
        arrays = {"Dense_0.kernel": np.full((2, 3), step / 100, np.float32), "head.bias": np.ones(4, np.float32)}
        np.savez(tmp_path / f"step_{step}.npz", **arrays, epoch=np.array(step // 100))
    return tmp_path


def test_a_forecast(folder, tmp_path, capsys):
    out, figure = tmp_path / "then.npz", tmp_path / "layers.png"
    arguments = ["forecast", str(folder), "--until", "800", "--learning-rate", "0.1", "--method", "linear"]
    assert main([*arguments, "--out", str(out), "--figure", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 checkpoints, steps 100 to 400, 10 weights, at a learning rate of 0.1"
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["Dense_0"] == ["Dense_0", "6", "75", "%", "100", "%", "42.9", "%"]  # 1 to 4, then to 8
    assert rows["head"] == ["head", "4", "0", "%", "0", "%", "-"]
    with np.load(out) as then:
        np.testing.assert_allclose(then["Dense_0.kernel"], 8, rtol=1e-5)
        assert then["epoch"] == 4
    assert figure.stat().st_size > 5000


def test_a_fitted_forecaster_with_intervals(folder, tmp_path, capsys, key):
    layout = gfm.Layout(("a", "b"), ((6,), (4,)))
    step = jnp.tile(jnp.arange(11), (12, 1))
    paths = jnp.log1p(step)[..., None] * jnp.linspace(0.5, 1.5, 12)[:, None, None] * jnp.ones(10)
    runs = gfm.Trajectory(step=step, time=0.1 * step, weights=paths + 1, layout=layout)
    forecaster = gfm.forecasting.flow_map(widths=(4,), batch_size=16, fractions=(0.5,))
    params, _ = gfm.fit(key, forecaster, runs, num_steps=2, progress=False)
    params = gfm.forecasting.calibrate(params, runs, coverage=0.8, fractions=(0.5,))
    path = gfm.save(tmp_path / "forecaster.safetensors", forecaster, params)
    files = [str(folder / f"step_{k}.npz") for k in (100, 200, 300, 400)]
    assert main(["forecast", *files, "--until", "800", "--learning-rate", "0.1", "--method", str(path)]) == 0
    assert "+- (interval)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--until", "300", "--learning-rate", "0.1"],
            "error: --until: expected a step beyond the last checkpoint, 400, got 300",
        ),
        (["--until", "0"], "error: --until: expected a step beyond the last checkpoint, got 0"),
        (
            ["--until", "800", "--method", "lawaa"],
            "error: --method: expected a file of gfm_jax.save, or one of general, dmd, ",
        ),
        (["--until", "800", "--out", "/nowhere/then.npz"], "error: --out: expected a path in a folder that exists"),
        (["--until", "800", "--part", "ema"], "error: part: expected a path in "),
        (
            ["--until", "800", "--learning-rate", "-1"],
            "error: learning_rate: expected finite numbers from 0 on, got -1.0",
        ),
        (["--until", "800", "--steps", "1", "2"], "error: steps: expected one for each of 4 checkpoints, got 2"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, arguments, message):
    assert main(["forecast", str(folder), *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(message)
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_an_unknown_rate_is_said(folder, capsys):
    assert main(["forecast", str(folder), "--until", "800"]) == 0
    said = capsys.readouterr()
    assert "note: learning_rate: not given; the clock of the run is its number of steps" in said.err
    assert "its clock is the number of steps" in said.out


def test_in_a_process_of_its_own(folder):
    command = [sys.executable, "-m", "gfm_jax", "forecast", str(folder / "nothing"), "--until", "800"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("error: folder_or_files: expected a folder of checkpoints, got ")
