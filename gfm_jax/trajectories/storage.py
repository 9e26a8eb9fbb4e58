"""Recordings larger than memory: one memory-mapped .npy file an array, and a manifest.

A recording is made in `FOLDER.partial`, chunk of runs by chunk of runs, and renamed to `FOLDER` once it is whole. The
manifest is written after the arrays of each chunk are on disk, so that a recording that was killed goes on where it was,
and a folder that bears its final name is complete.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from gfm_jax.base import Layout, Trajectory

__all__ = ["CorruptRecording", "open_recording", "record_to_disk", "verify"]

FORMAT = 1


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
        last index, so that every call has one shape and compiles once.
      chunk: runs at a time: what memory has to hold.
      recipe: what the recording is of, as JSON: a recording is only resumed, or taken for done, if its recipe is the same.
      progress: name of the progress bar; None for none.

    Returns:
      The recording, memory-mapped.

    Raises:
      ValueError: for fewer than one run or a chunk below 1, or a folder with another recipe.
    """
    if num_runs < 1 or chunk < 1:
        raise ValueError(f"num_runs and chunk: expected at least 1, got {num_runs} and {chunk}")
    folder = pathlib.Path(folder)
    recipe = json.loads(json.dumps(recipe | {"num_runs": num_runs, "chunk": chunk}))
    if folder.exists():
        _same_recipe(folder, _read_manifest(folder), recipe)
        return open_recording(folder)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    manifest = _read_manifest(partial) if (partial / "manifest.json").exists() else None
    if manifest is not None:
        _same_recipe(partial, manifest, recipe)
    starts = range(0, num_runs, chunk)
    done = 0 if manifest is None else len(manifest["chunks"])
    with tqdm(total=num_runs, initial=min(done * chunk, num_runs), desc=progress, disable=progress is None) as bar:
        for start in starts[done:]:
            runs = np.arange(start, min(start + chunk, num_runs))
            filled = np.minimum(np.arange(start, start + chunk), num_runs - 1)
            trajectory = record_chunk(filled)
            arrays = {name: np.asarray(leaf)[: len(runs)] for name, leaf in _flatten(trajectory).items()}
            if manifest is None:
                manifest = _new_manifest(arrays, trajectory.layout, recipe)
                for name, about in manifest["arrays"].items():
                    shape = tuple(about["shape"])
                    np.lib.format.open_memmap(partial / f"{name}.npy", "w+", _stored_dtype(about), shape).flush()
            checksums = {}
            for name, array in arrays.items():
                about = manifest["arrays"][name]
                stored = np.lib.format.open_memmap(partial / f"{name}.npy", "r+")
                raw = np.ascontiguousarray(array).view(_stored_dtype(about))
                stored[runs] = raw
                stored.flush()
                checksums[name] = zlib.crc32(raw.tobytes())
            manifest["chunks"].append({"runs": [int(runs[0]), int(runs[-1]) + 1], "crc32": checksums})
            _write_manifest(partial, manifest)
            bar.update(len(runs))
    partial.rename(folder)
    return open_recording(folder)


def open_recording(folder: str | os.PathLike) -> Trajectory:
    """A recording as a trajectory of memory-mapped arrays: only what is read of them comes into memory.

    Raises:
      CorruptRecording: for a folder that is not a recording, is incomplete, or whose files are not what it says.
    """
    folder = pathlib.Path(folder)
    manifest = _read_manifest(folder)
    if (
        sum(stop - start for start, stop in (part["runs"] for part in manifest["chunks"]))
        != manifest["recipe"]["num_runs"]
    ):
        raise CorruptRecording(f"{folder}: the recording was not finished; record again to go on with it")
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
    layout = manifest["layout"] and Layout(
        tuple(manifest["layout"]["names"]), tuple(tuple(shape) for shape in manifest["layout"]["shapes"])
    )
    return _unflatten(arrays, layout)


def verify(folder: str | os.PathLike) -> None:
    """Reads the whole recording and compares it with its checksums.

    Raises:
      CorruptRecording: naming the first array and chunk of runs that differ.
    """
    folder = pathlib.Path(folder)
    open_recording(folder)
    manifest = _read_manifest(folder)
    for name, about in manifest["arrays"].items():
        stored = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for part in manifest["chunks"]:
            start, stop = part["runs"]
            if zlib.crc32(np.ascontiguousarray(stored[start:stop]).tobytes()) != part["crc32"][name]:
                raise CorruptRecording(f"{folder / name}.npy: runs {start} to {stop} are not what was recorded")
        del about


# --- trajectories as named arrays -------------------------------------------------------------------------------------


def _flatten(trajectory: Trajectory) -> dict[str, Array]:
    parts = trajectory._asdict()
    del parts["layout"]
    state = parts.pop("state") or {}
    named = {name: array for name, array in parts.items() if array is not None}
    return named | {f"state.{slot}": array for slot, array in state.items()}


def _unflatten(arrays, layout) -> Trajectory:
    state = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    parts = {name: array for name, array in arrays.items() if not name.startswith("state.")}
    return Trajectory(**parts, state=state or None, layout=layout)


# --- the manifest -----------------------------------------------------------------------------------------------------


def _new_manifest(arrays, layout, recipe):
    about = {
        name: {"dtype": array.dtype.name, "shape": [recipe["num_runs"], *array.shape[1:]]}
        for name, array in arrays.items()
    }
    named = layout and {"names": layout.names, "shapes": layout.shapes}
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    return {"format": FORMAT, "recipe": recipe, "versions": versions, "layout": named, "arrays": about, "chunks": []}


def _write_manifest(folder, manifest):
    temporary = folder / "manifest.json.partial"
    with temporary.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "manifest.json")


def _read_manifest(folder):
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CorruptRecording(f"{folder}: not a recording, its manifest.json cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptRecording(f"{folder}: expected a recording of format {FORMAT}")
    return manifest


def _same_recipe(folder, manifest, recipe):
    if manifest["recipe"] != recipe:
        raise ValueError(f"recipe: {folder} was recorded as {manifest['recipe']}, not as {recipe}")


def _dtype(about):
    return np.dtype(getattr(ml_dtypes, about["dtype"], about["dtype"]))


def _stored_dtype(about):
    """NumPy files know no bfloat16: it is stored as the unsigned integers of the same bits."""
    return np.dtype(np.uint16) if about["dtype"] == "bfloat16" else np.dtype(about["dtype"])
