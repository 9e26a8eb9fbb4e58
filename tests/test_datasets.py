import gzip
import json
import socket
import time

import jax
import numpy as np
import pytest

from gfm_jax.datasets import DatasetNotAvailable, checkerboard, eight_gaussians, load_dataset, two_moons


def test_digits():
    (images, labels), (test_images, test_labels) = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert images.shape == (1437, 8, 8, 1)
    assert test_images.shape == (360, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert sorted(set(labels.tolist()) | set(test_labels.tolist())) == list(range(10))


def write_idx(path, array, compress):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if compress else raw)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("subfolder", [False, True])
def test_idx_files(tmp_path, monkeypatch, compress, subfolder):
    folder = tmp_path / "mnist" if subfolder else tmp_path
    folder.mkdir(exist_ok=True)
    images, labels = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256, np.array([3, 9])
    suffix = ".gz" if compress else ""
    write_idx(folder / f"t10k-images-idx3-ubyte{suffix}", images, compress)
    write_idx(folder / f"t10k-labels-idx1-ubyte{suffix}", labels, compress)
    found, found_labels = load_dataset("mnist", "test", root=tmp_path)
    np.testing.assert_array_equal(found[..., 0], images)
    assert found_labels.tolist() == [3, 9]
    if subfolder:
        monkeypatch.setenv("GFM_DATA_DIR", str(tmp_path))
        assert load_dataset("mnist", "test")[0].shape == (2, 28, 28, 1)


def test_truncated_idx_file(tmp_path):
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((2, 28, 28)), False)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(2), False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole idx file"):
        load_dataset("mnist", "test", root=tmp_path)


def test_cifar_binary_batches(tmp_path):
    rows = np.zeros((4, 3073), np.uint8)
    rows[:, 0], rows[1, 1], rows[1, 1025] = [1, 2, 3, 4], 7, 9  # the first pixel of the second image: red 7, green 9
    (tmp_path / "cifar-10-batches-bin").mkdir()
    rows.tofile(tmp_path / "cifar-10-batches-bin" / "test_batch.bin")
    images, labels = load_dataset("cifar10", "test", root=tmp_path)
    assert images.shape == (4, 32, 32, 3)
    assert images[1, 0, 0].tolist() == [7, 9, 0]
    assert labels.tolist() == [1, 2, 3, 4]


def test_cifar_sheets(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1024, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "test_batch.png")
    (tmp_path / "test_lables.json").write_text(json.dumps([5, 6, 7]))
    images, labels = load_dataset("cifar10", "test", root=tmp_path)
    np.testing.assert_array_equal(images, pixels.reshape(3, 32, 32, 3))
    assert labels.tolist() == [5, 6, 7]


def test_not_available_is_said_at_once(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    start = time.perf_counter()
    with pytest.raises(DatasetNotAvailable, match="GFM_DATA_DIR") as error:
        load_dataset("fashion_mnist", root=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(("name", "split", "match"), [("minst", "train", "name"), ("digits", "valid", "split")])
def test_typos(name, split, match):
    with pytest.raises(ValueError, match=match):
        load_dataset(name, split)


def test_checkerboard(key):
    points = np.asarray(checkerboard(key, 8000))
    cells = np.floor((points + 1) * 2).astype(int)
    assert cells.min() == 0
    assert cells.max() == 3
    assert (cells.sum(1) % 2 == cells[0].sum() % 2).all()
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert ((counts - 1000) ** 2 / 1000).sum() < 24.3  # chi-squared, 7 degrees of freedom, p = .001


def test_toy_laws(key):
    clean = np.asarray(two_moons(key, 500, noise=0.0))
    upper, lower = np.hypot(*clean.T), np.hypot(clean[:, 0] - 1, clean[:, 1] - 0.5)
    assert (np.minimum(abs(upper - 1), abs(lower - 1)) < 1e-5).all()
    ring = np.asarray(eight_gaussians(key, 5000, std=0.01))
    assert abs(np.hypot(*ring.T) - 1).max() < 0.1
    assert jax.numpy.isfinite(ring).all()
