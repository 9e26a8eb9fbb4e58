"""A fit on disk: what it is of, how far it came, and what its steps said."""

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gfm_jax.files import foreign, give_back, replacing, take_folder
from gfm_jax.fingerprint import differences

__all__ = ["Checkpoint", "load", "own", "save", "seconds_of"]

FINGERPRINT, CHECKPOINT = "fingerprint.json", "checkpoint.npz"


class Checkpoint(NamedTuple):
    """A fit after some of its steps.

    Attributes:
      step: steps taken.
      seconds: that they took, over all parts of a fit that was stopped and resumed.
      state: the leaves of the loop's state.
      told: the leaves of what every step said, led by [step].
    """

    step: int
    seconds: float
    state: list[Any]
    told: list[np.ndarray]


@contextlib.contextmanager
def own(folder: pathlib.Path, identity: dict[str, str]) -> Iterator[None]:
    """Holds a folder for the fit of that identity, so that no other fit writes to it or goes on from it.

    Of several hosts the first one holds it; all of them compare identities.

    Args:
      folder: made where it does not exist.
      identity: what the fit is of, as `fingerprint.describe` tells it.

    Raises:
      ValueError: naming the folder, where another process has it, where it holds another fit, with what differs, or where it
        holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: expected a folder or a name for one, got the file {folder}")
    if names := foreign(folder, (FINGERPRINT, CHECKPOINT)):
        raise ValueError(
            f"folder: expected {folder} empty or with a fit of this library, got {', '.join(names[:5])} in it"
        )
    if jax.process_index():
        _compare(folder, identity)
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_folder(folder)
    try:
        _compare(folder, identity)
        if not (folder / CHECKPOINT).exists():  # of a fit that left no checkpoint nothing can be mistaken for this one
            with replacing(folder / FINGERPRINT) as file:
                file.write(json.dumps(identity, indent=1).encode())
        yield
    finally:
        give_back(lock)


def _compare(folder, identity):
    if not (folder / CHECKPOINT).exists():
        return
    try:
        stored = json.loads((folder / FINGERPRINT).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"folder: {folder} holds a checkpoint of an unknown fit, its {FINGERPRINT} cannot be read ({error}); "
            "choose another folder or remove it"
        ) from error
    if differ := differences(stored, identity):
        raise ValueError(f"folder: {folder} holds another fit: {differ}; choose another folder or remove it")


def save(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Leaves a checkpoint in the place of the one before; of several hosts only the first one writes.

    Raises:
      OSError: naming the folder, where the disk is full; the checkpoint before is then kept.
    """
    if jax.process_index():
        return
    arrays = {"step": np.int64(checkpoint.step), "seconds": np.float64(checkpoint.seconds)}
    arrays |= {f"state_{i}": _plain(leaf) for i, leaf in enumerate(checkpoint.state)}
    arrays |= {f"told_{i}": leaf for i, leaf in enumerate(checkpoint.told)}
    with replacing(folder / CHECKPOINT) as file:
        np.savez(file, **arrays)


def load(folder: pathlib.Path, state: PyTree) -> Checkpoint | None:
    """The checkpoint in a folder, its state of the structure, dtypes and devices of `state`; None where there is none.

    Raises:
      ValueError: naming the folder, where the file is damaged or of another structure.
    """
    path = folder / CHECKPOINT
    found = _read(path) if path.exists() else None
    _same_on_all_hosts(folder, 0 if found is None else int(found["step"]))
    if found is None:
        return None
    leaves, treedef = jax.tree.flatten(state)
    stored = [found[f"state_{i}"] for i in range(sum(name.startswith("state_") for name in found))]
    told = [found[f"told_{i}"] for i in range(sum(name.startswith("told_") for name in found))]
    wanted, got = ([_shape_of(_plain_of(leaf)) for leaf in leaves], [_shape_of(leaf) for leaf in stored])
    if wanted != got:
        first = next(((a, b) for a, b in zip(wanted, got, strict=False) if a != b), (len(wanted), len(got)))
        raise ValueError(
            f"folder: expected in {path} the state of this fit, {first[0]}, got {first[1]}; remove the folder"
        )
    restored = [_restored(array, leaf) for array, leaf in zip(stored, leaves, strict=True)]
    return Checkpoint(int(found["step"]), float(found["seconds"]), treedef.unflatten(restored), told)


def seconds_of(folder: str | pathlib.Path) -> float:
    """Seconds that the steps of the fit in a folder took, over all its parts.

    Raises:
      ValueError: where the folder holds no checkpoint.
    """
    path = pathlib.Path(folder) / CHECKPOINT
    if not path.exists():
        raise ValueError(f"folder: expected a fit with a checkpoint in {folder}, got none")
    return float(_read(path, ("seconds",))["seconds"])


def _read(path, names=None):
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names or stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"folder: {path} is damaged ({error}); remove {path.parent} to start anew") from error


def _same_on_all_hosts(folder, step):
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    steps = np.asarray(multihost_utils.process_allgather(np.int32(step)))
    if (steps != steps[0]).any():
        raise ValueError(
            f"folder: expected {folder} to be the same one for all hosts, got fits of {steps.tolist()} steps"
        )


# --- leaves as arrays of NumPy, which knows no keys and stores bfloat16 as bytes without a name -----------------------


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _plain_of(leaf):
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _shape_of(array):
    """Shape and dtype, of the latter what a file keeps of it."""
    dtype = np.dtype(array.dtype)
    return tuple(array.shape), f"V{dtype.itemsize}" if dtype.kind == "V" else dtype.name


def _restored(array, like):
    array = array.view(_plain_of(like).dtype) if array.dtype.kind == "V" else array
    if _is_key(like):
        array = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    if jax.process_count() > 1 or not getattr(like, "committed", True):
        return jnp.asarray(array)
    return jax.device_put(array, like.sharding)
