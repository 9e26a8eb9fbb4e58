"""The formats of checkpoints: what a file or folder holds, tensor by tensor, read when it is asked for."""

import contextlib
import functools
import json
import pathlib
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from gfm_jax.layers import natural_key
from gfm_jax.parameters import component

__all__ = [
    "Entry",
    "checkpoints_in",
    "entries_of",
    "format_of",
    "index_of",
    "orbax_trees",
    "metadata_of",
    "torch_tree",
]

SUFFIXES = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".msgpack": "msgpack",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
}
KNOWN = "orbax, flax msgpack, safetensors, .npz and PyTorch's .pt, .pth, .bin and .ckpt"
# What libraries raise for files that are damaged, or hold other things than they should.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)
INDEX = "*.safetensors.index.json"
ORBAX = ("_METADATA", "manifest.ocdbt", "checkpoint")  # one of these lies in the folder of a tree that orbax wrote


class Entry(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
      path: its names from the top of the checkpoint.
      shape, dtype: of the tensor.
      read: makes the array.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]


# --- which files are checkpoints --------------------------------------------------------------------------------------


def format_of(path: pathlib.Path) -> str | None:
    """The format of a file or folder that is one checkpoint; None of what is none."""
    if path.is_dir():
        if list(path.glob(INDEX)):
            return "shards"
        if _is_orbax(path) or _items(path):
            return "orbax"
        return None
    if path.name.endswith(".safetensors.index.json"):
        return "shards"
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    is_of_older_flax = re.fullmatch(r"checkpoint_\d+", path.name) and path.is_file()
    return "msgpack" if is_of_older_flax else None


def _is_orbax(folder):
    return any((folder / name).is_file() for name in ORBAX)


def _items(folder):
    """The parts of a checkpoint that orbax wrote as several trees; a folder of checkpoints has none."""
    parts = [item for item in sorted(folder.iterdir()) if item.is_dir() and _is_orbax(item)]
    is_one = (folder / "_CHECKPOINT_METADATA").is_file() or not any(re.search(r"\d", item.name) for item in parts)
    return parts if is_one else []


def checkpoints_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in a folder, in the natural order of their names, "step_5" before "step_10": files, folders of one
    checkpoint each, or folders with one file each.

    Raises:
      ValueError: for a folder with none, or with checkpoints of several formats.
    """
    # Names that begin so are of half-written checkpoints, and of what is none.
    found = {
        path: format_of(path)
        for path in sorted(folder.iterdir())
        if not re.match(r"[._]|.*\.orbax-checkpoint-tmp", path.name)
    }
    found = {path: name for path, name in found.items() if name is not None}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path not in found:  # checkpoint-500/model.safetensors
            inside = [file for file in path.iterdir() if file.is_file() and format_of(file) in set(SUFFIXES.values())]
            weights = [file for file in inside if not re.search(r"optim|sched|scaler|rng|training_args", file.name)]
            if len(weights) == 1:
                found |= {weights[0]: format_of(weights[0])}
    if not found:
        raise ValueError(f"folder_or_files: expected checkpoints in {folder}, got none of {KNOWN}")
    if len(set(found.values())) > 1:
        kinds = {name: path.name for path, name in found.items()}
        listed = ", ".join(f"{name} ({path})" for name, path in sorted(kinds.items()))
        raise ValueError(
            f"folder_or_files: expected checkpoints of one format in {folder}, got {listed}; hand over a list of files"
        )
    return sorted(found, key=lambda path: natural_key(str(path)))


# --- what is in one ---------------------------------------------------------------------------------------------------


def entries_of(path: pathlib.Path) -> list[Entry]:
    """All tensors and numbers of a checkpoint, none of which is read where the format allows that.

    Args:
      path: of a checkpoint, as `checkpoints_in` lists them.

    Raises:
      ValueError: naming the path, for a format that is not known, and for what is damaged or is a pickle of other than weights.
    """
    kind = format_of(path)
    if kind is None:
        raise ValueError(f"{path}: expected a checkpoint, {KNOWN}, got another {'folder' if path.is_dir() else 'file'}")
    with _named(path, kind):
        return READERS[kind](path)


@contextlib.contextmanager
def _named(path, kind) -> Iterator[None]:
    """What a library says of a file that it cannot read, as a ValueError that names the file."""
    from safetensors import SafetensorError

    try:
        yield
    except (*UNREADABLE, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: expected a whole checkpoint in the format {kind}, but it cannot be read: {reason}"
        ) from error


def _safetensors(path):
    from safetensors import safe_open

    def read(name):
        with _named(path, "safetensors"), safe_open(path, framework="flax") as file:
            return np.asarray(file.get_tensor(name))

    with safe_open(path, framework="flax") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        entries = [
            Entry((name,), tuple(part.get_shape()), _dtype(part.get_dtype()), lambda name=name: read(name))
            for name, part in slices.items()
        ]
    step = (metadata_of(path) or {}).get("step")
    return entries + ([_number("step", int(step))] if step and step.isdigit() else [])


def metadata_of(path: pathlib.Path) -> dict[str, str] | None:
    """The metadata of a file of safetensors, among them perhaps its step."""
    from safetensors import safe_open

    with safe_open(path, framework="flax") as file:
        return file.metadata()


def _dtype(name):
    """The dtype that safetensors calls so: "F32", "BF16", "I64", ..."""
    kinds = {"BF16": jax.numpy.bfloat16, "BOOL": np.bool_}
    if name in kinds:
        return np.dtype(kinds[name])
    match = re.fullmatch(r"([FIU])(\d+)", name)
    return np.dtype({"F": "float", "I": "int", "U": "uint"}[match[1]] + match[2]) if match else np.dtype(object)


def index_of(path: pathlib.Path) -> pathlib.Path:
    """The file that says which shard holds which tensor."""
    return path if path.is_file() else sorted(path.glob(INDEX))[0]


def _shards(path):
    index = index_of(path)
    where = json.loads(index.read_text())["weight_map"]
    entries = {}
    for file in sorted(set(where.values())):
        entries |= {entry.path[0]: entry for entry in _safetensors(index.parent / file)}
    if missing := sorted(set(where) - set(entries)):
        raise ValueError(f"{index.name} lists {missing[0]}, which {where[missing[0]]} does not hold")
    return list(entries.values())


def _npz(path):
    def read(name):
        with _named(path, "npz"), np.load(path, allow_pickle=False) as file:
            return file[name]

    entries = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
                shape, _, dtype = header(file)
            name = member.removesuffix(".npy")
            entries.append(Entry((name,), shape, dtype, lambda name=name: read(name)))
    return entries


def _msgpack(path):
    from flax import serialization

    return _of_tree(serialization.msgpack_restore(path.read_bytes()), np.asarray)


def torch_tree(path: pathlib.Path) -> Any:
    """What torch wrote: weights, numbers and containers of them, no other pickle."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  where the user has it
    except ImportError as error:
        raise ImportError(
            f"{path}: reading PyTorch's checkpoints needs torch; install it, or write safetensors"
        ) from error

    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _torch(path):
    tree = torch_tree(path)
    import torch  # pyright: ignore[reportMissingImports]

    def array(tensor):
        if isinstance(tensor, torch.Tensor):
            return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).numpy()
        return np.asarray(tensor)

    kind = lambda leaf: np.dtype("float32" if leaf.is_floating_point() else "int64")
    return _of_tree(tree, array, lambda leaf: kind(leaf) if isinstance(leaf, torch.Tensor) else np.asarray(leaf).dtype)


def orbax_trees(path: pathlib.Path) -> dict[str, Any]:
    """The trees of a checkpoint of orbax, as NumPy arrays, whatever devices they were on: by the name of the item, "" of the
    one tree of a checkpoint without items."""
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    trees = {}
    for name, folder in _trees_in(path).items():
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _metadata(checkpointer, folder))
        trees[name] = checkpointer.restore(folder.resolve(), restore_args=as_numpy)
    return trees


def _trees_in(path):
    return {"": path} if _is_orbax(path) else {item.name: item for item in _items(path)}


def _metadata(checkpointer, item):
    about = checkpointer.metadata(item.resolve())
    about = getattr(about, "item_metadata", about)
    return getattr(about, "tree", about)


def _orbax(path):
    import orbax.checkpoint as ocp

    items, checkpointer, whole = _trees_in(path), ocp.PyTreeCheckpointer(), {}

    def read(name, place):
        if not whole:  # read once, with the first of its tensors, and forgotten with the entries
            with _named(path, "orbax"):
                whole.update({name: _leaves(tree) for name, tree in orbax_trees(path).items()})
        return np.asarray(whole[name][place])

    entries = []
    for name, folder in items.items():
        under = () if len(items) == 1 else (name,)
        for place, leaf in _leaves(_metadata(checkpointer, folder)).items():
            shape = tuple(getattr(leaf, "shape", None) or ())
            dtype = np.dtype(getattr(leaf, "dtype", None) or np.int64)
            entries.append(Entry((*under, *place), shape, dtype, functools.partial(read, name, place)))
    return entries


READERS = {
    "safetensors": _safetensors,
    "shards": _shards,
    "npz": _npz,
    "msgpack": _msgpack,
    "torch": _torch,
    "orbax": _orbax,
}


def _leaves(tree):
    """The leaves of a tree by their names from the top."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {tuple(map(component, path)): leaf for path, leaf in found}


def _of_tree(tree, array, dtype=lambda leaf: np.asarray(leaf).dtype):
    return [
        Entry(path, tuple(np.shape(leaf)), dtype(leaf), lambda leaf=leaf: array(leaf))
        for path, leaf in _leaves(tree).items()
    ]


def _number(name, value):
    return Entry((name,), (), np.dtype(np.int64), lambda: np.asarray(value))
