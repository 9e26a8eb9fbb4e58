"""Metrics of samples against values that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.datasets import checkerboard, load_dataset
from gfm_jax.flows.metrics import (
    classifier_features,
    exact_wasserstein,
    frechet,
    histogram,
    kl_floor,
    kl_on_grid,
    mmd,
    off_support,
    sliced_wasserstein,
)
from gfm_jax.weights import nearest, nearest_distance

BOARD = np.kron((np.indices((4, 4)).sum(0) % 2 == 0), np.ones((12, 12))) / (8 * 144)  # 48 bins, x first


def test_the_floor_of_exact_samples(key):
    """The published floor of this metric: .0093 +- .0003 with 48 bins, of 64,000 samples."""
    floor = kl_floor(key, jnp.asarray(BOARD, jnp.float32), checkerboard, 64_000)
    assert float(floor.mean()) == pytest.approx(0.0093, abs=0.0006)
    # To first order (hit bins - 1) / 2n: the law of the likelihood ratio.
    assert float(floor.mean()) == pytest.approx(8 * 144 / 2 / 64_000, rel=0.06)


def test_kl_of_what_is_missing(key):
    """A law that misses a quarter of the mass pays for it as if each of its bins were hit half a time."""
    mass = jnp.full((4, 4), 1 / 16)
    samples = jax.random.uniform(key, (40_000, 2), minval=-1) * jnp.array([1.0, 1.0])
    assert float(kl_on_grid(mass, samples)) == pytest.approx(15 / 2 / 40_000, abs=3e-4)
    without = samples[samples[:, 0] > -0.5]  # three of four columns
    expected = 0.75 * np.log(0.75) + 0.25 * np.log(1 / 16 * 2 * len(without))
    assert float(kl_on_grid(mass, without)) == pytest.approx(expected, rel=1e-3)


def test_histogram_and_support(key):
    samples = checkerboard(key, 10_000)
    np.testing.assert_allclose(histogram(samples, 4), (np.indices((4, 4)).sum(0) % 2 == 0) / 8, atol=0.015)
    far = jnp.concatenate([samples[:3], jnp.full((1, 2), 5.0)])
    assert float(histogram(far, 4).sum()) == 0.75
    lower = jnp.array([[c, r] for r in range(4) for c in range(r % 2, 4, 2)]) / 2 - 1.0
    assert float(off_support(lower, lower + 0.5, samples)) == pytest.approx(0, abs=1e-6)
    assert float(off_support(lower, lower + 0.5, samples + jnp.array([0.5, 0.0]))) > 0.99


def test_wasserstein(key):
    x = jax.random.normal(key, (256, 3))
    shift = jnp.array([3.0, 0.0, -4.0])
    assert exact_wasserstein(x, x + shift) == pytest.approx(5.0, rel=1e-5)  # W_2 of a shift is its length
    assert exact_wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-6)
    sliced = sliced_wasserstein(key, x, x + shift, 4096)
    assert float(sliced) == pytest.approx(5 / np.sqrt(3), rel=0.03)
    with pytest.raises(ValueError, match="as many samples"):
        exact_wasserstein(x, x[:3])


def test_mmd_is_unbiased(key):
    """Of two sets of one law its mean is zero; a bandwidth that is given has the expectation of Gaussians."""
    keys = jax.random.split(key, 400)
    same = jax.vmap(lambda k: mmd(*jax.random.normal(k, (2, 30, 2)), bandwidth=1.0))(keys)
    assert abs(float(same.mean())) < 4 * float(same.std()) / 20
    apart = jax.vmap(lambda k: mmd(*(jax.random.normal(k, (2, 30, 1)) + jnp.array([[[0.0]], [[1.0]]])), bandwidth=1.0))(
        keys
    )
    expected = 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))
    assert float(apart.mean()) == pytest.approx(expected, abs=4 * float(apart.std()) / 20)


def test_frechet_of_gaussians(key):
    """|m|^2 + sum (s_x - s_y)^2 for axes in common."""
    x, y = jax.random.normal(key, (2, 40_000, 3))
    s_x, s_y, mean = jnp.array([1.0, 2.0, 0.5]), jnp.array([1.5, 1.0, 0.5]), jnp.array([0.3, 0.0, -0.4])
    expected = 0.25 + 0.25 + 1.0
    assert float(frechet(x * s_x, y * s_y + mean)) == pytest.approx(expected, rel=0.04)
    assert float(frechet(x, x)) == pytest.approx(0, abs=1e-3)
    rotation = jnp.linalg.qr(jax.random.normal(key, (3, 3)))[0]
    turned = frechet(x * s_x @ rotation, (y * s_y + mean) @ rotation)
    np.testing.assert_allclose(turned, frechet(x * s_x, y * s_y + mean), rtol=1e-3)


def test_frechet_of_fewer_samples_than_features(key):
    x, y = jax.random.normal(key, (2, 10, 40))
    assert np.isfinite(float(frechet(x, y)))
    assert float(frechet(x, y)) > 0


def test_nearest_distance(key):
    data = jax.random.normal(key, (500, 64)) * 10
    samples = jnp.concatenate([data[:5], data[5:9] + 0.003, 50 + data[9:10]])
    found = np.asarray(nearest_distance(samples, data, chunk=4))
    np.testing.assert_allclose(found[:5], 0, atol=1e-6)  # a copy is told from a near copy
    np.testing.assert_allclose(found[5:9], 0.003 * 8, rtol=1e-3)
    dense = np.linalg.norm(np.asarray(samples[9] - data, float), axis=1).min()
    assert found[9] == pytest.approx(dense, rel=1e-5)


METRICS = {
    "mmd": mmd,
    "frechet": frechet,
    "exact": exact_wasserstein,
    "sliced": lambda x, y: sliced_wasserstein(jax.random.key(0), x, y),
    "nearest": lambda x, y: nearest_distance(x, y).sum(),
}


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "bfloat16", "float16"])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_any_dtype_are_those_of_float32(name, dtype):
    """Bytes wrapped (wrong before 0.2)."""
    x, y = np.random.default_rng(0).integers(0, 255, (2, 30, 16))
    x, y = jnp.asarray(x).astype(dtype), jnp.asarray(y).astype(dtype)
    found, expected = METRICS[name](x, y), METRICS[name](x.astype(jnp.float32), y.astype(jnp.float32))
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-5, atol=1e-6)
    assert np.isfinite(float(found))


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_far_from_zero(name, offset, key):
    """A multiple of 1/128 is moved without rounding: distances stay as they are (wrong before 0.2)."""
    x, y = jnp.round(128 * jax.random.normal(key, (2, 40, 8))) / 128
    found, expected = METRICS[name](x + offset, y + offset), METRICS[name](x, y)
    np.testing.assert_allclose(float(found), float(expected), rtol=2e-4, atol=2e-5)


def test_neighbours_far_from_zero(key):
    """By double precision, at every offset (wrong before 0.2)."""
    points = np.round(64 * np.asarray(jax.random.normal(key, (200, 4)))) / 64 + 1e4
    distance, index = nearest(jnp.asarray(points[:9], jnp.float32), jnp.asarray(points[9:], jnp.float32), 3)
    every = np.linalg.norm(points[:9, None] - points[9:], axis=-1)
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :3], rtol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(every, np.asarray(index), 1), np.sort(every, axis=1)[:, :3], rtol=1e-5
    )


def test_samples_that_are_one_point():
    """(wrong before 0.2)"""
    point = jnp.full((4, 3), 2.5)
    assert [float(metric(point, point)) for metric in METRICS.values()] == [0, 0, 0, 0, 0]
    huge = float(mmd(1e20 * jnp.eye(3), -1e20 * jnp.eye(3)))  # it has no unit
    assert huge == pytest.approx(float(mmd(jnp.eye(3), -jnp.eye(3))), rel=1e-4)


def test_mmd_of_other_numbers_and_a_bandwidth():
    """By hand: k(0, 1) = exp(-1/8) at h = 2; x = {0, 1}, y = {0, 1, 1}."""
    k = np.exp(-1 / 8)
    found = mmd(jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [1.0], [1.0]]), bandwidth=2.0)
    assert float(found) == pytest.approx(k + (2 * k + 1) / 3 - 2 * (3 + 3 * k) / 6, abs=1e-6)


def test_distances_have_a_derivative_where_they_are_zero(key):
    """(wrong before 0.2): NaN."""
    points = jax.random.normal(key, (6, 3))
    for distance in (lambda x: sliced_wasserstein(key, x, points), lambda x: nearest_distance(x, points).sum()):
        np.testing.assert_array_equal(jax.grad(distance)(points), 0)
    at = lambda x: nearest_distance(x, points)[0]
    np.testing.assert_allclose(jnp.linalg.norm(jax.grad(at)(points[:1] + 1e-2)), 1, rtol=1e-3)


@pytest.mark.usefixtures("unchecked")
def test_metrics_refuse_what_means_nothing(key):
    """(wrong before 0.2)"""
    points = jax.random.normal(key, (4, 3))
    for metric in METRICS.values():
        with pytest.raises(ValueError, match="1 of 4 points are not finite"):
            metric(points.at[0, 0].set(jnp.nan), points)
        with pytest.raises(ValueError, match=r"expected points \[num, dim\], got shape \(3,\)"):
            metric(points[0], points)
    with pytest.raises(ValueError, match="at least two"):
        frechet(points[:1], points)
    with pytest.raises(ValueError, match="bandwidth: expected a positive number, got 0"):
        mmd(points, points, 0.0)
    with pytest.raises(ValueError, match="mass: expected numbers of at least 0 whose sum is 1, got a sum of 16"):
        kl_on_grid(np.ones((4, 4)), points[:, :2])
    with pytest.raises(ValueError, match="samples: expected points in the plane"):
        histogram(points, 4)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        nearest(points, points, 0)


@pytest.mark.usefixtures("unchecked")
def test_bad_input(key):
    points = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="of one dimension"):
        nearest_distance(points, points[:, :2])
    with pytest.raises(ValueError, match="as many samples"):
        sliced_wasserstein(key, points, points[:2])
    with pytest.raises(ValueError, match="at least two"):
        mmd(points, points[:1])
    with pytest.raises(ValueError, match="labels"):
        classifier_features(key, points, np.zeros(3, int), (points, np.zeros(4, int)), (3, 1, 1))


def test_features_of_a_classifier(key):
    images, labels = load_dataset("digits")
    points = jnp.asarray(images.reshape(len(images), -1) / np.float32(255))
    train, rest = slice(0, 1152), slice(1152, None)
    features = classifier_features(
        key, points[train], labels[train], (points[rest], labels[rest]), (8, 8, 1), num_steps=300
    )
    assert features.accuracy > 0.93
    extracted = features.extract(points[rest])
    assert extracted.shape == (285, 64)
    # Other images of the same kind are nearer than noise, and than half of the digits.
    others, some = features.extract(points[:285]), features.extract(points[rest][labels[rest] < 5])
    noise = features.extract(jax.random.uniform(key, (285, 64)))
    near = float(frechet(extracted, others))
    assert near < float(frechet(extracted, some))
    assert near < 0.2 * float(frechet(extracted, noise))
