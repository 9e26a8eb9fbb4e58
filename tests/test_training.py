import os
import signal
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax import training
from gfm_jax.training import fit

DATA = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
OPTIMIZER = optax.adam(0.05)


def sample(key, data):
    return data[jax.random.randint(key, (32,), 0, len(data))]


def loss(params, key, batch):
    target = batch @ jnp.array([1.0, -2.0, 0.5])
    error = batch @ params["w"] + params["b"] - target
    return jnp.mean(error**2), {"error": jnp.abs(error).mean()}


def straight(num_steps=60, **choices):
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    settings = {"chunk": 20} | choices
    return fit(jax.random.key(1), loss, start, jnp.asarray(DATA), sample, OPTIMIZER, num_steps, **settings)


def test_finds_the_minimum():
    found = straight(400)
    np.testing.assert_allclose(found.params["w"], [1.0, -2.0, 0.5], atol=1e-2)
    assert found.losses[-1] < 1e-3 < found.losses[0]


def test_the_chunk_does_not_matter():
    chex.assert_trees_all_close(straight(chunk=7).last, straight(chunk=60).last, rtol=1e-6)


def test_average_lags_behind_and_forgets_its_start():
    found = straight(60, average=0.9)
    assert 0 < float(jnp.abs(found.params["w"] - found.last["w"]).max()) < 0.2
    chex.assert_trees_all_close(straight(5, average=0.0).params, straight(5, average=0.0).last)


def test_second_fit_compiles_nothing():
    straight()
    before = training._take_steps._cache_size()
    straight()
    assert training._take_steps._cache_size() == before


def test_two_devices_give_the_numbers_of_one():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    chex.assert_trees_all_close(
        jax.device_get(straight(mesh=mesh).last), jax.device_get(straight().last), rtol=1e-4, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore")
def test_killed_then_resumed(tmp_path):
    """kill -9 after the first checkpoint; the resumed fit ends at the numbers of one that was never stopped."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        from gfm_jax import training
        import test_training
        save, calls = training._save, []
        def once(*arguments):
            if calls:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(save(*arguments))
        training._save = once
        test_training.straight(folder={str(tmp_path / "fit")!r}, save_every=0)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = straight(folder=tmp_path / "fit")
    assert np.isnan(resumed.losses[:20]).all()  # these steps were taken before
    assert np.isfinite(resumed.losses[20:]).all()
    never_stopped = straight()
    chex.assert_trees_all_equal(jax.device_get(resumed.last), jax.device_get(never_stopped.last))
    chex.assert_trees_all_equal(jax.device_get(resumed.params), jax.device_get(never_stopped.params))
    done_before = straight(
        folder=tmp_path / "fit"
    )  # nothing is left to do: what the steps said is not known, but its names are
    assert jax.tree.map(np.shape, done_before.info) == jax.tree.map(np.shape, never_stopped.info)
    assert np.isnan(done_before.info["error"]).all()


@pytest.mark.filterwarnings("ignore")
def test_params_given_are_not_given_away():
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    fit(jax.random.key(1), loss, start, jnp.asarray(DATA), sample, OPTIMIZER, 3)
    np.testing.assert_array_equal(start["w"], np.zeros(3))


def test_bad_input():
    with pytest.raises(ValueError, match="num_steps"):
        straight(0)
    with pytest.raises(ValueError, match="average"):
        straight(5, average=1.0)
    nan = lambda params, key, batch: (params["w"].sum() * jnp.nan, {})
    with pytest.raises(FloatingPointError, match="loss: nan"):
        fit(jax.random.key(1), nan, {"w": jnp.zeros(3)}, jnp.asarray(DATA), sample, OPTIMIZER, 5)
