"""Symmetries found in networks' own programs, and the one form of all networks that compute the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.fitting import fit
from gfm_jax.networks import CNN, MLP
from gfm_jax.pytrees import ravel, unravel
from gfm_jax.weights import (
    act,
    balance,
    canonical,
    change_of_outputs,
    find_relabeling,
    find_symmetry,
    match,
    random_element,
    relabel,
)


class Residual(nn.Module):
    """Blocks of a hidden layer each, around a stream of units that keep their places from block to block."""

    norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        for _ in range(2):
            h = nn.Dense(12)(x)
            x = x + nn.Dense(8)(nn.relu(nn.LayerNorm()(h) if self.norm else h))
        return nn.Dense(3)(nn.relu(x))


class Normalised(nn.Module):
    """Convolutions with batch and group norms, and two kinds of pooling."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1))


class Attention(nn.Module):
    """One block with two heads."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        normed = nn.LayerNorm()(x)
        return nn.Dense(3)((x + nn.MultiHeadDotProductAttention(2)(normed, normed)).mean(1))


class Depthwise(nn.Module):
    """A convolution whose every channel stays by itself."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        return nn.Dense(3)(nn.relu(nn.Conv(6, (3, 3), feature_group_count=6)(x)).mean((1, 2)))


# Network, shape of its inputs, sizes of its families, rescalings of each. A unit before a batch norm may be scaled against the
# norm's mean and scale, and the norm's scale and bias against what follows; before norms that take their own mean and variance
# the stabiliser in the root forbids the first. Heads, and channels in groups, move in the same way within each. Keys may be
# scaled against queries, values against what reads them, by head and by dimension.
CASES = {
    "mlp": (MLP((16, 12, 5)), (7, 9), [12, 16], [1, 1]),
    "mlp_gelu": (MLP((16, 5), nn.gelu), (7, 9), [16], [0]),
    "mlp_leaky": (MLP((16, 5), nn.leaky_relu), (7, 9), [16], [1]),
    "cnn": (CNN((4, 6)), (7, 8, 8, 1), [4, 6], [1, 1]),
    "residual": (Residual(), (7, 9), [8, 12, 12], [1, 1, 1]),
    "residual_norm": (Residual(norm=True), (7, 9), [8, 12, 12], [1, 1, 1]),
    "batch_and_group_norm": (Normalised(), (7, 8, 8, 2), [2, 4, 6], [1, 1, 2]),
    "attention": (Attention(), (7, 5, 4), [2, 4, 4, 8], [2, 1, 1, 1]),
    "depthwise": (Depthwise(), (7, 8, 8, 2), [6], [2]),
}


@functools.cache
def case(name):
    """In double precision: function of flat weights, weights in general position, and the symmetry."""
    network, shape, *_ = CASES[name]
    inputs = jax.random.normal(jax.random.key(1), shape)
    weights = jax.tree.map(lambda leaf: leaf.astype(float), jax.jit(network.init)(jax.random.key(0), inputs))
    away = 0.3 * jax.random.normal(jax.random.key(2), ravel(weights).shape)
    is_variance = lambda path: "var" in jax.tree_util.keystr(path)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf, step: leaf + (jnp.abs(step) if is_variance(path) else step), weights, unravel(weights, away)
    )
    symmetry = find_symmetry(network.apply, weights, inputs)
    return network.apply, weights, moved, inputs, symmetry


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_a_random_element_leaves_the_outputs_as_they_are(name, key):
    apply, _, weights, inputs, symmetry = case(name)
    change = jax.jit(lambda w: change_of_outputs(key, symmetry, apply, w, inputs))
    assert change(weights) < 1e-12
    moved = jax.jit(lambda w: jnp.abs(act(symmetry, random_element(key, symmetry), w) - w).max())
    assert moved(ravel(weights)) > 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_all_symmetries_are_found(name):
    found = sorted((family.size, len(family.exponents)) for family in case(name)[-1].families)
    assert found == sorted(zip(*CASES[name][2:], strict=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_the_canonical_form_is_one_for_all_and_computes_the_same(name, key):
    apply, tree, weights, inputs, symmetry = case(name)
    flat = ravel(weights)
    outputs = jax.jit(lambda w: apply(unravel(tree, w), inputs))
    balanced = functools.partial(balance, symmetry)
    near = jax.jit(balanced)(flat + 0.1 * jax.random.normal(key, flat.shape))
    form = jax.jit(lambda w: match(symmetry, near, balanced(w)))
    scattered = jax.jit(lambda w: act(symmetry, random_element(key, symmetry), w))(flat)
    once, other = form(flat), form(scattered)
    np.testing.assert_allclose(outputs(once), outputs(flat), atol=1e-11)
    np.testing.assert_allclose(other, once, atol=1e-11)
    np.testing.assert_allclose(form(once), once, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_balance_is_the_least_norm(key):
    """Of a hidden unit of relu with weights in and out the least is twice the product of their norms."""
    network, inputs = MLP((16, 5)), jnp.ones((2, 9))
    weights = jax.tree.map(lambda leaf: leaf.astype(float), jax.jit(network.init)(key, inputs))
    found = unravel(weights, balance(find_symmetry(network.apply, weights, inputs), ravel(weights)))["params"]
    first, second = (weights["params"][name]["kernel"] for name in ("hidden_0", "output"))
    into = jnp.sqrt(jnp.sum(first**2, 0))  # biases start at zero
    np.testing.assert_allclose(jnp.sum(found["hidden_0"]["kernel"] ** 2, 0), into * jnp.linalg.norm(second, axis=1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual_norm", "attention"])
def test_outputs_are_exchanged_by_exchanging_weights(name, key):
    apply, tree, weights, inputs, _ = case(name)
    relabeling = find_relabeling(apply, weights, inputs)
    outputs = apply(weights, inputs)
    order = jax.random.permutation(key, outputs.shape[-1])
    moved = unravel(tree, jax.jit(functools.partial(relabel, relabeling))(order, ravel(weights)))
    np.testing.assert_allclose(apply(moved, inputs), outputs[:, order], atol=1e-12)


def test_outputs_that_are_no_units_of_a_layer():
    with pytest.raises(ValueError, match="apply: expected outputs that are units of the network's last layer"):
        find_relabeling(lambda w, x: jnp.cumsum(x @ w, -1), jnp.ones((3, 4)), jnp.ones((2, 3)))


@pytest.mark.usefixtures("x64")
def test_what_is_no_symmetry_is_not_claimed(key):
    """Units that meet others by their places, or are told apart by constants, cannot be exchanged."""
    weights = {"a": jax.random.normal(key, (3, 6)), "b": jax.random.normal(key, (6, 2))}
    inputs = jax.random.normal(key, (4, 3))
    hidden = lambda w, x: jnp.tanh(x @ w["a"])
    plain = lambda w, x: hidden(w, x) @ w["b"]
    mirrored = lambda w, x: (hidden(w, x) + hidden(w, x)[:, ::-1]) @ w["b"]
    weighed = lambda w, x: (hidden(w, x) * jnp.arange(6.0)) @ w["b"]
    summed = lambda w, x: jnp.cumsum(hidden(w, x), axis=1) @ w["b"]
    assert len(find_symmetry(plain, weights, inputs).families) == 1
    for other in (mirrored, weighed, summed):
        assert not find_symmetry(other, weights, inputs).families


def test_canonical_codec_brings_a_scattered_zoo_together(key):
    """Networks near one another, each under its own element of the group: told apart by it alone, until in order."""
    network, inputs = MLP((16, 5)), jnp.ones((2, 9))
    weights = jax.jit(network.init)(key, inputs)
    symmetry = find_symmetry(network.apply, weights, inputs)
    k_centre, k_near, k_scatter = jax.random.split(key, 3)
    centre = jax.random.normal(k_centre, ravel(weights).shape)
    near = centre + 0.05 * jax.random.normal(k_near, (20, len(centre)))
    scattered = jax.vmap(lambda k, w: act(symmetry, random_element(k, symmetry), w))(
        jax.random.split(k_scatter, 20), near
    )
    codec = canonical(symmetry)
    params, _ = fit(key, codec, scattered)
    codes = jax.vmap(lambda w: codec.encode(params, w))(scattered)
    deviation = lambda w: float(w.std(0).mean())
    assert deviation(codes) < 0.06 < 0.5 < deviation(scattered)
    np.testing.assert_array_equal(jax.vmap(lambda z: codec.decode(params, z))(codes), codes)


def test_weights_of_another_architecture(key):
    network, inputs = MLP((16, 5)), jnp.ones((2, 9))
    symmetry = find_symmetry(network.apply, jax.jit(network.init)(key, inputs), inputs)
    with pytest.raises(ValueError, match="weights: expected 245 of the network of this symmetry, got shape"):
        fit(key, canonical(symmetry), jnp.ones((4, 100)))
