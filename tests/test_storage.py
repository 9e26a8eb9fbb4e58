import functools
import json
import os
import pathlib
import resource
import shutil
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

from gfm_jax.base import Layout, Trajectory
from gfm_jax.runs import CorruptRecording, open_recording, record, record_to_disk, save_steps, take, verify

KEYS = jax.random.split(jax.random.key(0), 7)
RATES = np.linspace(0.01, 0.1, 7, dtype=np.float32)[:, None] * np.ones(12, np.float32)


def recorder(dtype=jnp.float32):
    return lambda i: record(KEYS[i], small_task(), optax.adam, RATES[i], save_steps(12, 4), dtype=dtype)


def make(folder, dtype=jnp.float32, **choices):
    settings = {"chunk": 3, "recipe": {"task": "small"}, "progress": None} | choices
    record_to_disk(folder, 7, recorder(dtype), **settings)
    return open_recording(folder)


def contents(folder):
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_read_is_what_was_recorded(tmp_path, dtype):
    stored = make(tmp_path / "runs", dtype)
    straight = recorder(dtype)(np.arange(7))
    assert isinstance(stored.weights, np.ndarray)
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
    record_to_disk(tmp_path / "runs", 7, never, chunk=3, recipe={"task": "small"}, progress=None)
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
        from gfm_jax.runs import record_to_disk
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

    record_to_disk(tmp_path / "runs", 7, record, chunk=3, recipe={"task": "small"}, progress=None)
    assert calls == [[3, 4, 5], [6, 6, 6]]
    chex.assert_trees_all_equal(open_recording(tmp_path / "runs"), make(tmp_path / "straight"))


def test_truncated_and_foreign_files(tmp_path):
    folder = tmp_path / "runs"
    make(folder)
    last, about = folder / "weights" / "c" / "2" / "0" / "0", folder / "weights" / "zarr.json"
    whole = last.read_bytes()
    for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[: len(whole) // 2], b"something else", b""):
        last.write_bytes(damaged)
        for read in (verify, open_recording):
            with pytest.raises(CorruptRecording, match=r"weights: cannot be read .*weights/c/2/0/0"):
                read(folder)
    last.unlink()
    with pytest.raises(CorruptRecording, match=r"weights: cannot be read .*weights/c/2/0/0.* is missing"):
        open_recording(folder)
    last.write_bytes(whole)
    verify(folder)
    about.write_text(about.read_text().replace("float32", "int32"))
    with pytest.raises(CorruptRecording, match=r"weights: .*expected float32 \[7, 5, \d+\], got int32"):
        open_recording(folder)
    about.unlink()
    with pytest.raises(CorruptRecording, match="weights: cannot be read"):
        open_recording(folder)
    for content, message in (
        ('{"format": 99}', "expected a recording of format 2, got format 99$"),
        ('{"format": 1}', r"got format 1, of \.npy files; read them by numpy\.load"),
        ("{", r"manifest\.json is damaged"),
    ):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(CorruptRecording, match=message):
            open_recording(folder)
    with pytest.raises(CorruptRecording, match="not a recording"):
        open_recording(tmp_path)


def test_zeros_are_stored(tmp_path):
    """So that a file that is missing is not taken for zeros."""
    record_to_disk(tmp_path / "runs", 4, lambda index: plain(0 * index), **PLAIN)
    assert not open_recording(tmp_path / "runs").weights.any()
    (tmp_path / "runs" / "weights" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(CorruptRecording, match="weights: cannot be read"):
        open_recording(tmp_path / "runs")


# --- reading a part of it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index", [2, -1, slice(1, 6, 2), slice(-2, None), [5, 0, 5], np.array([3]), np.arange(7) % 2 == 0, jnp.arange(2)]
)
def test_some_runs(tmp_path, index):
    whole = make(tmp_path / "runs")
    chex.assert_trees_all_equal(open_recording(tmp_path / "runs", runs=index), take(whole, index))


def test_some_parts(tmp_path):
    whole = make(tmp_path / "runs")
    some = open_recording(tmp_path / "runs", runs=slice(0, 2), parts=("state", "loss"))
    expected = Trajectory(whole.step, whole.time, state=whole.state, loss=whole.loss)
    chex.assert_trees_all_equal(some._replace(layout=None), take(expected, slice(0, 2)))
    assert some.layout == whole.layout
    assert open_recording(tmp_path / "runs", parts=()).weights is None


def test_only_what_is_asked_for_is_read(tmp_path):
    """Files that are not asked for may be missing."""
    whole = make(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "state.mu")
    for name in ("weights", "loss"):
        shutil.rmtree(tmp_path / "runs" / name / "c" / "1")
    some = open_recording(tmp_path / "runs", runs=[0, 6], parts=("weights", "loss"))
    np.testing.assert_array_equal(some.weights, whole.weights[[0, 6]])
    with pytest.raises(CorruptRecording, match="cannot be read"):
        open_recording(tmp_path / "runs", runs=[0, 3], parts=("weights",))


@pytest.mark.parametrize("dim", [4, 80_000, 300_000])
def test_runs_of_every_size(tmp_path, dim):
    """Compressed by chunk, by run and by save."""
    record_to_disk(tmp_path / "runs", 4, functools.partial(plain, dim=dim, slots=(), mean=False), **PLAIN)
    np.testing.assert_array_equal(
        open_recording(tmp_path / "runs", runs=[2, 1]).weights, plain([2, 1], dim=dim).weights
    )
    shard = json.loads((tmp_path / "runs" / "weights" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert shard["chunk_shape"] == {4: [2, 3, 4], 80_000: [1, 3, 80_000], 300_000: [1, 1, 300_000]}[dim]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"runs": [7]}, r"runs: expected some of 7 runs, got \[7\]"),
        ({"runs": np.ones(6, bool)}, "runs: expected some of 7 runs"),
        ({"parts": ("colour",)}, "parts: expected some of step, time, weights, .*, got colour"),
    ],
)
def test_what_is_not_there(tmp_path, choices, message):
    make(tmp_path / "runs")
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path / "runs", **choices)


def test_bad_sizes(tmp_path):
    with pytest.raises(ValueError, match="chunk"):
        make(tmp_path / "runs", chunk=0)


def test_one_compilation_for_all_chunks(tmp_path):
    from gfm_jax.runs import recorder as module

    make(tmp_path / "a")
    before = module._train._cache_size()
    make(tmp_path / "b")
    assert module._train._cache_size() == before


# --- a recording that goes on after a change --------------------------------------------------------------------------


def plain(index, *, saves=3, dim=4, dtype=np.float32, slots=("mu", "nu"), mean=True, steps=None, names=("w",)):
    """Runs whose weights are their number; made without training."""
    num = len(index)
    step = np.tile(np.arange(saves) * 2 if steps is None else steps, (num, 1)).astype(np.int32)
    weights = (np.asarray(index)[:, None, None] + np.zeros((num, saves, dim))).astype(dtype)
    return Trajectory(
        step,
        step.astype(np.float32),
        weights,
        weights if mean else None,
        state={slot: weights for slot in slots},
        layout=Layout(names, ((dim // len(names),),) * len(names)),
    )


class Killed(Exception):
    pass


def killed(folder, record=plain, **choices):
    """A recording of four runs of which the first two are there."""

    def stop(index):
        if index[0]:
            raise Killed
        return record(index)

    with pytest.raises(Killed):
        record_to_disk(folder, 4, stop, **(PLAIN | choices))


PLAIN = {"chunk": 2, "recipe": {"task": "plain"}, "progress": None}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"dtype": np.float16}, {"dtype": jnp.bfloat16}, r"weights 'float16 \[4, 3, 4\]', here 'bfloat16 \[4, 3, 4\]'"),
        ({"dtype": jnp.bfloat16}, {"dtype": np.float16}, r"weights 'bfloat16 \[4, 3, 4\]', here 'float16 \[4, 3, 4\]'"),
        ({}, {"dtype": jnp.bfloat16}, r"weights 'float32 \[4, 3, 4\]', here 'bfloat16"),
        ({}, {"slots": ()}, r"state.mu 'float32 \[4, 3, 4\]', here absent"),
        ({"slots": ("trace",)}, {}, "state.trace .*, here absent; state.mu absent, here 'float32"),
        ({"mean": False}, {}, r"mean_weights absent, here 'float32 \[4, 3, 4\]'"),
        ({}, {"saves": 4}, r"step 'int32 \[4, 3\]', here 'int32 \[4, 4\]'"),
        ({}, {"steps": [0, 1, 2]}, r"steps \[0, 2, 4\], here \[0, 1, 2\]"),
        ({}, {"dim": 5}, r"weights 'float32 \[4, 3, 4\]', here 'float32 \[4, 3, 5\]'"),
        ({}, {"names": ("v", "w")}, r"layout Layout\(names=\('w',\).*, here Layout\(names=\('v', 'w'\)"),
    ],
)
def test_what_changed_since_is_refused(tmp_path, before, after, message):
    """Nothing of the other kind is written, and what was there goes on (wrong before 0.2)."""
    killed(tmp_path / "runs", functools.partial(plain, **before))
    files = contents(tmp_path / "runs.partial")
    with pytest.raises(ValueError, match=f"record_chunk: .* holds another recording: {message}"):
        record_to_disk(tmp_path / "runs", 4, functools.partial(plain, **after), **PLAIN)
    assert contents(tmp_path / "runs.partial") == files
    record_to_disk(tmp_path / "runs", 4, functools.partial(plain, **before), **PLAIN)
    assert np.float64(open_recording(tmp_path / "runs").weights[:, 0, 0]).tolist() == [0, 1, 2, 3]
    verify(tmp_path / "runs")


def test_runs_may_have_steps_of_their_own(tmp_path):
    own = lambda index: plain(index, steps=np.arange(3) * (1 + index[0]))
    record_to_disk(tmp_path / "runs", 4, own, **PLAIN)
    assert open_recording(tmp_path / "runs").step[:, 1].tolist() == [1, 1, 3, 3]
    assert "steps" in json.loads((tmp_path / "runs" / "manifest.json").read_text())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda index: plain(index[:1]), r"record_chunk: expected 2 runs, .* got step \(1, 3\)"),
        (
            lambda index: jax.tree.map(lambda leaf: leaf[0], plain(index)),
            r"record_chunk: expected 2 runs, .* got step \(3,\)",
        ),
        (lambda index: plain(index).weights, "record_chunk: expected a Trajectory, .* got ndarray"),
        (lambda index: plain(index)._replace(time=None), "record_chunk: expected a trajectory with step and time"),
    ],
)
def test_chunks_that_are_none(tmp_path, record, message):
    """(wrong before 0.2)"""
    with pytest.raises(ValueError, match=message):
        record_to_disk(tmp_path / "runs", 4, record, **PLAIN)
    assert not contents(tmp_path)


# --- one writer, and space --------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path):
    """By name, while the first one records; it then finds what the first one made (wrong before 0.2)."""
    asked = []

    def record(index):
        with pytest.raises(
            ValueError, match=rf"folder: .*runs\.partial is being written by another process \(process {os.getpid()} "
        ):
            record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
        asked.append(index.tolist())
        return plain(index)

    record_to_disk(tmp_path / "runs", 4, record, **PLAIN)
    assert asked == [[0, 1], [2, 3]]
    assert open_recording(tmp_path / "runs").weights[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert not (tmp_path / "runs" / "lock").exists()
    record_to_disk(tmp_path / "runs", 4, lambda index: pytest.fail("recorded again"), **PLAIN)


def test_a_writer_that_is_in_another_process(tmp_path):
    """A lock that is held elsewhere, and is gone with the process that held it (wrong before 0.2)."""
    (tmp_path / "runs.partial").mkdir()
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); "
    hold += "time.sleep(99)"
    command = [sys.executable, "-c", hold, str(tmp_path / "runs.partial" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"folder: .*runs\.partial is being written by another process"):
            record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
        process.kill()
    record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    verify(tmp_path / "runs")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """Before anything is written (wrong before 0.2)."""
    number = 4 * 3 * (4 + 4 + 4 * 16)  # step, time, and four of four weights
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=number - 1))
    with pytest.raises(OSError, match=f"folder: no space left in .*runs.partial/ for {number} bytes of runs"):
        record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    assert not contents(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=number))
    record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    verify(tmp_path / "runs")


def test_a_chunk_that_cannot_be_written_does_not_count(tmp_path):
    """As when others fill the disk meanwhile: what was written before is kept, and the recording goes on."""
    noise = np.random.default_rng(0).normal(size=(4, 3, 10_000)).astype(np.float32)
    record = lambda index: plain(index, dim=10_000, slots=())._replace(weights=noise[index])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(index):
        if index[0]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        return record(index)

    try:
        with pytest.raises(OSError, match=r"folder: cannot write to .*runs.partial/ .*weights.*File too large"):
            record_to_disk(tmp_path / "runs", 4, limited, **PLAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads((tmp_path / "runs.partial" / "manifest.json").read_text())["stored"] == 2
    calls = []
    record_to_disk(tmp_path / "runs", 4, lambda index: calls.append(index.tolist()) or record(index), **PLAIN)
    assert calls == [[2, 3]]
    np.testing.assert_array_equal(open_recording(tmp_path / "runs").weights, noise)


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    """(wrong before 0.2)"""
    (tmp_path / "runs.partial").mkdir()
    (tmp_path / "runs.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: expected .*runs\.partial/ empty or .*, got thesis\.tex in it"):
        record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    assert [path.name for path in (tmp_path / "runs.partial").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="folder: expected one whose parent exists"):
        record_to_disk(tmp_path / "no" / "runs", 4, plain, **PLAIN)


# --- a URL ------------------------------------------------------------------------------------------------------------


def test_a_url(tmp_path):
    """Made in place; it is complete when its manifest says so."""
    url = (tmp_path / "some runs").as_uri()

    def stop(index):
        if index[0]:
            raise Killed
        return plain(index)

    with pytest.raises(Killed):
        record_to_disk(url, 4, stop, **PLAIN)
    with pytest.raises(CorruptRecording, match="not finished"):
        open_recording(url)
    record_to_disk(url, 4, plain, **PLAIN)
    record_to_disk(url + "/", 4, lambda index: pytest.fail("recorded again"), **PLAIN)
    verify(url)
    chex.assert_trees_all_equal(open_recording(url), plain(np.arange(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["some runs"]
    with pytest.raises(ValueError, match=r"recipe: .* holds another recording: task 'plain', here 'other'"):
        record_to_disk(url, 4, plain, **(PLAIN | {"recipe": {"task": "other"}}))


def test_a_url_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: expected file:///.*/ empty or .*, got thesis\.tex in it"):
        record_to_disk(tmp_path.as_uri(), 4, plain, **PLAIN)
    with pytest.raises(
        ValueError, match=r"folder: expected a path, or a URL that tensorstore knows, got nowhere://runs"
    ):
        record_to_disk("nowhere://runs", 4, plain, **PLAIN)


def test_a_store_without_files():
    record_to_disk("memory://storage/runs", 4, plain, **PLAIN)
    chex.assert_trees_all_equal(open_recording("memory://storage/runs", runs=[1]), plain([1]))
    with pytest.raises(CorruptRecording, match="memory://storage/: not a recording"):
        open_recording("memory://storage")
    with pytest.raises(ValueError, match=r"folder: expected memory://storage/ empty or .*, got runs in it"):
        record_to_disk("memory://storage", 4, plain, **PLAIN)


# --- manifests --------------------------------------------------------------------------------------------------------


def _without(*path):
    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


def _with(*path, value):
    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("format"), r"manifest\.json is damaged \(KeyError\('format'\)\)"),
        (_without("recipe"), "damaged .*'recipe'"),
        (_without("recipe", "num_runs"), "damaged .*'num_runs'"),
        (_without("arrays"), "damaged .*'arrays'"),
        (_without("arrays", "step"), "damaged .*no array step"),
        (_with("arrays", "weights", value="float31"), "weights: .*expected float31, got float32"),
        (_with("arrays", "colour", value="int32 [4]"), "colour: cannot be read"),
        (_without("stored"), "damaged .*'stored'"),
        (_with("stored", value=2), "not finished"),
        (_with("stored", value=3), "damaged .*3 of 4 runs stored, 2 at a time"),
        (_with("stored", value=6), "damaged .*6 of 4 runs stored"),
        (_with("layout", value=[1]), "damaged"),
    ],
)
def test_manifests_that_lack_something(tmp_path, change, message):
    """(wrong before 0.2)"""
    record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    path = tmp_path / "runs" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptRecording, match=message):
        verify(tmp_path / "runs")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"chunk": 1.5}, r"chunk: expected an integer of at least 1, got 1\.5"),
        ({"recipe": ["task"]}, "recipe: expected a dict"),
        ({"recipe": {"task": np.ones(2)}}, "recipe: expected what JSON can hold"),
        ({"recipe": {"chunk": 2}}, "recipe: expected other names than the arguments chunk"),
    ],
)
def test_bad_arguments(tmp_path, choices, message):
    with pytest.raises(ValueError, match=message):
        record_to_disk(tmp_path / "runs", 4, plain, **(PLAIN | choices))


def test_another_recipe_says_what_differs(tmp_path):
    record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    with pytest.raises(
        ValueError, match=r"recipe: .* holds another recording: task 'plain', here 'other'; record as before, choose"
    ):
        record_to_disk(tmp_path / "runs", 4, plain, **(PLAIN | {"recipe": {"task": "other"}}))
