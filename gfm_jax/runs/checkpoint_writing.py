"""Weights into a checkpoint of the format that they were read from."""

import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Layout
from gfm_jax.files import replacing
from gfm_jax.runs.checkpoint_formats import format_of, index_of, metadata_of, orbax_trees, torch_tree
from gfm_jax.runs.checkpoints import parameters_in, transposition

__all__ = ["write_checkpoint"]


def write_checkpoint(
    path: str | os.PathLike[str],
    weights: Float[Array | np.ndarray, " dim"],
    layout: Layout,
    like: str | os.PathLike[str],
    *,
    part: str | None = None,
) -> None:
    """Writes a checkpoint as another one is, with other weights: what is no parameter is taken over from it.

    Use it to hand a forecast back to the program whose checkpoints were read.

    Args:
      path: of the new checkpoint, a file or folder that does not exist yet.
      weights: such as `forecast.weights`.
      layout: of the run that `read_checkpoints` made.
      like: one of the checkpoints that it was made of, most often the last.
      part: as it was read.

    Raises:
      ValueError: for a path that exists, weights of another size or that are not finite, or a checkpoint of other tensors.

    >>> import tempfile
    >>> import gfm_jax as gfm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (100, 200):
    ...         np.savez(f"{folder}/step_{step}.npz", w=np.full(2, step / 100), epoch=np.array(step))
    ...     run = gfm.read_checkpoints(folder, learning_rate=1e-3)
    ...     forecast = gfm.forecast(gfm.forecasting.baselines.linear(), (), run, until=400)
    ...     write_checkpoint(f"{folder}/step_400.npz", forecast.weights, run.layout, like=f"{folder}/step_200.npz")
    ...     {name: array.tolist() for name, array in np.load(f"{folder}/step_400.npz").items()}
    {'w': [4.0, 4.0], 'epoch': 200}
    """
    path, like = pathlib.Path(path).expanduser(), pathlib.Path(like).expanduser()
    if path.exists():
        raise ValueError(f"path: expected a name that is free, got {path}, which exists")
    new = _arrays(np.asarray(weights), layout, like, part)
    kind = format_of(like)
    assert kind is not None  # `parameters_in` has read it
    WRITERS[kind](path, like, lambda place, old: new[place].astype(old) if place in new else None)


def _arrays(weights, layout, like, part) -> dict[tuple[str, ...], np.ndarray]:
    """By its path in the checkpoint, the new array of each parameter."""
    if weights.shape != (layout.dim,):
        raise ValueError(f"weights: expected shape ({layout.dim},), as the layout has it, got {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError("weights: expected finite numbers, got NaN or infinity")
    parameters, _ = parameters_in(like, part)
    if set(parameters) != set(layout.names):
        differ = sorted(set(parameters) ^ set(layout.names))[:4]
        raise ValueError(f"like: expected the tensors of the layout in {like}, which differs in {', '.join(differ)}")
    new, stops = {}, np.cumsum(layout.sizes)
    for name, shape, piece in zip(layout.names, layout.shapes, np.split(weights, stops[:-1]), strict=True):
        entry, array = parameters[name], piece.reshape(shape)
        axes = transposition(name, entry.shape, "torch" if format_of(like) == "torch" else None)
        if axes is not None and layout.convention == "flax" and tuple(entry.shape[k] for k in axes) == shape:
            array = array.transpose(np.argsort(axes))
        if array.shape != entry.shape:
            raise ValueError(f"like: expected {name} of shape {array.shape} in {like}, got {entry.shape}")
        new[entry.path] = array
    return new


# --- formats ------------------------------------------------------------------------------------------------------------

Replace = Callable[
    [tuple[str, ...], Any], np.ndarray | None
]  # (path of a tensor, its dtype) -> the new one, None of others


def _safetensors(path, like, replace: Replace):
    from safetensors import safe_open
    from safetensors.flax import save

    with safe_open(like, framework="flax") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    for name, old in tensors.items():
        if (new := replace((name,), old.dtype)) is not None:
            tensors[name] = new
    with replacing(path) as file:
        file.write(save(tensors, metadata=metadata_of(like)))


def _shards(path, like, replace: Replace):
    index = index_of(like)
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in index.parent.glob("*.safetensors"):
        _safetensors(partial / file.name, file, replace)
    shutil.copy(index, partial / index.name)
    partial.rename(path)


def _npz(path, like, replace: Replace):
    with np.load(like, allow_pickle=False) as file:
        arrays = dict(file)
    found = {name: replace((name,), old.dtype) for name, old in arrays.items()}
    members: Any = arrays | {name: new for name, new in found.items() if new is not None}
    with replacing(path) as file:
        np.savez(file, **members)


def _msgpack(path, like, replace: Replace):
    from flax import serialization

    tree = _replaced(serialization.msgpack_restore(like.read_bytes()), replace)
    with replacing(path) as file:
        file.write(serialization.msgpack_serialize(tree))


def _torch(path, like, replace: Replace):
    import torch  # pyright: ignore[reportMissingImports]  where the user has it

    def as_tensor(place, old):
        new = replace(place, np.float32) if isinstance(old, torch.Tensor) else None
        return None if new is None else torch.from_numpy(np.ascontiguousarray(new)).to(old.dtype)

    tree = _replaced(torch_tree(like), as_tensor, whole=True)
    with replacing(path) as file:
        torch.save(tree, file)


def _orbax(path, like, replace: Replace):
    import orbax.checkpoint as ocp

    trees = orbax_trees(like)
    if "" in trees:
        ocp.PyTreeCheckpointer().save(path.resolve(), _replaced(trees[""], replace))
        return
    trees = {name: _replaced(tree, replace, (name,) if len(trees) > 1 else ()) for name, tree in trees.items()}
    items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.resolve(), args=ocp.args.Composite(**items))


def _replaced(node, replace, place=(), *, whole=False):
    """A nested tree with its parameters replaced; `whole`: `replace` takes the leaf in place of its dtype."""
    if isinstance(node, Mapping):
        return {key: _replaced(child, replace, (*place, str(key)), whole=whole) for key, child in node.items()}
    if isinstance(node, list | tuple):
        children = [_replaced(child, replace, (*place, str(k)), whole=whole) for k, child in enumerate(node)]
        return type(node)(children) if isinstance(node, list) or not hasattr(node, "_fields") else type(node)(*children)
    new = replace(place, node if whole else getattr(node, "dtype", None))
    return node if new is None else new


WRITERS = {
    "safetensors": _safetensors,
    "shards": _shards,
    "npz": _npz,
    "msgpack": _msgpack,
    "torch": _torch,
    "orbax": _orbax,
}
