"""Recordings larger than memory: one memory-mapped .npy file an array, and a manifest.

A recording is made in `FOLDER.partial`, chunk of runs by chunk of runs, and renamed to `FOLDER` once it is whole. The
manifest is written after the arrays of each chunk are on disk, so that a recording that was killed goes on where it was,
and a folder that bears its final name is complete. One process at a time writes, and takes the space of all runs before the
first.
"""

import errno
import json
import operator
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from gfm_jax.base import Trajectory
from gfm_jax.files import LOCK, foreign, give_back, replacing, take_folder
from gfm_jax.pytrees import layout_from_dict, layout_to_dict

__all__ = ["CorruptRecording", "open_recording", "record_to_disk", "verify"]

FORMAT = 1
MANIFEST = "manifest.json"


class CorruptRecording(ValueError):
    """A folder is not a whole recording; the message says what is wrong with it."""


def record_to_disk(
    folder: str | os.PathLike,
    num_runs: int,
    record_chunk: Callable[[np.ndarray], Trajectory],
    *,
    chunk: int,
    recipe: dict[str, Any],
    progress: str | None = "record",
) -> Trajectory:
    """Records runs chunk by chunk onto disk; goes on where an earlier call of the same recipe was killed.

    Args:
      folder: where the recording will be; its parent must exist.
      num_runs: how many runs.
      record_chunk: from the indices of the runs of a chunk, [chunk], to their trajectory, such as
        `lambda i: record_many(keys[i], task, optax.adam, rates[i], saves)`. The last chunk is filled up by repeating its
        last index, so that every call has one shape and compiles once. All chunks have the same parts, dtypes and layout.
      chunk: runs at a time: what memory has to hold.
      recipe: what the recording is of, as JSON, such as `{"task": "digits", "rate": 0.1}`: a recording is only resumed, or
        taken for done, if its recipe is the same.
      progress: name of the progress bar; None for none.

    Returns:
      The recording, memory-mapped.

    Raises:
      ValueError: for fewer than one run or a chunk below 1; for a folder with another recipe, with anything else in it, or that
        another process records to; for a chunk of another number of runs, or that is not like the chunks before it in names,
        dtypes, shapes, layout or steps. Nothing is written then.
      OSError: naming the folder, where the disk has no space for all runs.
    """
    num_runs, chunk = _count("num_runs", num_runs), _count("chunk", chunk)
    folder = pathlib.Path(folder).expanduser()
    recipe = _as_json(recipe, num_runs, chunk)
    if folder.exists():
        _same_recipe(folder, _read_manifest(folder), recipe)
        return open_recording(folder)
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists() and not (partial / MANIFEST).exists() and (names := foreign(partial, _files_in(partial))):
        raise ValueError(
            f"folder: expected {partial} empty or with a part of this recording, got {', '.join(names[:5])} in it"
        )
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"folder: expected one whose parent exists, got {folder}")
    partial.mkdir(exist_ok=True)
    lock = take_folder(partial)
    try:
        if not folder.exists():
            _record(partial, num_runs, record_chunk, chunk, recipe, progress)
            (partial / LOCK).unlink()
            partial.rename(folder)
    finally:
        give_back(lock)
    if partial.exists() and not any(partial.iterdir()):  # another process had finished the recording meanwhile
        partial.rmdir()
    return open_recording(folder)


def _record(partial, num_runs, record_chunk, chunk, recipe, progress):
    manifest = _read_manifest(partial) if (partial / MANIFEST).exists() else None
    if manifest is not None:
        _same_recipe(partial, manifest, recipe)
        _check_files(partial, manifest)
    starts = range(0, num_runs, chunk)
    done = 0 if manifest is None else len(manifest["chunks"])
    with tqdm(total=num_runs, initial=min(done * chunk, num_runs), desc=progress, disable=progress is None) as bar:
        for start in starts[done:]:
            runs = np.arange(start, min(start + chunk, num_runs))
            filled = np.minimum(np.arange(start, start + chunk), num_runs - 1)
            trajectory = record_chunk(filled)
            arrays = _arrays_of(trajectory, chunk)
            own = _new_manifest(arrays, trajectory.layout, recipe)
            if manifest is None:
                manifest = own
                _take_space(partial, manifest)
            _same_parts(partial, manifest, own, resumed=start == starts[done])
            manifest["steps"] = own["steps"] if manifest.get("steps") == own["steps"] else None
            checksums = {}
            for name, array in arrays.items():
                about = manifest["arrays"][name]
                stored = np.lib.format.open_memmap(partial / f"{name}.npy", "r+")
                raw = np.ascontiguousarray(array[: len(runs)]).view(_stored_dtype(about))
                stored[runs] = raw
                stored.flush()
                checksums[name] = zlib.crc32(raw.tobytes())
            manifest["chunks"].append({"runs": [int(runs[0]), int(runs[-1]) + 1], "crc32": checksums})
            _write_manifest(partial, manifest)
            bar.update(len(runs))


def open_recording(folder: str | os.PathLike) -> Trajectory:
    """A recording as a trajectory of memory-mapped arrays: only what is read of them comes into memory.

    Raises:
      CorruptRecording: for a folder that is not a recording, is incomplete, or whose files are not what it says.
    """
    folder = pathlib.Path(folder).expanduser()
    manifest = _read_manifest(folder)
    recorded = 0
    for part in manifest["chunks"]:
        start, stop = part["runs"]
        if start != recorded or stop <= start:
            raise CorruptRecording(
                f"{folder}: expected a chunk from run {recorded} on in its manifest, got runs {part['runs']}"
            )
        recorded = stop
    if recorded != manifest["recipe"]["num_runs"]:
        raise CorruptRecording(f"{folder}: the recording was not finished; record again to go on with it")
    return _unflatten(_check_files(folder, manifest), _layout(manifest))


def _check_files(folder, manifest):
    """The arrays, memory-mapped, once their files are found to be what the manifest says."""
    arrays = {}
    for name, about in manifest["arrays"].items():
        try:
            stored = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CorruptRecording(f"{folder / name}.npy: cannot be read ({error})") from error
        if list(stored.shape) != about["shape"] or stored.dtype != _stored_dtype(about):
            raise CorruptRecording(
                f"{folder / name}.npy: expected {about['dtype']} {about['shape']}, got {stored.dtype} {list(stored.shape)}"
            )
        arrays[name] = stored.view(_dtype(about))
    return arrays


def verify(folder: str | os.PathLike) -> None:
    """Reads the whole recording and compares it with its checksums.

    Raises:
      CorruptRecording: naming the first array and chunk of runs that differ.
    """
    folder = pathlib.Path(folder).expanduser()
    open_recording(folder)
    manifest = _read_manifest(folder)
    for name in manifest["arrays"]:
        stored = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for part in manifest["chunks"]:
            start, stop = part["runs"]
            if name not in part["crc32"]:
                raise CorruptRecording(f"{folder / name}.npy: no checksum of runs {start} to {stop} in the manifest")
            if zlib.crc32(np.ascontiguousarray(stored[start:stop]).tobytes()) != part["crc32"][name]:
                raise CorruptRecording(f"{folder / name}.npy: runs {start} to {stop} are not what was recorded")


# --- trajectories as named arrays -------------------------------------------------------------------------------------


def _arrays_of(trajectory, chunk) -> dict[str, np.ndarray]:
    """The parts of a chunk by name, once each of them is led by its runs."""
    if not isinstance(trajectory, Trajectory):
        raise ValueError(
            f"record_chunk: expected a Trajectory, as record_many returns it, got {type(trajectory).__name__}"
        )
    arrays = {name: np.asarray(leaf) for name, leaf in _flatten(trajectory).items()}
    if missing := {"step", "time"} - arrays.keys():
        raise ValueError(
            f"record_chunk: expected a trajectory with step and time, got one without {', '.join(missing)}"
        )
    for name, array in arrays.items():
        if array.shape[:1] != (chunk,):
            raise ValueError(
                f"record_chunk: expected {chunk} runs, one for each index, along the first axis, got {name} {array.shape}"
            )
        if array.dtype == object:
            raise ValueError(f"record_chunk: expected arrays of numbers, got {name} of objects")
    return arrays


def _flatten(trajectory: Trajectory) -> dict[str, Array | np.ndarray]:
    parts = trajectory._asdict()
    del parts["layout"]
    if parts.pop("curvature") is not None:
        raise ValueError("record_chunk: expected runs without curvature, which is measured when runs are read, got one")
    state = parts.pop("state") or {}
    named = {name: array for name, array in parts.items() if array is not None}
    return named | {f"state.{slot}": array for slot, array in state.items()}


def _unflatten(arrays, layout) -> Trajectory:
    state = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    parts = {name: array for name, array in arrays.items() if not name.startswith("state.")}
    return Trajectory(**parts, state=state or None, layout=layout)


def _take_space(folder, manifest):
    """Makes the files of all runs, with all of their space; of an earlier attempt nothing is kept.

    A file that is only long takes its space when it is written to, and then a full disk ends the process.
    """
    for name in _files_in(folder):
        (folder / name).unlink()
    for name, about in manifest["arrays"].items():
        path, shape = folder / f"{name}.npy", tuple(about["shape"])
        try:
            np.lib.format.open_memmap(path, "w+", _stored_dtype(about), shape).flush()
            _fill(path)
        except OSError as error:
            for half in _files_in(folder):
                (folder / half).unlink()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            sizes = [np.prod(of["shape"]) * _stored_dtype(of).itemsize for of in manifest["arrays"].values()]
            raise OSError(
                error.errno, f"folder: no space left in {folder} for {int(sum(sizes))} bytes of {shape[0]} runs"
            ) from error


def _fill(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:  # not on every system
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
        start = file.seek(0, os.SEEK_SET) + min(size, 4096)  # after the header, which is written already
        file.seek(start)
        for at in range(start, size, 1 << 20):
            file.write(bytes(min(1 << 20, size - at)))
        file.flush()
        os.fsync(file.fileno())


# --- the manifest -----------------------------------------------------------------------------------------------------


def _new_manifest(arrays, layout, recipe):
    about = {
        name: {"dtype": array.dtype.name, "shape": [recipe["num_runs"], *array.shape[1:]]}
        for name, array in arrays.items()
    }
    named = layout and layout_to_dict(layout)
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    steps = arrays["step"]
    return {
        "format": FORMAT,
        "recipe": recipe,
        "versions": versions,
        "layout": named,
        "arrays": about,
        "steps": steps[0].tolist() if (steps == steps[0]).all() else None,  # those of all runs, where they share them
        "chunks": [],
    }


def _same_parts(folder, manifest, own, resumed):
    """Raises ValueError saying in what a chunk differs from those before it; its steps may, but not where a recording goes on
    whose runs so far had the same ones."""
    before, now = manifest["arrays"], own["arrays"]
    differ = [
        f"{name} {_show(before.get(name))}, here {_show(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if not differ and manifest["layout"] != own["layout"]:
        differ.append(f"layout {manifest['layout']}, here {own['layout']}")
    if not differ and resumed and manifest.get("steps") not in (None, own["steps"]):
        differ.append(f"steps {manifest['steps']}, here {own['steps'] or 'different ones for each run'}")
    if differ:
        raise ValueError(
            f"record_chunk: expected runs like those already in {folder}, got others: {'; '.join(differ)}; "
            "record as before, or remove it"
        )


def _show(about):
    return "absent" if about is None else f"{about['dtype']} {about['shape'][1:]}"


def _write_manifest(folder, manifest):
    with replacing(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _read_manifest(folder):
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CorruptRecording(f"{folder}: not a recording, its manifest.json cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptRecording(f"{folder}: expected a recording of format {FORMAT}")
    if wrong := _wrong_with(manifest):
        raise CorruptRecording(f"{folder}: its manifest.json has no proper {wrong}")
    return manifest


def _wrong_with(manifest) -> str | None:
    """What a manifest lacks of its form."""
    is_int = lambda x: isinstance(x, int) and not isinstance(x, bool)
    sizes = lambda x: isinstance(x, list) and all(is_int(size) and size >= 0 for size in x)
    recipe, arrays, chunks, layout = (manifest.get(part) for part in ("recipe", "arrays", "chunks", "layout"))
    if not (isinstance(recipe, dict) and is_int(recipe.get("num_runs"))):
        return "recipe with num_runs"
    if not (isinstance(arrays, dict) and {"step", "time"} <= arrays.keys()):
        return "arrays with step and time"
    for name, about in arrays.items():
        if not (name in Trajectory._fields or name.startswith("state.")) or "/" in name:
            return f"array {name}, which no recording has"
        if not (isinstance(about, dict) and sizes(about.get("shape")) and _is_dtype(about.get("dtype"))):
            return f"dtype and shape of array {name}"
    if not (isinstance(chunks, list) and all(isinstance(part, dict) for part in chunks)):
        return "chunks"
    for part in chunks:
        if not (sizes(part.get("runs")) and len(part["runs"]) == 2 and isinstance(part.get("crc32"), dict)):
            return "runs and checksums of every chunk"
    if layout is not None and not (
        isinstance(layout, dict)
        and isinstance(layout.get("names"), list)
        and isinstance(layout.get("shapes"), list)
        and all(map(sizes, layout["shapes"]))
    ):
        return "layout"
    return None


def _layout(manifest):
    return manifest["layout"] and layout_from_dict(manifest["layout"])


def _files_in(folder):
    """Arrays of a recording that was killed before its first manifest."""
    parts = {f"{name}.npy" for name in Trajectory._fields}
    return {path.name for path in folder.iterdir() if path.name in parts or path.match("state.*.npy")}


def _same_recipe(folder, manifest, recipe):
    before = manifest["recipe"]
    if before != recipe:
        names = [name for name in dict.fromkeys([*before, *recipe]) if before.get(name) != recipe.get(name)]
        differ = "; ".join(f"{name} {before.get(name)!r}, here {recipe.get(name)!r}" for name in names)
        raise ValueError(f"recipe: {folder} was recorded by another one: {differ}; choose another folder or remove it")


def _as_json(recipe, num_runs, chunk):
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe: expected a dict that says what is recorded, got {type(recipe).__name__}")
    if taken := {"num_runs", "chunk"} & recipe.keys():
        raise ValueError(f"recipe: expected other names than the arguments {', '.join(sorted(taken))}")
    try:
        return json.loads(json.dumps(recipe | {"num_runs": num_runs, "chunk": chunk}))
    except TypeError as error:
        raise ValueError(
            f"recipe: expected what JSON can hold, such as numbers, text and lists, got {error}"
        ) from error


def _count(name, value):
    try:
        whole = operator.index(value)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    return whole


def _dtype(about):
    return np.dtype(about["dtype"])


def _is_dtype(name) -> bool:
    try:
        return isinstance(name, str) and _dtype({"dtype": name}) is not None
    except TypeError:
        return False


def _stored_dtype(about):
    """NumPy files know no bfloat16: it is stored as the unsigned integers of the same bits."""
    return np.dtype(np.uint16) if about["dtype"] == "bfloat16" else np.dtype(about["dtype"])
