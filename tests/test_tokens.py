"""Weights as tokens and as low-rank adapters: exact inverses, one codec for several widths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.base import Network
from gfm_jax.fitting import fit
from gfm_jax.networks import CNN, MLP
from gfm_jax.pytrees import layout_of, ravel, unravel
from gfm_jax.runs import classification, record
from gfm_jax.weights import from_tokens, low_rank, to_tokens, token_autoencoder, tokens_of


def network_of(module, inputs):
    tree = jax.jit(module.init)(jax.random.key(0), inputs)
    return layout_of(tree), (lambda w, x: module.apply(unravel(tree, w), x))


IMAGES = jnp.zeros((1, 8, 8, 1))
LAYOUTS = {
    "MLP": network_of(MLP((7, 5, 3)), jnp.zeros((1, 4)))[0],
    "CNN": network_of(CNN(), IMAGES)[0],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", [None, 1, 4, 100])
def test_tokens_are_the_weights(name, size, key):
    layout = LAYOUTS[name]
    tokens = tokens_of(layout, size)
    weights = jax.random.normal(key, (layout.dim,))
    vectors = to_tokens(tokens, weights)
    assert size is None or vectors.shape[1] == size
    np.testing.assert_array_equal(from_tokens(tokens, vectors), weights)
    assert sorted(tokens.index[tokens.index >= 0]) == list(range(layout.dim))


def test_a_token_is_a_unit():
    """The columns of a kernel and their biases, by layer; narrower networks have fewer of the same tokens."""
    tree = jax.jit(MLP((7, 5, 3)).init)(jax.random.key(0), jnp.zeros((1, 4)))
    tree = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), tree)
    layout, tokens = layout_of(tree), tokens_of(layout_of(tree))
    assert [int((tokens.layer == k).sum()) for k in range(3)] == [7, 5, 3]
    hidden = tree["params"]["hidden_0"]
    expected = np.r_[hidden["bias"][2], hidden["kernel"][:, 2], np.zeros(3)]  # filled up to the 8 of the second layer
    np.testing.assert_array_equal(to_tokens(tokens, ravel(tree))[2], expected)
    assert layout.dim == (tokens.index >= 0).sum()


@pytest.fixture(scope="module")
def two_widths():
    """Networks of two widths that differ along two directions, each its own."""
    inputs = jax.random.normal(jax.random.key(1), (64, 4))
    kinds = []
    for width in (6, 9):
        layout, apply = network_of(MLP((width, 3)), inputs)
        keys = jax.random.split(jax.random.key(width), 3)
        directions = jax.random.normal(keys[1], (2, layout.dim))
        weights = jax.random.normal(keys[0], (layout.dim,)) + jax.random.normal(keys[2], (300, 2)) @ directions
        kinds.append((layout, apply, weights))
    return inputs, *zip(*kinds, strict=True)


def test_one_codec_serves_two_widths(two_widths, key, tmp_path):
    inputs, layouts, outputs, weights = two_widths
    options = {"widths": (48, 48), "weights": 1.0, "noise": 0.0, "batch_size": 32}
    codecs = token_autoencoder(layouts, 4, outputs, inputs, **options)
    of_both = lambda codec: fit(
        key, codec, weights, folder=tmp_path, num_steps=300, learning_rate=5e-3, ema_decay=0.99
    )[0]
    params = of_both(codecs[0])
    for codec, own, apply in zip(codecs, weights, outputs, strict=True):
        codes = jax.vmap(functools.partial(codec.encode, params))(own)
        found = jax.vmap(functools.partial(codec.decode, params))(codes)
        assert codes.shape == (300, 4)
        left = jnp.mean((found - own) ** 2) / jnp.mean((own - own.mean(0)) ** 2)
        assert left < 0.25
        outputs_of = jax.vmap(lambda w, apply=apply: apply(w, inputs))
        truth = outputs_of(own)
        assert jnp.mean((outputs_of(found) - truth) ** 2) < 0.25 * jnp.mean((truth - truth.mean(0)) ** 2)
    other = codecs[1].decode(params, codecs[0].encode(params, weights[0][0]))
    assert other.shape == weights[1][0].shape  # a code knows no width
    jax.tree.map(np.testing.assert_array_equal, of_both(codecs[1]), params)


# --- low rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_adapters_come_back_exactly(name, x64, key):
    layout = LAYOUTS[name]
    backbone = jax.random.normal(key, (layout.dim,))
    codec = low_rank(layout, backbone, 1)
    codes = jax.random.normal(jax.random.fold_in(key, 1), codec.encode((), backbone).shape)
    assert len(codes) < layout.dim
    weights = codec.decode((), codes)
    np.testing.assert_allclose(codec.decode((), codec.encode((), weights)), weights, atol=1e-9)
    np.testing.assert_allclose(codec.decode((), jnp.zeros_like(codes)), backbone)
    twice = codec.encode((), codec.decode((), codec.encode((), weights)))
    np.testing.assert_allclose(twice, codec.encode((), weights), atol=1e-7)  # signs are settled


def test_the_rest_of_other_weights_is_what_singular_values_say(key):
    layout = LAYOUTS["MLP"]
    weights = jax.random.normal(key, (layout.dim,))
    codec = low_rank(layout, jnp.zeros(layout.dim), 2)
    change = unravel_like(layout, codec.decode((), codec.encode((), weights)) - weights)
    whole = unravel_like(layout, weights)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        kept = len(shape) < 2 or 2 * sum(shape) >= np.prod(shape)
        left = 0.0 if kept else float(jnp.linalg.svd(whole[name])[1][2:] @ jnp.linalg.svd(whole[name])[1][2:])
        assert float(jnp.sum(change[name] ** 2)) == pytest.approx(left, abs=1e-3)


def test_decompositions_are_made_one_after_another(key):
    """Two at once can stand still for ever on CPU. From outside it is seen by what spreads: nothing is known after a NaN."""
    layout = LAYOUTS["MLP"]
    codec = low_rank(layout, jnp.zeros(layout.dim), 1)
    first = next(k for k, shape in enumerate(layout.shapes) if len(shape) == 2)
    weights = jax.random.normal(key, (layout.dim,)).at[sum(layout.sizes[:first])].set(jnp.nan)
    vectors = sum(size for shape, size in zip(layout.shapes, layout.sizes, strict=True) if len(shape) == 1)
    assert int(jnp.isfinite(codec.encode((), weights)).sum()) == vectors


def unravel_like(layout, vector):
    parts = np.split(np.asarray(vector), np.cumsum(layout.sizes)[:-1])
    return {name: part.reshape(shape) for name, shape, part in zip(layout.names, layout.shapes, parts, strict=True)}


def test_adapters_are_trained_as_any_network(key):
    """The factors are the weights that are recorded, and the backbone stays."""
    layout, apply = network_of(MLP((16, 16, 3)), jnp.zeros((1, 4)))
    backbone = 0.3 * jax.random.normal(key, (layout.dim,))
    codec = low_rank(layout, backbone, 1)
    start = codec.encode((), backbone + 0.1 * jax.random.normal(key, (layout.dim,)))
    adapter = Network(lambda key: start, lambda z, x: apply(codec.decode((), z), x))
    inputs = jax.random.normal(key, (128, 4))
    data = {"train": (inputs, inputs[:, :3].argmax(1))}
    task = classification(adapter, data, batch_size=32, num_classes=3)
    runs = record(jax.random.split(key, 2), task, optax.adam, 1e-2 * np.ones(100), (0, 100))
    assert runs.weights.shape == (2, 2, len(start))
    assert (runs.loss[:, -1] < 0.7 * runs.loss[:, 0]).all()


@pytest.mark.usefixtures("unchecked")
def test_bad_input(two_widths, key):
    _, layouts, outputs, weights = two_widths
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        tokens_of(layouts[0], 0)
    with pytest.raises(ValueError, match="layouts: expected at least one"):
        token_autoencoder([])
    deeper = network_of(MLP((6, 6, 3)), jnp.zeros((1, 4)))[0]
    with pytest.raises(ValueError, match="layouts: expected the same layers in all"):
        token_autoencoder([layouts[0], deeper])
    with pytest.raises(ValueError, match="outputs: expected one for each of 2 layouts, got 1"):
        token_autoencoder(layouts, 4, outputs[:1], jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="inputs: expected beside outputs"):
        token_autoencoder(layouts, 4, outputs)
    codec = token_autoencoder(layouts, 4)[0]
    with pytest.raises(ValueError, match="weights: expected those of 2 kinds of networks, got 1"):
        fit(key, codec, weights[0])
    with pytest.raises(ValueError, match=f"weights: expected {layouts[0].dim} for each network"):
        fit(key, codec, weights[::-1])
    with pytest.raises(ValueError, match="rank: expected at least 1"):
        low_rank(layouts[0], jnp.zeros(layouts[0].dim), 0)
    with pytest.raises(ValueError, match="backbone: expected the"):
        low_rank(layouts[0], jnp.zeros(3), 1)
    with pytest.raises(ValueError, match="weights: expected the"):
        fit(key, low_rank(layouts[0], jnp.zeros(layouts[0].dim), 1), weights[1])
