"""Data by name, as NumPy arrays: images that are on this machine or can be had, and toy laws in the plane."""

import functools
import gzip
import importlib
import json
import os
import pathlib
import socket

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["NAMES", "DatasetNotAvailable", "checkerboard", "eight_gaussians", "load_dataset", "two_moons"]

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")
SPLITS = ("train", "test")
_HUB = {  # name: (repository, column of images)
    "mnist": ("ylecun/mnist", "image"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "image"),
    "cifar10": ("uoft-cs/cifar10", "img"),
}


class DatasetNotAvailable(FileNotFoundError):
    """The data set is neither on this machine nor within reach; the message says what was tried and how to get it."""


def load_dataset(
    name: str, split: str = "train", root: str | os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a data set.

    "digits" comes with scikit-learn: of its 1,797 images the first 1,437 are the training split. The others are looked for in
    `root`, else in $GFM_DATA_DIR and in the user's cache: in the folder itself and in its subfolder of that name, as idx
    files (gzipped or not), as the CIFAR-10 binary batches, or as the PNG sheets of its npm package. What is not on disk is
    asked of the Hugging Face hub, if `datasets` is installed and the hub answers.

    Args:
      name: one of "digits", "mnist", "fashion_mnist", "cifar10".
      split: "train" or "test".
      root: the folder to look in.

    Returns:
      Images, uint8 [num, height, width, channels] in 0..255 (digits: 0..16 scaled to 0..255), and labels, int32 [num].

    Raises:
      ValueError: for an unknown name or split.
      DatasetNotAvailable: if the data cannot be had, within seconds.

    >>> images, labels = load_dataset("digits", "test")
    >>> images.shape, labels[:5].tolist()
    ((360, 8, 8, 1), [2, 3, 4, 5, 6])
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if name == "digits":
        return _digits(split)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "gfm_jax"
    roots = [root] if root is not None else [os.environ.get("GFM_DATA_DIR"), cache]
    folders = [folder for base in roots if base for folder in (pathlib.Path(base), pathlib.Path(base) / name)]
    readers = (_read_cifar_sheets, _read_cifar_binary) if name == "cifar10" else (_read_idx,)
    for folder in folders:
        for read in readers:
            if (data := read(folder, split, exact=folder.name == name or root is not None)) is not None:
                return data
    return _from_hub(name, split, tried=[str(folder) for folder in folders])


def _digits(split):
    images, labels = _all_digits()
    part = slice(None, 1437) if split == "train" else slice(1437, None)
    return images[part].copy(), labels[part].copy()


@functools.cache
def _all_digits():
    """Of both splits, read once: scikit-learn parses them from text."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetNotAvailable("'digits' comes with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    return np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), np.asarray(labels, np.int32)


# --- layouts on disk: each reader returns None where its files are not there ------------------------------------------


def _read_idx(folder, split, exact):
    if not exact:  # MNIST and Fashion-MNIST have files of the same names: only a folder that was named decides
        return None
    prefix = "train" if split == "train" else "t10k"
    paths = [
        _first(folder, f"{prefix}-{kind}", f"{prefix}-{kind}.gz") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    if None in paths:
        return None
    images, labels = (_parse_idx(path) for path in paths)
    return images[..., None], labels.astype(np.int32)


def _first(folder, *names):
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _parse_idx(path):
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    num_axes = raw[3] if len(raw) > 4 else 0
    shape = np.frombuffer(raw, ">i4", num_axes, offset=4) if len(raw) >= 4 + 4 * num_axes else np.array([-1])
    body = np.frombuffer(raw, np.uint8, offset=min(len(raw), 4 + 4 * num_axes))
    if raw[:3] != b"\x00\x00\x08" or body.size != shape.prod():
        raise ValueError(f"{path}: not a whole idx file of bytes (header {raw[:4]!r}, {body.size} bytes of data)")
    return body.reshape(shape)


def _read_cifar_binary(folder, split, exact):
    del exact
    folder = next((f for f in (folder, folder / "cifar-10-batches-bin") if (f / "test_batch.bin").is_file()), None)
    if folder is None:
        return None
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    rows = np.concatenate([np.fromfile(folder / name, np.uint8).reshape(-1, 3073) for name in names])
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].astype(np.int32)


def _read_cifar_sheets(folder, split, exact):
    """PNG sheets with one image a row, 1024 pixels wide, and JSON lists of labels."""
    del exact
    if not (folder / "test_batch.png").is_file():
        return None
    from PIL import Image

    names = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
    sheets = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
    labels = json.loads((folder / f"{split}_lables.json").read_text())
    return np.concatenate(sheets).reshape(-1, 32, 32, 3), np.asarray(labels, np.int32)


def _from_hub(name, split, tried):
    repository, column = _HUB[name]
    script = f"import gfm_jax.datasets as d; d.load_dataset('{name}')"
    hint = f'put its files into a folder and set GFM_DATA_DIR; or, online: pip install datasets && python -c "{script}"'
    try:
        hub = importlib.import_module("datasets")  # by name: to a type checker `datasets` is this file
    except ImportError:
        raise DatasetNotAvailable(f"{name!r} was not found in {', '.join(tried)}; to get it: {hint}") from None
    try:  # the hub's own client takes half a minute to find out that there is no network
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError as error:
        tried = [*tried, f"the Hugging Face hub ({error})"]
        raise DatasetNotAvailable(f"{name!r} was not found in {', '.join(tried)}; to get it: {hint}") from None
    rows = hub.load_dataset(repository, split=split)
    images = np.stack([np.asarray(image, np.uint8) for image in rows[column]])
    return images.reshape(*images.shape[:3], -1), np.asarray(rows["label"], np.int32)


# --- toy laws ---------------------------------------------------------------------------------------------------------


def checkerboard(key: Array, num: int) -> Float[Array, "num 2"]:
    """Uniform on the eight dark squares of a 4x4 board on [-1, 1]^2.

    Args:
      key: randomness.
      num: how many points.

    >>> row_and_column = np.floor(2 * np.asarray(checkerboard(jax.random.key(0), 100)))
    >>> set((row_and_column.sum(axis=1) % 2).tolist())  # the dark ones, where their sum is even
    {0.0}
    """
    key_cell, key_inside = jax.random.split(key)
    cell = jax.random.randint(key_cell, (num,), 0, 8)
    row, column = cell // 2, 2 * (cell % 2) + (cell // 2) % 2
    corner = jnp.stack([column, row], axis=-1)
    return (corner + jax.random.uniform(key_inside, (num, 2))) / 2 - 1


def two_moons(key: Array, num: int, noise: float = 0.05) -> Float[Array, "num 2"]:
    """Two interleaved half circles of radius 1, blurred by Gaussian noise of that standard deviation.

    Args:
      key: randomness.
      num: how many points.
      noise: from 0 on.

    >>> points = np.asarray(two_moons(jax.random.key(0), 50, noise=0.0))
    >>> distances = [np.linalg.norm(points - centre, axis=1) for centre in ([0.0, 0.0], [1.0, 0.5])]
    >>> round(float(np.abs(np.subtract(distances, 1)).min(axis=0).max()), 4)  # each is at 1 from one of the centres
    0.0
    """
    key_side, key_angle, key_noise = jax.random.split(key, 3)
    lower = jax.random.bernoulli(key_side, shape=(num,))
    angle = jnp.pi * jax.random.uniform(key_angle, (num,))
    x = jnp.where(lower, 1 - jnp.cos(angle), jnp.cos(angle))
    y = jnp.where(lower, 0.5 - jnp.sin(angle), jnp.sin(angle))
    return jnp.stack([x, y], axis=-1) + noise * jax.random.normal(key_noise, (num, 2))


def eight_gaussians(key: Array, num: int, std: float = 0.1) -> Float[Array, "num 2"]:
    """Eight Gaussians of that standard deviation, evenly on the unit circle.

    Args:
      key: randomness.
      num: how many points.
      std: from 0 on.

    >>> points = eight_gaussians(jax.random.key(0), 50, std=0.0)
    >>> set(np.linalg.norm(points, axis=1).round(4).tolist())
    {1.0}
    """
    key_which, key_noise = jax.random.split(key)
    angle = jax.random.randint(key_which, (num,), 0, 8) * (jnp.pi / 4)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1) + std * jax.random.normal(key_noise, (num, 2))
