"""The flow map experiment, as a user runs it."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_experiment

from experiments.flow_maps.board import LOWER, STD, UPPER, density, draw_pool
from experiments.flow_maps.config import PRESETS, check
from experiments.flow_maps.learn import jobs
from experiments.flow_maps.on_images import steps_of
from gfm_jax.datasets import checkerboard
from gfm_jax.flows.metrics import kl_floor, off_support

run = functools.partial(run_experiment, "flow_maps")


def test_smoke(tmp_path):
    done = run("--preset", "smoke", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    cells = {(row["table"], row["row"], row["metric"]): row for row in rows}
    for bins in (48, 50):
        for row in ("lsd", "psd_m", "flow_100_heun"):
            one = cells[f"checkerboard/{bins}", row, "kl/4"]
            assert one["value"] > cells[f"checkerboard/{bins}", "exact_samples", "kl/4"]["value"]
            assert one["num_seeds"] == 2
    assert 0 < cells["checkerboard/48", "lsd", "off_support/1"]["value"] < 0.7
    assert cells["training", "psd_m", "gradient_norm"]["value"] > 0
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    for row, num in (("lsd", 1), ("flow_euler", 1), ("flow_100_heun", 100), ("gaussian", 1)):
        assert np.isfinite(cells["images/digits", row, f"frechet_test/{num}"]["value"])
    assert cells["images/digits", "copies", "nearest/1"]["value"] == 0
    assert figures == ["flow_map.png", "images.png", "residuals.png", "samples.png", "table_1.png"]
    assert "--preset smoke" in (tmp_path / "run" / "report.md").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_typo_is_named():
    done = run("--preset", "smoke", "--methods", "lds")
    assert done.returncode != 0
    assert "methods: expected some of lsd, esd" in done.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("coupling", "any"),
        ("optimizer", "sgd"),
        ("num_fits", 0),
        ("num_jumps", (0,)),
        ("widths", ()),
        ("diagonal_fraction", 1.0),
        ("image_methods", ("shortcut",)),
        ("image_methods", ("lsd", "lsd")),
        ("peak_rate", 0.0),
    ],
)
def test_configs_that_cannot_be_run(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        check(dataclasses.replace(PRESETS["laptop"], **{field: value}))


def test_long_fits_come_first_and_equal_ones_once():
    config = dataclasses.replace(PRESETS["laptop"], methods=("psd_m", "lsd"), num_fits=2, lsd_steps=9, num_steps=3)
    long, short = jobs(config)[:2], jobs(config)[2:]
    assert long == [("lsd", "lsd", 9, 0), ("lsd", "lsd", 9, 1)]
    assert short == [
        ("psd_m", "psd_m", 3, 0),
        ("lsd_equal", "lsd", 3, 0),
        ("psd_m", "psd_m", 3, 1),
        ("lsd_equal", "lsd", 3, 1),
    ]
    equal = dataclasses.replace(config, lsd_steps=3)
    assert [row for row, *_ in jobs(equal)] == ["lsd", "lsd", "psd_m", "psd_m"]


def test_all_fits_of_images_cost_the_same():
    config = dataclasses.replace(PRESETS["laptop"], image_steps=1000, image_share=0.75)
    assert steps_of(config, "lsd") == 1000
    assert steps_of(config, "flow_matching") == round(1000 * 4 / 3)  # 1.33, the ratio of FLOPs
    assert steps_of(config, "psd_m") == round(1000 * 4 / 3.5)


@pytest.mark.parametrize(("bins", "floor", "spread"), [(48, 0.0093, 0.0006), (50, 0.0665, 0.003)])
def test_the_published_floors(key, bins, floor, spread):
    found = kl_floor(key, density(bins), checkerboard, 64_000)
    assert float(found.mean()) == pytest.approx(floor, abs=spread)


def test_the_pool_is_of_the_board_and_paired_within_blocks(key):
    config = PRESETS["smoke"]
    x_1, x_0 = draw_pool(config)
    assert float(off_support(jnp.asarray(LOWER), jnp.asarray(UPPER), jnp.asarray(x_1))) == 0
    assert x_1.std() == pytest.approx(STD, rel=0.02)
    assert ((x_1 - x_0) ** 2).sum(1).mean() < 0.1  # independent pairs: 4 std^2 = 1.33
    independent, none = draw_pool(dataclasses.replace(config, coupling="independent"))
    assert none is None
    np.testing.assert_array_equal(np.sort(independent, axis=0), np.sort(x_1, axis=0))
    np.testing.assert_allclose(np.asarray(x_0).std(), STD, rtol=0.05)
