"""Files that are whole or absent, and folders that one process at a time writes to."""

import contextlib
import errno
import os
import pathlib
import socket
import warnings
from collections.abc import Collection, Iterator
from typing import IO

__all__ = ["LOCK", "foreign", "give_back", "replacing", "take_folder"]

LOCK = "lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its name once it is whole and on disk; an older file of that name stays until then.

    Args:
      path: of the file; its folder exists.

    Raises:
      OSError: naming the folder, where the disk is full.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"folder: no space left in {path.parent} for {path.name}") from error
    temporary.replace(path)


def foreign(folder: pathlib.Path, own: Collection[str]) -> list[str]:
    """Names in a folder that are not its owner's: neither among `own` nor a lock, nor half-written, nor hidden."""
    if not folder.exists():
        return []
    names = sorted(path.name for path in folder.iterdir())
    return [
        name for name in names if name not in own and name != LOCK and not name.endswith(".partial") and name[0] != "."
    ]


def take_folder(folder: str | os.PathLike, argument: str = "folder") -> IO[str]:
    """Makes this the one process that writes to a folder, until the returned file is closed or the process ends.

    The lock is that of the operating system, so that a process that was killed leaves none. On a file system without locks
    a warning says so, and nothing is refused.

    Args:
      folder: that exists.
      argument: the name that an error is to give it.

    Returns:
      The file that holds the lock, to be given to `give_back`.

    Raises:
      ValueError: naming the folder and the process that has it, where another one does; or another thread of this one.
    """
    folder = pathlib.Path(folder).expanduser()
    path = folder / LOCK
    while True:
        try:
            file = path.open("a+")
        except FileNotFoundError as error:
            raise ValueError(f"{argument}: {folder} was finished or removed by another process; try again") from error
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise ValueError(
                f"{argument}: {folder} is being written by another process ({owner}); wait for it or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            warnings.warn(
                f"{folder}: its file system has no locks; see that one process at a time writes to it", stacklevel=2
            )
            return file
        try:  # who had the lock before may have removed or renamed what was opened here
            same = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def give_back(file: IO[str]) -> None:
    """Releases a folder that `take_folder` took, and removes the lock from it."""
    pathlib.Path(file.name).unlink(
        missing_ok=True
    )  # before the lock is gone: whoever waits for it looks whether it is there
    file.close()


def _lock(file):
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError(errno.ENOSYS, "no fcntl") from error
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
