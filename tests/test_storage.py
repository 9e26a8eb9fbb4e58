import json
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
from runs import small_task

from gfm_jax.trajectories import CorruptRecording, open_recording, record_many, record_to_disk, save_steps, verify

KEYS = jax.random.split(jax.random.key(0), 7)
RATES = np.linspace(0.01, 0.1, 7, dtype=np.float32)[:, None] * np.ones(12, np.float32)


def recorder(dtype=jnp.float32):
    return lambda i: record_many(KEYS[i], small_task(), optax.adam, RATES[i], save_steps(12, 4), dtype=dtype)


def make(folder, dtype=jnp.float32, **choices):
    settings = {"chunk": 3, "recipe": {"task": "small"}, "progress": None} | choices
    return record_to_disk(folder, 7, recorder(dtype), **settings)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_read_is_what_was_recorded(tmp_path, dtype):
    stored = make(tmp_path / "runs", dtype)
    straight = recorder(dtype)(np.arange(7))
    assert isinstance(stored.weights, np.memmap)
    assert stored.weights.dtype == dtype
    assert stored.layout == straight.layout
    same = lambda a, b: np.testing.assert_allclose(
        np.float64(a), np.float64(b), rtol=2e-2 if dtype != jnp.float32 else 1e-5, atol=1e-5
    )
    jax.tree.map(same, stored, straight)
    verify(tmp_path / "runs")
    assert not (tmp_path / "runs.partial").exists()


def test_a_finished_recording_is_not_made_again(tmp_path):
    make(tmp_path / "runs")
    never = lambda i: pytest.fail("recorded again")
    again = record_to_disk(tmp_path / "runs", 7, never, chunk=3, recipe={"task": "small"}, progress=None)
    assert again.weights.shape[0] == 7
    with pytest.raises(ValueError, match="recipe"):
        make(tmp_path / "runs", recipe={"task": "large"})


def test_killed_then_resumed(tmp_path):
    """kill -9 in the midst of the second chunk; the second call starts there, and ends at the numbers of one straight call."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        from test_storage import recorder
        from gfm_jax.trajectories import record_to_disk
        calls = []
        def record(i):
            calls.append(i)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return recorder()(i)
        record_to_disk({str(tmp_path / "runs")!r}, 7, record, chunk=3, recipe={{"task": "small"}}, progress=None)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "runs").exists()
    with pytest.raises(CorruptRecording, match="not finished"):
        open_recording(tmp_path / "runs.partial")
    calls = []

    def record(i):
        calls.append(i.tolist())
        return recorder()(i)

    resumed = record_to_disk(tmp_path / "runs", 7, record, chunk=3, recipe={"task": "small"}, progress=None)
    assert calls == [[3, 4, 5], [6, 6, 6]]
    straight = make(tmp_path / "straight")
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, resumed), jax.tree.map(np.asarray, straight))


def test_truncated_and_foreign_files(tmp_path):
    folder = tmp_path / "runs"
    make(folder)
    flipped = folder / "weights.npy"
    whole = flipped.read_bytes()
    flipped.write_bytes(whole[:-4] + bytes(4))
    open_recording(folder)  # the shape is right: only the checksum tells
    with pytest.raises(CorruptRecording, match="runs 6 to 7 are not what was recorded"):
        verify(folder)
    flipped.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptRecording, match=r"weights\.npy"):
        open_recording(folder)
    flipped.write_bytes(b"something else")
    with pytest.raises(CorruptRecording, match=r"weights\.npy"):
        open_recording(folder)
    np.save(flipped, np.zeros((7, 5, 2)))
    with pytest.raises(CorruptRecording, match="expected float32"):
        open_recording(folder)
    flipped.unlink()
    with pytest.raises(CorruptRecording, match="cannot be read"):
        open_recording(folder)
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CorruptRecording, match="format"):
        open_recording(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CorruptRecording, match="manifest"):
        open_recording(folder)
    with pytest.raises(CorruptRecording, match="not a recording"):
        open_recording(tmp_path)


def test_bad_sizes(tmp_path):
    with pytest.raises(ValueError, match="chunk"):
        make(tmp_path / "runs", chunk=0)


def test_one_compilation_for_all_chunks(tmp_path):
    from gfm_jax.trajectories import recorder as module

    make(tmp_path / "a")
    before = module._train_many._cache_size()
    make(tmp_path / "b")
    assert module._train_many._cache_size() == before
