"""A fit on disk: what it is of, how far it came, and what its steps said."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from gfm_jax.files import foreign, give_back, replacing, take_folder
from gfm_jax.fingerprint import differences

__all__ = ["Checkpoint", "is_begun", "load", "own", "save", "seconds_of"]

# In the folder of a fit: what it is of, the folder that orbax manages, and the seconds until each checkpoint.
FINGERPRINT, CHECKPOINTS, SECONDS = "fingerprint.json", "checkpoints", "seconds.json"


class Checkpoint(NamedTuple):
    """A fit after some of its steps.

    Attributes:
      step: steps taken.
      seconds: that they took, over all parts of a fit that was stopped and resumed.
      tree: the state of the loop and what its steps said.
    """

    step: int
    seconds: float
    tree: PyTree


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
    if names := foreign(folder, (FINGERPRINT, CHECKPOINTS, SECONDS)):
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
        if not is_begun(folder):  # of a fit that left no checkpoint nothing can be mistaken for this one
            with replacing(folder / FINGERPRINT) as file:
                file.write(json.dumps(identity, indent=1).encode())
        yield
    finally:
        give_back(lock)


def _compare(folder, identity):
    if not is_begun(folder):
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


def is_begun(folder: pathlib.Path) -> bool:
    """Whether the folder holds a whole checkpoint: orbax gives one the number of its step once it is whole."""
    folder = folder / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


# --- the only lines that know orbax, imported when a folder is given, since it takes a second -------------------------


def _manager(folder) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager((folder / CHECKPOINTS).resolve(), options=options)


def save(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Leaves a checkpoint; the two newest are kept."""
    import orbax.checkpoint as ocp

    if not jax.process_index():
        seconds = _seconds(folder) | {str(checkpoint.step): checkpoint.seconds}
        with replacing(folder / SECONDS) as file:
            file.write(json.dumps(seconds).encode())
    with _manager(folder) as manager:
        manager.save(checkpoint.step, args=ocp.args.StandardSave(checkpoint.tree))


def load(folder: pathlib.Path, like: PyTree) -> Checkpoint:
    """The newest whole checkpoint in a folder, its arrays of the shapes, dtypes and devices of `like`.

    Raises:
      ValueError: naming the folder, where the checkpoint is damaged.
    """
    import orbax.checkpoint as ocp

    with _manager(folder) as manager:
        step = manager.latest_step()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            tree = manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"folder: the checkpoint in {folder} is damaged ({reason}); remove it to start anew"
            ) from error
    return Checkpoint(step, _seconds(folder).get(str(step), 0.0), tree)


def seconds_of(folder: str | pathlib.Path) -> float:
    """Seconds that the steps of the fit in a folder took, over all its parts.

    Raises:
      ValueError: where the folder holds no checkpoint.

    Args:
      folder: that `fit` was given.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "seconds.json").write_text('{"100": 1.5, "200": 3.0}')  # by step, as `fit` leaves them
    ...     seconds_of(folder)
    3.0
    """
    if not (seconds := _seconds(pathlib.Path(folder).expanduser())):
        raise ValueError(f"folder: expected a fit with a checkpoint in {folder}, got none")
    return max(seconds.values())


def _seconds(folder) -> dict[str, float]:
    return json.loads((folder / SECONDS).read_text()) if (folder / SECONDS).exists() else {}
