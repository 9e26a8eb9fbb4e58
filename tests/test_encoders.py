"""Codecs: what comes back exactly, what comes back nearly, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from gfm_jax.fitting import fit
from gfm_jax.networks import MLP
from gfm_jax.pytrees import ravel, unravel
from gfm_jax.weights import autoencoder, chain, identity, pca, standardized
from gfm_jax.weights.reconstruction import behavioural

DIM = 20
EXACT = {
    "identity": identity(),
    "standardized": standardized(),
    "standardized_by_coordinate": standardized(by_coordinate=True),
    "pca": pca(DIM),
    "chain": chain(standardized(), pca(DIM, whiten=False)),
}


def fitted(key, codec, weights, **choices):
    return fit(key, codec, weights, **choices)[0]


def round_trip(codec, params, weights):
    codes = jax.vmap(functools.partial(codec.encode, params))(weights)
    return codes, jax.vmap(functools.partial(codec.decode, params))(codes)


@pytest.fixture
def networks(key):
    """Weights of unequal spread; the last of them is the same in all."""
    return (jnp.arange(DIM) + jax.random.normal(key, (60, DIM)) * jnp.linspace(0.1, 3, DIM)).at[:, -1].set(7.0)


@pytest.mark.parametrize("name", EXACT)
def test_decoding_reverses_encoding(name, networks, key):
    codec = EXACT[name]
    _, found = round_trip(codec, fitted(key, codec, networks), networks)
    np.testing.assert_allclose(found, networks, atol=2e-4)


def test_standardized_codes(networks, key):
    codes, _ = round_trip(standardized(), fitted(key, standardized(), networks), networks)
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-5)
    assert codes.var(0).mean() == pytest.approx(1, abs=1e-4)
    by_coordinate = EXACT["standardized_by_coordinate"]
    codes, _ = round_trip(by_coordinate, fitted(key, by_coordinate, networks), networks)
    np.testing.assert_allclose(codes.std(0), np.r_[np.ones(DIM - 1), 0], atol=1e-4)


def test_pca_keeps_what_varies_most_and_whitens_it(networks, key):
    codec = pca(5)
    codes, found = round_trip(codec, fitted(key, codec, networks), networks)
    theirs = PCA(5).fit(np.asarray(networks))
    np.testing.assert_allclose(found, theirs.inverse_transform(theirs.transform(networks)), atol=1e-3)
    np.testing.assert_allclose(np.cov(codes.T), np.eye(5), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in EXACT if name != "identity"])
def test_weights_of_another_architecture_are_refused(name, networks, key):
    codec = EXACT[name]
    params = fitted(key, codec, networks)
    with pytest.raises(ValueError, match=r"weights: expected 20 of a network, as in the fit, got shape \(19,\)"):
        codec.encode(params, networks[0, 1:])


def test_behavioural_loss():
    outputs = lambda w, x: x @ w.reshape(2, 3)
    inputs, w = jnp.eye(2), jnp.array([1.0, 0, 0, 0, 1, 0])
    assert behavioural(outputs, w, w, inputs) == 0
    assert behavioural(outputs, w + 5.0, w, inputs) == pytest.approx(0, abs=1e-6)  # adds the same to all outputs
    assert behavioural(outputs, jnp.zeros(6), w, inputs) == pytest.approx(1)
    assert behavioural(outputs, w + 5.0, w, inputs, logits=False) == pytest.approx(75)  # 25 of a mean square of 1/3
    with pytest.raises(ValueError, match="logits: expected False for one output"):
        behavioural(lambda w, x: x @ w[:, None], w[:2], w[2:4], inputs)


@pytest.fixture
def family(key):
    """Networks that differ along two directions, and the function of their flat weights."""
    network = MLP((8, 3))
    inputs = jax.random.normal(key, (64, 4))
    tree = jax.jit(network.init)(key, inputs)
    k_centre, k_directions, k_codes = jax.random.split(key, 3)
    dim = len(ravel(tree))
    directions = jax.random.normal(k_directions, (2, dim))
    weights = jax.random.normal(k_centre, (dim,)) + jax.random.normal(k_codes, (300, 2)) @ directions
    return weights, (lambda w, x: network.apply(unravel(tree, w), x)), inputs


SMALL = {"widths": (32,), "batch_size": 32}
FAST = {"num_steps": 300, "learning_rate": 3e-3, "ema_decay": 0.9}


@pytest.mark.parametrize("kl", [0.0, 1e-3])
def test_autoencoder_finds_two_directions(kl, family, key):
    weights, outputs, inputs = family
    train, held_out = weights[:250], weights[250:]
    codec = autoencoder(2, outputs, inputs, kl=kl, num_inputs=16, **SMALL)
    codes, found = round_trip(codec, fitted(key, codec, train, **FAST), held_out)
    assert codes.shape == (50, 2)
    lost = jax.vmap(lambda a, b: behavioural(outputs, a, b, inputs))
    assert lost(found, held_out).mean() < 0.1 * lost(jnp.broadcast_to(train.mean(0), held_out.shape), held_out).mean()


def test_autoencoder_sees_what_augments(family, key):
    """Trained on networks with the sign of a weight drawn afresh, it is not told which sign the data have."""
    weights, *_ = family
    flip = lambda k, w: w.at[0].multiply(jax.random.rademacher(k, (), w.dtype))
    codec = autoencoder(2, augment=flip, **SMALL)
    plain = autoencoder(2, **SMALL)
    back = lambda codec: jnp.abs(round_trip(codec, fitted(key, codec, weights, **FAST), weights)[1][:, 0]).mean()
    assert back(codec) < 0.5 * back(plain)


def test_autoencoder_is_kept_in_a_folder(family, key, tmp_path):
    """A second fit of the same is read from the folder; one of another key or other weights is refused (wrong before 0.2)."""
    weights, *_ = family
    codec = autoencoder(2, **SMALL)
    in_folder = lambda key, weights: fitted(key, codec, weights, folder=tmp_path, num_steps=20)
    found, again = in_folder(key, weights), in_folder(key, weights)
    jax.tree.map(np.testing.assert_array_equal, again, found)
    with pytest.raises(ValueError, match=r"folder: .* holds another fit: key .*, here key"):
        in_folder(jax.random.fold_in(key, 1), weights)
    with pytest.raises(ValueError, match=r"folder: .* holds another fit: .*data\.0 float32 .* crc32 \w+, here float32"):
        in_folder(key, weights + 1e-3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("make", [standardized, lambda: pca(3)])
def test_codes_of_another_size_are_refused(make, key):
    """(wrong before 0.2): one number was taken for all."""
    codec = make()
    params = fitted(key, codec, jax.random.normal(key, (8, DIM)))
    with pytest.raises(ValueError, match=r"codes: expected \d+ of a network, as in the fit, got shape \(1,\)"):
        codec.decode(params, jnp.ones(1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "weights", "message"),
    [
        (lambda: pca(8), jnp.ones((8, DIM)), r"weights: expected those of at least 9 networks for 8 components"),
        (lambda: pca(DIM + 1), jnp.ones((60, DIM)), "num_codes: expected at most the 20 weights"),
        (lambda: pca(0), None, "num_codes: expected at least 1 component, got 0"),
        (lambda: standardized(), jnp.ones((1, DIM)), "weights: expected those of at least 2 networks"),
        (lambda: standardized(), jnp.ones(DIM), r"weights: .*\[num, dim\], got \(20,\)"),
        (lambda: standardized(), jnp.ones((3, DIM)).at[1, 2].set(jnp.nan), "weights: .*finite"),
        (lambda: autoencoder(0), None, "num_codes: expected at least 1, got 0"),
        (lambda: autoencoder(4, inputs=jnp.ones((3, 2))), None, "outputs: expected beside inputs, got none"),
        (lambda: autoencoder(4, lambda w, x: x), None, "inputs: expected beside outputs, got none"),
    ],
)
def test_bad_input(make, weights, message, key):
    with pytest.raises(ValueError, match=message):
        fitted(key, make(), weights)
