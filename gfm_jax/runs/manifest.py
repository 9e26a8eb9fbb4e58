"""The manifest of a recording, JSON beside its arrays: what it is of, what it consists of, and how much of it is there."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts

from gfm_jax.base import Layout
from gfm_jax.fingerprint import differences
from gfm_jax.pytrees import layout_from_dict, layout_to_dict

__all__ = [
    "CorruptRecording",
    "Manifest",
    "as_recipe",
    "check_same",
    "describe_chunk",
    "read_manifest",
    "write_manifest",
]

FORMAT, NAME = 2, "manifest.json"


class CorruptRecording(ValueError):
    """A folder is not a whole recording; the message says what is wrong with it."""


class Manifest(NamedTuple):
    """What is known of a recording.

    Attributes:
      recipe: the caller's, with `num_runs` and `chunk`.
      arrays: dtype and shape of each array, as text, by its name.
      layout: of the weights.
      steps: of the saves, where all runs so far share them.
      stored: runs whose arrays are there; the recording is complete when they are `num_runs`.
      versions: of the libraries that recorded the first chunk.
    """

    recipe: dict[str, Any]
    arrays: dict[str, str]
    layout: Layout | None
    steps: list[int] | None
    stored: int
    versions: dict[str, str]


def describe_chunk(arrays: dict[str, np.ndarray], layout: Layout | None, recipe: dict[str, Any]) -> Manifest:
    """The manifest of a recording whose first chunk these arrays are, before they are stored."""
    about = {name: f"{array.dtype.name} {[recipe['num_runs'], *array.shape[1:]]}" for name, array in arrays.items()}
    steps = arrays["step"]
    shared = steps[0].tolist() if (steps == steps[0]).all() else None
    return Manifest(recipe, about, layout, shared, 0, {"jax": jax.__version__, "numpy": np.__version__})


def write_manifest(store: ts.KvStore, manifest: Manifest) -> None:
    """Replaces the manifest in a store as a whole."""
    content = manifest._replace(layout=manifest.layout and layout_to_dict(manifest.layout))._asdict()
    store.write(NAME, json.dumps({"format": FORMAT} | content, indent=1).encode()).result()


def read_manifest(store: ts.KvStore) -> Manifest | None:
    """The manifest in a store; None where there is none.

    Raises:
      CorruptRecording: for a manifest that is damaged, or of another format.
    """
    try:
        found = store.read(NAME).result()
        if found.state == "missing":
            return None
        content = json.loads(found.value)
        version = content.pop("format")
        if version == FORMAT:
            layout = content["layout"] and layout_from_dict(content["layout"])
            manifest = Manifest(**content | {"layout": layout})
            recipe, stored = manifest.recipe, manifest.stored
            if not (stored == recipe["num_runs"] or stored in range(0, recipe["num_runs"], recipe["chunk"])):
                raise ValueError(f"{stored} of {recipe['num_runs']} runs stored, {recipe['chunk']} at a time")
            if missing := {"step", "time"} - manifest.arrays.keys():
                raise ValueError(f"no array {' and '.join(sorted(missing))}")
            return manifest
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptRecording(f"{store.url}: its {NAME} is damaged ({error!r})") from error
    old = ", of .npy files; read them by numpy.load, or record again" if version == 1 else ""
    raise CorruptRecording(f"{store.url}: expected a recording of format {FORMAT}, got format {version}{old}")


def check_same(argument: str, store: ts.KvStore, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ValueError saying in what a recording differs from what is to be stored in its place."""
    text = lambda values: {name: repr(value) for name, value in values.items()}
    if differ := differences(text(before), text(now)):
        raise ValueError(
            f"{argument}: {store.url} holds another recording: {differ}; record as before, choose another folder or remove it"
        )


def as_recipe(recipe: dict[str, Any], num_runs: int, chunk: int) -> dict[str, Any]:
    """A caller's recipe as JSON gives it back, with the numbers of runs.

    Raises:
      ValueError: for what JSON cannot hold, or a name that is taken.
    """
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
