"""Interpolants, couplings, times and reference points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from gfm_jax.flows import (
    GaussianSource,
    distinct,
    draw_gaussian,
    draw_reference_points,
    dyadic,
    fit_gaussian,
    independent,
    interpolate,
    linear,
    logit_normal,
    optimal_transport,
    paired,
    sinkhorn,
    stratified,
    triangle,
    trigonometric,
    uniform,
    variance_preserving,
)

INTERPOLANTS = {"linear": linear, "trigonometric": trigonometric, "variance_preserving": variance_preserving}


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_interpolants(name):
    interpolant, x_0, x_1 = INTERPOLANTS[name], jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    at = lambda t: interpolate(interpolant, jnp.float32(t), x_0, x_1)
    np.testing.assert_allclose(at(0.0).x_t, x_0, atol=1e-6)
    np.testing.assert_allclose(at(1.0).x_t, x_1, atol=1e-6)
    np.testing.assert_allclose(at(0.4).dx_t, (at(0.41).x_t - at(0.39).x_t) / 0.02, rtol=2e-3)
    if name != "linear":
        t = jnp.linspace(0, 1, 9)
        np.testing.assert_allclose(interpolant.alpha(t) ** 2 + interpolant.beta(t) ** 2, 1, rtol=1e-6)


def cost(x_0, x_1, index):
    return float(np.sum((np.asarray(x_0) - np.asarray(x_1)[np.asarray(index)]) ** 2))


def test_couplings(key):
    x_0, x_1 = jax.random.normal(key, (2, 64, 2))
    np.testing.assert_array_equal(paired(x_0, x_1), np.arange(64))
    exact = optimal_transport(x_0, x_1)
    assert sorted(exact) == list(range(64))  # marginals are kept
    assert cost(x_0, x_1, exact) < 0.5 * cost(x_0, x_1, independent(key, x_0, x_1))
    # In one dimension the optimal coupling sorts.
    line_0, line_1 = x_0[:, :1], x_1[:, :1]
    np.testing.assert_array_equal(
        np.asarray(line_1)[optimal_transport(line_0, line_1)][np.argsort(line_0[:, 0])], np.sort(line_1, axis=0)
    )
    blocks = optimal_transport(x_0, x_1, block=16)
    assert (blocks // 16 == np.arange(64) // 16).all()
    assert cost(x_0, x_1, exact) < cost(x_0, x_1, blocks)
    # It is the plan of least cost: no two rows gain by changing places.
    swapped = [exact.copy() for _ in range(20)]
    for i, index in enumerate(swapped):
        index[[i, i + 20]] = index[[i + 20, i]]
        assert cost(x_0, x_1, index) >= cost(x_0, x_1, exact) - 1e-4


def test_transport_within_a_condition_keeps_sources_and_conditions_apart(key):
    x_0, x_1 = np.array(jax.random.normal(key, (2, 64, 2)))
    cond = np.arange(64) % 4
    x_1[:, 0] += 5 * cond  # a transport that ignored conditions would sort the sources by them
    index = optimal_transport(x_0, x_1, cond)
    np.testing.assert_array_equal(cond[index], cond)
    np.testing.assert_array_equal(index, optimal_transport(x_0, x_1, np.eye(4)[cond]))
    assert cost(x_0, x_1, index) < cost(x_0, x_1, np.arange(64))


def test_sinkhorn_comes_near_the_exact_plan(key):
    pytest.importorskip("ott")
    x_0, x_1 = jax.random.normal(key, (2, 64, 2))
    near = jax.jit(lambda key: sinkhorn(key, x_0, x_1, epsilon=0.005))(key)
    exact = cost(x_0, x_1, optimal_transport(x_0, x_1))
    assert cost(x_0, x_1, near) < 1.25 * exact


@pytest.mark.usefixtures("unchecked")
def test_couplings_refuse(key):
    points = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="x_0, x_1"):
        independent(key, points, points[:3])
    with pytest.raises(ValueError, match="cond"):
        optimal_transport(points, points, np.zeros(3))
    with pytest.raises(ValueError, match="block"):
        optimal_transport(points, points, block=0)
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(key, points, points, epsilon=0.0)


def test_times(key):
    assert kstest(np.asarray(uniform(key, 4000)), "uniform").pvalue > 0.01
    evenly = np.asarray(stratified(key, 100))
    np.testing.assert_array_equal(np.floor(evenly * 100), np.arange(100))
    logits = np.log(1 / (1 / np.asarray(logit_normal(key, 4000, 0.5, 2.0), float) - 1))
    assert kstest((logits - 0.5) / 2, "norm").pvalue > 0.01
    with pytest.raises(ValueError, match="std: expected a standard deviation of at least 0"):
        logit_normal(key, 4, 0.0, -1.0)
    s, t = (np.asarray(part) for part in triangle(key, 4000))
    assert (s <= t).all()
    assert kstest(t, lambda x: x**2).pvalue > 0.01  # the larger of two
    assert kstest(s / t, "uniform").pvalue > 0.01
    s, t = (np.asarray(part) for part in dyadic(key, 4000, 4))
    width = t - s
    assert chisquare(np.unique(width, return_counts=True)[1]).pvalue > 0.01
    assert set(width) == {1, 0.5, 0.25, 0.125}
    np.testing.assert_array_equal(s / width, np.round(s / width))
    assert t.max() == 1
    with pytest.raises(ValueError, match="levels"):
        dyadic(key, 4, 0)


def test_distinct_integers_are_any_as_likely(key):
    pairs = np.asarray(jax.vmap(lambda key: distinct(key, 5, 2))(jax.random.split(key, 20_000)))
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(pairs.T), 1)
    assert (np.diag(counts) == 0).all()
    assert chisquare(counts[~np.eye(5, dtype=bool)]).pvalue > 0.01
    assert sorted(distinct(key, 7, 7).tolist()) == list(range(7))
    with pytest.raises(ValueError, match="count: expected 0 to 3"):
        distinct(key, 3, 4)


def test_reference_points(key):
    own, index = draw_reference_points(key, 50, 8, 20, "per_sample")
    assert index.shape == (8, 20)
    np.testing.assert_array_equal(index[:, 0], own)
    assert all(len(set(row.tolist())) == 20 for row in index)
    own, index = draw_reference_points(key, 50, 8, 20, "shared")
    assert index.shape == (20,)
    np.testing.assert_array_equal(index[:8], own)
    assert len(set(index.tolist())) == 20
    _, index = draw_reference_points(key, 4, 8, 20, "per_sample", replacement=True)
    assert index.shape == (8, 20)
    _, all_of_them = draw_reference_points(key, 6, 3, 6, "per_sample")
    np.testing.assert_array_equal(np.sort(all_of_them, axis=1), np.tile(np.arange(6), (3, 1)))


@pytest.mark.usefixtures("unchecked")
def test_reference_points_refuse(key):
    with pytest.raises(ValueError, match=r"num_reference_points: expected at least 1, got 0"):
        draw_reference_points(key, 10, 4, 0, "per_sample")
    with pytest.raises(ValueError, match=r"at least 4, since the batch is part"):
        draw_reference_points(key, 10, 4, 3, "shared")
    with pytest.raises(ValueError, match=r"at most 10 different points, got 11"):
        draw_reference_points(key, 10, 4, 11)
    with pytest.raises(ValueError, match="sharing: expected 'per_sample' or 'shared', got 'mine'"):
        draw_reference_points(key, 10, 4, 5, "mine")


def test_a_gaussian_source_has_the_covariance_of_its_factor(key):
    """A factor that is no symmetric matrix, and a temperature: T^2 F F^T."""
    factor = jnp.array([[1.0, 0.0], [2.0, 0.5]])
    points = np.asarray(draw_gaussian(key, GaussianSource(jnp.array([1.0, -1.0]), factor), 40_000, 0.5), float)
    np.testing.assert_allclose(np.cov(points.T), 0.25 * factor @ factor.T, atol=0.03)
    np.testing.assert_allclose(points.mean(0), [1, -1], atol=0.02)


@pytest.mark.usefixtures("unchecked")
def test_gaussians_of_any_dtype(key):
    """Mean and covariance in double precision; one point has none (wrong before 0.2)."""
    images = np.random.default_rng(0).integers(0, 255, (50, 3)).astype(np.uint8)
    for points in (images, jnp.asarray(images).astype(jnp.bfloat16), images + 1e4):
        found = fit_gaussian(points)
        exact = np.asarray(jnp.asarray(points).astype(jnp.float32), float)
        np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.factor @ found.factor.T, np.cov(exact.T), rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="points: expected at least 2 points, got 1"):
        fit_gaussian(images[:1])
    with pytest.raises(ValueError, match="num: expected at least 1, got 0"):
        draw_gaussian(key, found, 0)
    with pytest.raises(ValueError, match="temperature: expected a number of at least 0, got -1"):
        draw_gaussian(key, found, 2, -1.0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_transport_far_from_zero(offset, key):
    """(wrong before 0.2)"""
    x_0, x_1 = np.round(64 * np.asarray(jax.random.normal(key, (2, 32, 2)))) / 64
    expected = optimal_transport(x_0, x_1)
    np.testing.assert_array_equal(optimal_transport(x_0 + offset, x_1 + offset), expected)
    bytes_ = np.random.default_rng(0).integers(0, 255, (2, 16, 4)).astype(np.uint8)
    np.testing.assert_array_equal(optimal_transport(*bytes_), optimal_transport(*bytes_.astype(float)))


@pytest.mark.usefixtures("unchecked")
def test_paths_of_integers_and_of_other_shapes():
    """(wrong before 0.2)"""
    path = interpolate(linear, 1, np.array([0, 4], np.uint8), np.array([8, 0], np.uint8))
    np.testing.assert_array_equal(path.dx_t, [8.0, -4.0])
    with pytest.raises(ValueError, match="x_0, x_1: expected points of one shape"):
        interpolate(linear, 0.5, jnp.zeros(3), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"t: expected one time, got shape \(2,\)"):
        interpolate(linear, jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
