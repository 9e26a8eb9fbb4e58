"""The forecaster that ships: what it is worth on runs of its user, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gfm_jax as gfm
from gfm_jax import pretrained_models
from gfm_jax.forecasting import baselines, names


def runs_of_a_user():
    """Single-pass runs of a small network, of weights alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 12)).astype(np.float32)
    y = (np.tanh(x @ rng.normal(size=(12, 20))) @ rng.normal(size=(20, 5))).argmax(1).astype(np.int32)
    task = gfm.classification(
        gfm.networks.MLP((24, 5)), {"train": (x[:3000], y[:3000]), "test": (x[3000:], y[3000:])}, 8
    )
    momentum = lambda rate: optax.sgd(rate, momentum=0.9)
    runs = gfm.record(jax.random.split(jax.random.key(3), 6), task, momentum, jnp.full((6, 400), 0.01), num_saves=20)
    like = jax.eval_shape(task.init, jax.random.key(0))
    loss = jax.jit(jax.vmap(lambda w: task.evaluate(gfm.unravel(like, w), task.data["test"])["loss"]))
    return runs._replace(gradient=None, state=None, mean_weights=None, loss=None), loss


def test_forecasts_runs_that_it_has_never_seen():
    runs, loss = runs_of_a_user()
    found = {
        name: gfm.forecast(*method, runs, observed=0.5)
        for name, method in {
            "pretrained": gfm.pretrained("general"),
            "persistence": (baselines.persistence(), ()),
            "lawa": (baselines.lawa(), ()),
            "log_time": (baselines.log_time(), ()),
            "half": (baselines.lawa_half_log(), ()),
        }.items()
    }
    last, end = runs.weights[:, 10], runs.weights[:, -1]
    error = {n: float(np.mean(((f.weights - end) ** 2).sum(1) / ((last - end) ** 2).sum(1))) for n, f in found.items()}
    losses = {n: float(loss(f.weights).mean()) for n, f in found.items()}
    assert error["pretrained"] < 0.95 * min(error[n] for n in error if n != "pretrained"), error
    assert losses["pretrained"] < min(losses[n] for n in losses if n != "pretrained"), losses
    covered = (found["pretrained"].lower <= end) & (end <= found["pretrained"].upper)
    assert 0.75 < float(covered.mean()) <= 1


def test_a_fit_goes_on_from_it():
    forecaster, params = gfm.pretrained("general")
    step = jnp.tile(jnp.arange(0, 210, 10), (4, 1))
    slopes = jax.random.normal(jax.random.key(0), (4, 1, 5))
    runs = gfm.Trajectory(
        step=step, time=0.1 * step, weights=jnp.sqrt(step)[..., None] * slopes, layout=gfm.Layout(("a",), ((5,),))
    )
    fitted, _ = gfm.fit(jax.random.key(1), forecaster, runs, num_steps=2, start=params)
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(*map(jax.tree.leaves, (fitted.network, params.network)), strict=True)
    ]
    assert 0 < max(moved) < 0.05


def test_a_second_call_gives_the_same_forecaster():
    assert gfm.pretrained("general")[0] is gfm.pretrained("general")[0]


def test_what_ships_is_small_and_has_a_card():
    files = [path for path in pretrained_models.FOLDER.iterdir() if path.suffix != ".py" and path.is_file()]
    assert sum(path.stat().st_size for path in files) < 400_000
    about = pretrained_models.card("general")
    assert {"zoo", "seed", "splits", "metrics", "licence", "limits", "commit", "features_sha256", "command"} <= set(
        about
    )
    for table in about["metrics"].values():
        assert {"persistence", "lawa", "general"} <= set(table)
        assert table["general"]["relative_error"]["num_fits"] >= 3


def test_a_name_that_there_is_not():
    with pytest.raises(ValueError, match="name: expected one of general, got 'genaral'"):
        gfm.pretrained("genaral")


def test_other_features_are_refused(tmp_path, monkeypatch):
    for path in pretrained_models.FOLDER.glob("general.*"):
        shutil.copy(path, tmp_path)
    about = json.loads((tmp_path / "general.json").read_text()) | {"features_sha256": "0" * 64}
    (tmp_path / "general.json").write_text(json.dumps(about))
    monkeypatch.setattr(pretrained_models, "FOLDER", tmp_path)
    with pytest.raises(
        ValueError, match=f"000000000000, those of this version of gfm_jax {names.fingerprint_of_names()[:12]}"
    ):
        gfm.pretrained("general")
