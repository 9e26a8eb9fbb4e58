import errno
import functools
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

from gfm_jax.base import Layout, Trajectory
from gfm_jax.runs import CorruptRecording, open_recording, record_many, record_to_disk, save_steps, verify

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
    from gfm_jax.runs import recorder as module

    make(tmp_path / "a")
    before = module._train_many._cache_size()
    make(tmp_path / "b")
    assert module._train_many._cache_size() == before


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
        ({"dtype": np.float16}, {"dtype": jnp.bfloat16}, r"weights float16 \[3, 4\], here bfloat16 \[3, 4\]"),
        ({"dtype": jnp.bfloat16}, {"dtype": np.float16}, r"weights bfloat16 \[3, 4\], here float16 \[3, 4\]"),
        ({}, {"dtype": jnp.bfloat16}, r"weights float32 \[3, 4\], here bfloat16"),
        ({}, {"slots": ()}, r"state.mu float32 \[3, 4\], here absent"),
        ({"slots": ("trace",)}, {}, "state.trace .*, here absent; state.mu absent, here float32"),
        ({"mean": False}, {}, r"mean_weights absent, here float32 \[3, 4\]"),
        ({}, {"saves": 4}, r"step int32 \[3\], here int32 \[4\]"),
        ({}, {"steps": [0, 1, 2]}, r"steps \[0, 2, 4\], here \[0, 1, 2\]"),
        ({}, {"dim": 5}, r"weights float32 \[3, 4\], here float32 \[3, 5\]"),
        ({}, {"names": ("v", "w")}, "layout .*'names': \\['w'\\].*, here .*'names': \\['v', 'w'\\]"),
    ],
)
def test_what_changed_since_is_refused(tmp_path, before, after, message):
    """Nothing of the other kind is written, and what was there goes on (wrong before 0.2)."""
    killed(tmp_path / "runs", functools.partial(plain, **before))
    files = {path.name: path.read_bytes() for path in (tmp_path / "runs.partial").iterdir()}
    with pytest.raises(ValueError, match=f"record_chunk: expected runs like those already in .*: {message}"):
        record_to_disk(tmp_path / "runs", 4, functools.partial(plain, **after), **PLAIN)
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs.partial").iterdir()} == files
    whole = record_to_disk(tmp_path / "runs", 4, functools.partial(plain, **before), **PLAIN)
    assert np.float64(whole.weights[:, 0, 0]).tolist() == [0, 1, 2, 3]
    verify(tmp_path / "runs")


def test_runs_may_have_steps_of_their_own(tmp_path):
    own = lambda index: plain(index, steps=np.arange(3) * (1 + index[0]))
    stored = record_to_disk(tmp_path / "runs", 4, own, **PLAIN)
    assert stored.step[:, 1].tolist() == [1, 1, 3, 3]
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
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("*/*.npy"))


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

    stored = record_to_disk(tmp_path / "runs", 4, record, **PLAIN)
    assert asked == [[0, 1], [2, 3]]
    assert stored.weights[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert not (tmp_path / "runs" / "lock").exists()
    again = record_to_disk(tmp_path / "runs", 4, lambda index: pytest.fail("recorded again"), **PLAIN)
    assert again.weights.shape == (4, 3, 4)


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


def test_the_space_of_all_runs_is_taken_first(tmp_path):
    """No file has holes once the first runs are there (wrong before 0.2)."""
    long = functools.partial(plain, dim=40_000, slots=())
    killed(tmp_path / "runs", long)
    for name in ("weights", "mean_weights"):
        about = (tmp_path / "runs.partial" / f"{name}.npy").stat()
        assert about.st_blocks * 512 >= about.st_size > 4 * 3 * 40_000 * 4


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path, monkeypatch, error):
    """Before anything is recorded, with nothing left behind that claims its space (wrong before 0.2)."""

    def full(descriptor, offset, size):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", full)
    number = 4 * 3 * (4 + 4 + 4 * 16)  # step, time, and four of four weights
    with pytest.raises(OSError, match=f"folder: no space left in .*runs.partial for {number} bytes of 4 runs"):
        record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    assert not list(tmp_path.glob("*/*.npy"))
    monkeypatch.undo()
    record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    verify(tmp_path / "runs")


@pytest.mark.parametrize("way", ["absent", "refused"])
def test_space_is_taken_by_writing_where_it_cannot_be_asked_for(tmp_path, monkeypatch, way):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.delattr(os, "posix_fallocate") if way == "absent" else monkeypatch.setattr(
        os, "posix_fallocate", refused
    )
    killed(tmp_path / "runs", functools.partial(plain, dim=40_000, slots=()))
    about = (tmp_path / "runs.partial" / "weights.npy").stat()
    assert about.st_blocks * 512 >= about.st_size
    assert (
        record_to_disk(tmp_path / "runs", 4, functools.partial(plain, dim=40_000, slots=()), **PLAIN).weights[3, 2, -1]
        == 3
    )


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    """(wrong before 0.2)"""
    (tmp_path / "runs.partial").mkdir()
    (tmp_path / "runs.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"folder: expected .*runs\.partial empty or .*, got thesis\.tex in it"):
        record_to_disk(tmp_path / "runs", 4, plain, **PLAIN)
    assert [path.name for path in (tmp_path / "runs.partial").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="folder: expected one whose parent exists"):
        record_to_disk(tmp_path / "no" / "runs", 4, plain, **PLAIN)


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
        (_without("recipe"), "no proper recipe with num_runs"),
        (_without("recipe", "num_runs"), "no proper recipe with num_runs"),
        (_without("arrays"), "no proper arrays"),
        (_without("arrays", "step"), "no proper arrays with step and time"),
        (_without("arrays", "weights", "dtype"), "no proper dtype and shape of array weights"),
        (_with("arrays", "weights", "dtype", value="float31"), "no proper dtype and shape of array weights"),
        (_with("arrays", "weights", "shape", value="4"), "no proper dtype and shape of array weights"),
        (_with("arrays", "colour", value={"dtype": "int32", "shape": [4]}), "no proper array colour"),
        (_without("chunks"), "no proper chunks"),
        (_without("chunks", 1, "runs"), "no proper runs and checksums"),
        (_without("chunks", 1), "not finished"),
        (
            _with("chunks", 1, "runs", value=[0, 2]),
            r"expected a chunk from run 2 on in its manifest, got runs \[0, 2\]",
        ),
        (_without("chunks", 0, "crc32"), "no proper runs and checksums"),
        (_without("chunks", 1, "crc32", "state.mu"), r"state\.mu\.npy: no checksum of runs 2 to 4"),
        (_with("layout", value=[]), "no proper layout"),
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
        ({"chunk": 1.5}, r"chunk: expected a whole number of at least 1, got 1\.5"),
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
        ValueError, match=r"recipe: .* by another one: task 'plain', here 'other'; choose another folder"
    ):
        record_to_disk(tmp_path / "runs", 4, plain, **(PLAIN | {"recipe": {"task": "other"}}))
