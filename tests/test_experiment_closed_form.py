"""The closed form experiment, as a user runs it, and its exact parts against what is known of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_experiment

from experiments.closed_form.config import PRESETS, check
from experiments.closed_form.exact import alignment, collapse, collapse_formula, estimators

run = functools.partial(run_experiment, "closed_form")


def test_smoke(tmp_path):
    done = run("--preset", "smoke", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    cells = {(row["table"], row["row"], row["metric"]): row["value"] for row in rows}
    assert cells["hybrid/0", "hybrid", "same_as_learned"] == 1  # bit for bit
    assert cells["hybrid/1", "hybrid", "farthest"] < 1e-5  # training points
    assert cells["hybrid/1", "hybrid", "copies"] == 1
    assert cells["estimator/8", "self_normalised", "bias_in_standard_errors"] > 10
    assert cells["dataset_size/256", "copies", "nearest"] == 0
    assert cells["efm/1", "cost", "over_M_1"] == 1
    assert np.isfinite(cells["efm/OT", "20 epochs", "frechet_test"])
    assert cells["efm/1", "20 epochs", "frechet_test"] == cells["dataset_size/256", "flow_matching", "frechet_test"]
    for table in ("dataset_size/10", "dataset_size/256"):
        assert np.isfinite(cells[table, "flow_matching", "frechet_test"])
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == ["figure_1a.png", "figure_1c.png", "figure_2.png", "figure_3.png", "figure_4.png"]


@pytest.mark.parametrize(("dim", "formula"), [(32, 0.61), (128, 0.44), (512, 0.28), (3072, 0.138)])
def test_the_formula_of_the_collapse(dim, formula):
    assert collapse_formula(dim, 20_000) == pytest.approx(formula, abs=0.005)


def test_the_collapse_comes_when_the_formula_says(key):
    found = collapse(key, 512, 20_000, 128)
    assert found["measured"] == pytest.approx(collapse_formula(512, 20_000), abs=0.02)
    assert (np.diff(found["weight"]) > -0.02).all()


def test_alignment_of_one_point_is_perfect(key):
    data = jnp.ones((1, 5))
    found = alignment(key, data, 1, [0.1, 0.5])
    np.testing.assert_allclose(found["cosine"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["effective_size"], 1, rtol=1e-5)


def test_estimators_tell_bias_from_none(key):
    found = estimators(key, jax.random.normal(key, (60, 3)), 0.5, 6, 20_000)
    assert found["without_replacement"][0] < 4
    assert found["with_replacement"][0] < 4
    assert found["self_normalised"][0] > 10
    assert found["without_replacement"][1] < found["with_replacement"][1] < found["self_normalised"][1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "digit"),
        ("num_fits", 1),
        ("sizes", (5000,)),
        ("sizes", (10, 100)),
        ("sizes", (100, 10, 1152)),
        ("efm_steps", ()),
        ("efm_companions", (128, 256)),
        ("network", "cnn"),
        ("efm_companions", (64,)),
        ("taus", (0.123,)),
        ("estimator_time", 1.0),
    ],
)
def test_configs_that_cannot_be_run(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        check(dataclasses.replace(PRESETS["laptop"], **{field: value}))
