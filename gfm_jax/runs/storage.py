"""Recordings larger than memory: arrays kept by tensorstore, on disk or in an object store, and a manifest.

A recording is made chunk of runs by chunk of runs. The manifest is written after the arrays of each chunk, so that a
recording that was killed goes on where it was. In a local folder it is made in `FOLDER.partial`, by one process at a time,
and renamed once it is complete; elsewhere the manifest alone says whether it is.
"""

import errno
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Array
from tqdm.auto import tqdm

from gfm_jax.base import Trajectory
from gfm_jax.checks import check_count
from gfm_jax.files import LOCK, give_back, take_folder
from gfm_jax.runs.manifest import (
    CorruptRecording,
    as_recipe,
    check_same,
    describe_chunk,
    read_manifest,
    write_manifest,
)

__all__ = ["CorruptRecording", "open_recording", "record_to_disk", "verify"]

PIECE = 2**20  # bytes, at most, of runs that are compressed together
# Shared by all calls: connections, and what is at memory://. Files are mapped while they are read, which saves a copy.
CONTEXT = ts.Context({"file_io_mode": {"mode": "memmap"}})


def record_to_disk(
    folder: str | os.PathLike,
    num_runs: int,
    record_chunk: Callable[[np.ndarray], Trajectory],
    *,
    chunk: int,
    recipe: dict[str, Any],
    progress: str | None = "record",
) -> None:
    """Records runs chunk by chunk onto disk; goes on where an earlier call of the same recipe was killed.

    Use it for more runs than memory holds, and for those that take long; `open_recording` reads them.

    Args:
      folder: where the recording will be; its parent must exist. Or a URL that tensorstore knows, such as `gs://bucket/runs`,
        to which only one process at a time may record.
      num_runs: how many runs.
      record_chunk: from the indices of the runs of a chunk, [chunk], to their trajectory, such as
        `lambda i: record(keys[i], task, optax.adam, rates[i], saves)`. The last chunk is filled up by repeating its
        last index, so that every call has one shape and compiles once. All chunks have the same parts, dtypes and layout.
      chunk: runs at a time: what memory has to hold, some times over while it is written.
      recipe: what the recording is of, as JSON, such as `{"task": "digits", "rate": 0.1}`: a recording is only resumed, or
        taken for done, if its recipe is the same.
      progress: name of the progress bar; None for none.

    Raises:
      ValueError: for fewer than one run or a chunk below 1; for a folder with another recipe, with anything else in it, or that
        another process records to; for a chunk of another number of runs, or that is not like the chunks before it in names,
        dtypes, shapes, layout or steps. Nothing is written then.
      OSError: naming the folder, where its disk has no space for all runs uncompressed; or where a chunk cannot be written,
        which then does not count as recorded.

    >>> import jax, jax.numpy as jnp, optax, tempfile
    >>> from gfm_jax.runs import linear_regression, record, save_steps
    >>> task, keys = linear_regression(jax.random.key(0), 20, 3), jax.random.split(jax.random.key(1), 4)
    >>> some = lambda i: record(keys[i], task, optax.sgd, jnp.full(10, 0.1), save_steps(10, 5))
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     record_to_disk(parent + "/runs", 4, some, chunk=2, recipe={"rate": 0.1}, progress=None)
    ...     open_recording(parent + "/runs", runs=[0, 3], parts=["loss"]).loss.shape
    (2, 6)
    """
    recipe = as_recipe(recipe, check_count("num_runs", num_runs), check_count("chunk", chunk))
    if "://" in str(folder):
        return _record(_store(folder), math.inf, record_chunk, recipe, progress)
    folder = pathlib.Path(folder).expanduser()
    if folder.exists():
        store, manifest = _complete(folder)
        return check_same("recipe", store, manifest.recipe, recipe)
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"folder: expected one whose parent exists, got {folder}")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    lock = take_folder(partial)
    try:
        if not folder.exists():
            _record(_store(partial), shutil.disk_usage(partial).free, record_chunk, recipe, progress)
            (partial / LOCK).unlink()
            partial.rename(folder)
    finally:
        give_back(lock)
    if partial.exists() and not any(partial.iterdir()):  # another process had finished the recording meanwhile
        partial.rmdir()


def _record(store, space, record_chunk, recipe, progress):
    num_runs, chunk = recipe["num_runs"], recipe["chunk"]
    manifest = read_manifest(store)
    if manifest is not None:
        check_same("recipe", store, manifest.recipe, recipe)
    elif names := {key.decode().split("/")[0] for key in store.list().result()} - {LOCK}:
        names = ", ".join(sorted(names)[:5])
        raise ValueError(f"folder: expected {store.url} empty or with a part of this recording, got {names} in it")
    done = manifest.stored if manifest else 0
    with tqdm(total=num_runs, initial=done, desc=progress, disable=progress is None) as bar:
        for start in range(done, num_runs, chunk):
            stop = min(start + chunk, num_runs)
            trajectory = record_chunk(np.minimum(np.arange(start, start + chunk), num_runs - 1))
            arrays = _arrays_of(trajectory, chunk)
            own = describe_chunk(arrays, trajectory.layout, recipe)
            before = manifest or own
            like = lambda one: one.arrays | {"layout": one.layout}
            check_same("record_chunk", store, like(before), like(own))
            if start == done and before.steps is not None:  # later chunks may have steps of their own
                check_same("record_chunk", store, {"steps": before.steps}, {"steps": own.steps})
            if start == done and (size := (num_runs - done) * sum(a[0].nbytes for a in arrays.values())) > space:
                raise OSError(errno.ENOSPC, f"folder: no space left in {store.url} for {size} bytes of runs")
            try:
                if manifest is None:
                    write_manifest(store, own)
                if start == done:
                    stored = {name: _create(store, name, array, num_runs) for name, array in arrays.items()}
                for write in [stored[name][start:stop].write(array[: stop - start]) for name, array in arrays.items()]:
                    write.result()
                manifest = before._replace(stored=stop, steps=own.steps if own.steps == before.steps else None)
                write_manifest(store, manifest)
            except ValueError as error:
                raise OSError(f"folder: cannot write to {store.url} ({error})") from error
            bar.update(stop - start)


def open_recording(
    folder: str | os.PathLike,
    *,
    runs: int | slice | Sequence | np.ndarray | Array = slice(None),
    parts: Sequence[str] | None = None,
) -> Trajectory:
    """Reads a recording into numpy arrays; of one that is larger than memory some runs, or some parts.

    Only what is asked for is read, and compared with its checksums.

    Args:
      folder: of the recording, or its URL.
      runs: the number of one, negative from the end; a slice; a list of such numbers, or of one Boolean a run.
      parts: such as `("weights", "loss")`, beside `step` and `time`; None for all that were recorded.

    Returns:
      The run, [saves, ...], or those chosen, [chosen, saves, ...].

    Raises:
      ValueError: for runs out of range, or parts that were not recorded.
      CorruptRecording: for a folder that is not a recording, is incomplete, or whose arrays are not what was recorded.

    >>> import jax, jax.numpy as jnp, optax, tempfile
    >>> from gfm_jax.runs import linear_regression, record, save_steps
    >>> task, keys = linear_regression(jax.random.key(0), 20, 3), jax.random.split(jax.random.key(1), 4)
    >>> some = lambda i: record(keys[i], task, optax.sgd, jnp.full(10, 0.1), save_steps(10, 5))
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     record_to_disk(parent + "/runs", 4, some, chunk=2, recipe={}, progress=None)
    ...     open_recording(parent + "/runs").weights.shape, open_recording(parent + "/runs", runs=-1).weights.shape
    ((4, 6, 3), (6, 3))
    """
    store, manifest = _complete(folder)
    part_of = {name: name.split(".")[0] for name in manifest.arrays}
    wanted = {"step", "time", *(part_of.values() if parts is None else parts)}
    if unknown := wanted - {*part_of.values()}:
        raise ValueError(
            f"parts: expected some of {', '.join(dict.fromkeys(part_of.values()))}, got {', '.join(unknown)}"
        )
    try:
        chosen = np.arange(manifest.recipe["num_runs"])[runs if isinstance(runs, slice) else np.asarray(runs)]
    except IndexError as error:
        raise ValueError(f"runs: expected some of {manifest.recipe['num_runs']} runs, got {runs!r}") from error
    arrays = _read(store, manifest, [name for name, part in part_of.items() if part in wanted], chosen)
    state = {name.removeprefix("state."): arrays.pop(name) for name in [*arrays] if name.startswith("state.")}
    return Trajectory(**arrays, state=state or None, layout=manifest.layout)


def verify(folder: str | os.PathLike) -> None:
    """Reads a whole recording, one chunk of runs at a time, and compares it with its checksums.

    Args:
      folder: of the recording, or its URL.

    Raises:
      CorruptRecording: naming the first array that is not what was recorded, and where it is not.

    >>> import jax, jax.numpy as jnp, optax, tempfile
    >>> from gfm_jax.runs import linear_regression, record, save_steps
    >>> task, keys = linear_regression(jax.random.key(0), 20, 3), jax.random.split(jax.random.key(1), 4)
    >>> some = lambda i: record(keys[i], task, optax.sgd, jnp.full(10, 0.1), save_steps(10, 5))
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     record_to_disk(parent + "/runs", 4, some, chunk=2, recipe={}, progress=None)
    ...     verify(parent + "/runs")  # silent: nothing is damaged
    >>> verify("memory://runs")
    Traceback (most recent call last):
    gfm_jax.runs.manifest.CorruptRecording: memory://runs/: not a recording, it has no manifest.json
    """
    store, manifest = _complete(folder)
    num_runs, chunk = manifest.recipe["num_runs"], manifest.recipe["chunk"]
    for start in range(0, num_runs, chunk):
        _read(store, manifest, manifest.arrays, slice(start, min(start + chunk, num_runs)))


def _complete(folder):
    """The store and the manifest of a recording that is complete."""
    store = _store(folder)
    manifest = read_manifest(store)
    if manifest is None:
        raise CorruptRecording(f"{store.url}: not a recording, it has no manifest.json")
    if manifest.stored < manifest.recipe["num_runs"]:
        raise CorruptRecording(f"{store.url}: the recording was not finished; record again to go on with it")
    return store, manifest


def _arrays_of(trajectory, chunk) -> dict[str, np.ndarray]:
    """The parts of a chunk by name, once each of them is led by its runs."""
    expected = "record_chunk: expected"
    if not isinstance(trajectory, Trajectory):
        raise ValueError(f"{expected} a Trajectory, as record returns it, got {type(trajectory).__name__}")
    if trajectory.curvature is not None:
        raise ValueError(f"{expected} runs without curvature, which is measured when runs are read, got one")
    parts = trajectory._replace(layout=None, state=None)._asdict()
    parts |= {f"state.{slot}": array for slot, array in (trajectory.state or {}).items()}
    arrays = {name: np.asarray(array) for name, array in parts.items() if array is not None}
    if missing := {"step", "time"} - arrays.keys():
        raise ValueError(f"{expected} a trajectory with step and time, got one without {', '.join(missing)}")
    for name, array in arrays.items():
        if array.shape[:1] != (chunk,):
            raise ValueError(
                f"{expected} {chunk} runs, one for each index, along the first axis, got {name} {array.shape}"
            )
        if array.dtype.kind in "OSU":
            raise ValueError(f"{expected} arrays of numbers, got {name} of {array.dtype}")
    return arrays


# --- tensorstore ------------------------------------------------------------------------------------------------------


def _store(folder) -> ts.KvStore:
    url = folder if "://" in str(folder) else pathlib.Path(folder).expanduser().absolute().as_uri()
    try:
        return ts.KvStore.open(url.rstrip("/") + "/", context=CONTEXT).result()
    except ValueError as error:
        raise ValueError(f"folder: expected a path, or a URL that tensorstore knows, got {folder} ({error})") from error


def _create(store, name, array, num_runs):
    """An array of all runs, one file (in Zarr's terms a shard) for each chunk of them, made of pieces that are read alone:
    of all runs of the chunk where they are small, of one run, or of one save."""
    piece = [*array.shape]
    for axis in range(min(2, array.ndim)):
        if math.prod(piece) * array.itemsize > PIECE:
            piece[axis] = 1
    compressor = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"}}
    plain, checksum = {"name": "bytes"}, {"name": "crc32c"}
    shard = {"chunk_shape": piece, "codecs": [plain, compressor, checksum], "index_codecs": [plain, checksum]}
    metadata = {
        "shape": [num_runs, *array.shape[1:]],
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*array.shape]}},
        "codecs": [{"name": "sharding_indexed", "configuration": shard}],
    }
    spec = {"driver": "zarr3", "metadata": metadata, "store_data_equal_to_fill_value": True}
    return ts.open(spec, kvstore=store / f"{name}/", open=True, create=True).result()


def _read(store, manifest, names, runs) -> dict[str, Any]:
    spec, arrays, reads = {"driver": "zarr3", "fill_missing_data_reads": False}, {}, {}
    try:
        for name in names:
            stored = ts.open(spec, kvstore=store / f"{name}/", open=True).result()
            found = f"{stored.dtype.name} {[*stored.shape]}"
            if found != manifest.arrays[name]:
                raise ValueError(f"expected {manifest.arrays[name]}, got {found}")
            chosen = stored[runs]
            arrays[name] = np.empty(
                chosen.shape, stored.dtype.numpy_dtype
            )  # numpy's pages are larger than tensorstore's
            reads[name] = ts.array(arrays[name]).write(chosen)
        for name in reads:
            reads[name].result()
    except ValueError as error:
        raise CorruptRecording(f"{store.url}{name}: cannot be read ({error})") from error
    return arrays
