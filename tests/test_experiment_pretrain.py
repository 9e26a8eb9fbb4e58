"""The forecaster that ships, refitted small, as a user runs it."""

import functools
import json

import chex
import numpy as np
import pytest
from commands import run_experiment

import gfm_jax as gfm
from experiments.pretrain.config import PRESETS, check
from experiments.pretrain.held_out import BASELINES
from experiments.pretrain.problems import HELD_OUT, PROBLEMS

run = functools.partial(run_experiment, "pretrain")


def test_smoke_fits_the_same_again(tmp_path):
    done = run("--preset", "smoke", "--out", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr[-3000:]
    cells = {
        (row["table"], row["row"], row["metric"]): row
        for row in json.loads((tmp_path / "one" / "results.json").read_text())
    }
    assert cells["teacher/0.5", "persistence", "relative_error"]["value"] == 1
    for row in ("weight space", "general", "general, curvature"):
        assert cells["teacher/0.5", row, "relative_error"]["num_seeds"] == 2
        assert 0 < cells["teacher/0.5", row, "coverage"]["value"] <= 1
    about = json.loads((tmp_path / "one" / "fitted" / "general.json").read_text())
    assert about["features_sha256"] == gfm.forecasting.names.fingerprint_of_names()
    assert about["metrics"]["teacher/0.5"]["general"]["loss"]["num_fits"] == 2

    # Made again from nothing, it is the same forecaster.
    again = run("--preset", "smoke", "--out", str(tmp_path / "two"), "--fits", "1")
    assert again.returncode == 0, again.stderr[-3000:]
    (forecaster, params), (other, others) = (
        gfm.load(tmp_path / name / "fitted" / "general-0.safetensors") for name in ("one", "two")
    )
    assert forecaster.learner.config == other.learner.config
    chex.assert_trees_all_close(params, others, rtol=1e-4, atol=1e-5)
    run_of_one = gfm.Trajectory(step=np.arange(9), time=0.1 * np.arange(9), weights=np.sqrt(np.arange(9.0))[:, None])
    assert np.isfinite(gfm.forecast(forecaster, params, run_of_one, until=12).weights).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"problems": ("digitz",)}, "problems: expected some of digits_mlp, "),
        ({"problems": ("teacher",)}, "held_out: expected families that the zoo does not hold, got teacher"),
        ({"simple": ("lawaa",)}, "simple: expected some of persistence, "),
        ({"fits": 0}, "fits: expected at least 1, got 0"),
        ({"coverage": 1.0}, r"coverage: expected a fraction in \(0, 1\), got 1.0"),
        ({"observed": (1.5,)}, "observed: expected fractions in"),
        ({"head": "tensr"}, "head: expected coordinate or tensor, got 'tensr'"),
        ({"weight": -1.0}, "weight, scale: expected at least 0"),
    ],
)
def test_what_cannot_be_run_is_told_first(changed, message):
    config = PRESETS["smoke"]
    with pytest.raises(ValueError, match=message):
        check(config.__class__(**{**vars(config), **changed}), PROBLEMS, HELD_OUT, BASELINES)
