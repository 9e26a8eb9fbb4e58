"""Codecs of coarse, huge, equal and dead weights; and what whole fits absorb, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.base import Layout
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.weights import (
    autoencoder,
    balance,
    canonical,
    find_symmetry,
    low_rank,
    match,
    pca,
    standardized,
    token_autoencoder,
)
from gfm_jax.weights.autoencoder import Terms, autoencoder_loss
from gfm_jax.weights.reconstruction import behavioural, gaussian_kl

DIM = 21
WEIGHTS = {"a": jnp.ones((3, 4)), "b": jnp.ones(4), "c": jnp.ones((4, 1)), "d": jnp.ones(1)}
LAYOUT = Layout(("0/bias", "0/kernel", "1/bias", "1/kernel"), ((4,), (3, 4), (1,), (4, 1)))
apply = lambda w, x: jax.nn.relu(x @ w["a"] + w["b"]) @ w["c"] + w["d"]
SYMMETRY = find_symmetry(apply, WEIGHTS, jnp.ones((2, 3)))
TINY = {"widths": (4,), "batch_size": 4}
CODECS = {
    "standardized": standardized(),
    "by_coordinate": standardized(by_coordinate=True),
    "pca": pca(3),
    "pca, not whitened": pca(3, whiten=False),
    "canonical": canonical(SYMMETRY),
    "low_rank": low_rank(LAYOUT, jnp.zeros(DIM), 1),
    "autoencoder": with_defaults(autoencoder(2, **TINY), num_steps=3),
    "token_autoencoder": with_defaults(token_autoencoder([LAYOUT], 2, **TINY)[0], num_steps=3),
}


@functools.cache
def over_rows(function):
    return jax.jit(jax.vmap(function, (None, 0)))


def round_trip(codec, key, weights):
    params, _ = fit(key, codec, weights)
    codes = over_rows(codec.encode)(params, weights)
    return codes, over_rows(codec.decode)(params, codes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in CODECS if "auto" not in name])
def test_codes_are_computed_in_float32(name, dtype, key):
    """As if the weights had been cast before, whose values all types hold (wrong before 0.2)."""
    coarse = jax.random.randint(key, (12, DIM), 0, 200).astype(dtype)
    found = round_trip(CODECS[name], key, coarse)
    expected = round_trip(CODECS[name], key, coarse.astype(jnp.float32))
    for own, right in zip(found, expected, strict=True):
        assert own.dtype == jnp.float32
        np.testing.assert_allclose(own, right, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16"])
def test_fits_are_in_float32(dtype, key):
    """Mean and deviation of a learned codec (wrong before 0.2)."""
    coarse = jax.random.randint(key, (12, DIM), 0, 200).astype(dtype)
    right = np.asarray(coarse.astype(jnp.float32), np.float64)
    params, _ = fit(key, CODECS["autoencoder"], coarse)
    np.testing.assert_allclose(params.mean, right.mean(0), rtol=1e-6)
    np.testing.assert_allclose(params.scale, np.sqrt(right.var(0).mean()), rtol=1e-5)


ZOOS = {
    "equal networks": jnp.tile(jnp.arange(1.0, DIM + 1), (6, 1)),
    "zeros": jnp.zeros((6, DIM)),
    "two kinds": jnp.tile(jnp.stack([jnp.zeros(DIM), jnp.ones(DIM)]), (3, 1)),
    "huge": 1e30 * jax.random.normal(jax.random.key(1), (6, DIM)),
    "tiny": 1e-30 * jax.random.normal(jax.random.key(1), (6, DIM)),
}


@pytest.mark.parametrize("zoo", ZOOS)
@pytest.mark.parametrize("name", [name for name in CODECS if "auto" not in name])
def test_degenerate_zoos_give_finite_codes(name, zoo, key):
    """Where nothing varies, and where squares would overflow (wrong before 0.2)."""
    weights = ZOOS[zoo]
    codes, found = round_trip(CODECS[name], key, weights)
    assert jnp.isfinite(codes).all()
    assert jnp.isfinite(found).all()
    if "pca" not in name and name != "canonical":
        size = jnp.abs(weights).max() or 1
        if name != "low_rank":
            np.testing.assert_allclose(found / size, weights / size, atol=1e-5)


@pytest.mark.parametrize("name", ["autoencoder", "token_autoencoder"])
@pytest.mark.parametrize("zoo", ["equal networks", "zeros"])
def test_learned_codes_of_equal_networks(name, zoo, key):
    """The deviation that weights are divided by is zero (wrong before 0.2)."""
    codes, found = round_trip(CODECS[name], key, ZOOS[zoo])
    assert jnp.isfinite(codes).all()
    assert jnp.isfinite(found).all()


def test_standardized_of_huge_weights_in_numbers():
    """The codes do not depend on the unit (wrong before 0.2)."""
    weights = jax.random.normal(jax.random.key(2), (6, 3))
    plain, huge = (round_trip(standardized(), jax.random.key(0), w)[0] for w in (weights, 2.0**100 * weights))
    np.testing.assert_array_equal(plain, huge)


@pytest.mark.usefixtures("unchecked")
def test_lists_and_complex_weights_are_refused(key):
    for name, codec in CODECS.items():
        with pytest.raises(
            ValueError, match="weights: expected real numbers, got complex64; write complex weights as two"
        ):
            fit(key, codec, jnp.ones((8, DIM), jnp.complex64))
        if name != "token_autoencoder":  # which takes a sequence of arrays
            with pytest.raises(ValueError, match=r"weights: expected an array \[num, dim\], got a list; jnp.stack"):
                fit(key, codec, [jnp.ones(DIM)] * 8)


# --- canonical form ---------------------------------------------------------------------------------------------------


def flat(a, b, c, d):
    return jnp.concatenate([jnp.asarray(part, jnp.float32).ravel() for part in (a, b, c, d)])


def test_balance_leaves_dead_units():
    """A unit without incoming or without outgoing weights stays, the others come into balance."""
    a, b, c = np.ones((3, 4)), np.zeros(4), np.full((4, 1), 2.0)
    a[:, 0], c[1] = 0, 0  # nothing goes in, nothing goes out
    found = balance(SYMMETRY, flat(a, b, c, [1.0]))
    factor = np.sqrt(2 / np.sqrt(3))  # of |in| = sqrt 3 and |out| = 2
    a[:, 2:], c[2:] = a[:, 2:] * factor, c[2:] / factor
    np.testing.assert_allclose(found, flat(a, b, c, [1.0]), rtol=1e-5)


def test_match_finds_the_order_in_numbers():
    """Of weights of any size and type (wrong before 0.2)."""
    a = jnp.arange(12.0).reshape(3, 4) ** 1.5
    reference, order = flat(a, np.arange(4), np.arange(4), [1]), np.array([2, 0, 3, 1])
    for size in (1.0, 1e25):
        shuffled = size * flat(a[:, order], order, order, [1])
        np.testing.assert_allclose(match(SYMMETRY, reference, shuffled) / size, reference, rtol=1e-6)
        np.testing.assert_allclose(match(SYMMETRY, size * reference, shuffled) / size, reference, rtol=1e-6)


# --- losses and gradients by hand -------------------------------------------------------------------------------------


def test_mean_and_scale_are_not_learned(key):
    """They are those of the weights after the fit."""
    weights = 3 + jax.random.normal(key, (12, DIM))
    for name in ("autoencoder", "token_autoencoder"):
        params, _ = fit(key, CODECS[name], weights)
        mean = params.mean if name == "autoencoder" else params.means[0]
        np.testing.assert_allclose(mean, weights.mean(0), rtol=1e-6)
        np.testing.assert_allclose(params.scale, jnp.sqrt(weights.var(0).mean()), rtol=1e-6)


class Scale:
    scale = 2.0


def test_the_loss_in_numbers(key):
    """Every term and its weight, of one code that is the first weight, and noise of the deviation that was asked for."""
    w = jax.random.normal(key, (4000, 2))
    encode = lambda params, w: (w[:1], jnp.full(1, -40.0))
    decode = lambda params, z: jnp.concatenate([z, z])
    outputs = lambda w, x: x @ w.reshape(2, 1)
    x = jnp.eye(2)
    asked = Terms(weights=0.3, behaviour=2.0, kl=0.5, noise=0.1, logits=False, num_inputs=2, batch_size=4000)
    total, terms = autoencoder_loss(asked, encode, decode, outputs, Scale, key, w, x)
    lost = ((w[:, 0] - w[:, 1]) ** 2) / 2
    assert terms["weights"] == pytest.approx(float(lost.mean()) / 4, rel=1e-4)
    assert terms["behaviour"] == pytest.approx(float((lost / (w**2).mean(1)).mean()), rel=1e-4)
    assert terms["kl"] == pytest.approx(float(((w[:, 0] ** 2 - 1) / 2 + 40).mean()), rel=1e-4)
    assert total == pytest.approx(float(0.3 * terms["weights"] + 2 * terms["behaviour"] + 0.5 * terms["kl"]), rel=1e-5)
    noisy = asked._replace(weights=0.1, kl=0.0, noise=0.7)
    _, terms = autoencoder_loss(noisy, encode, decode, None, Scale, key, w[:, :1].repeat(2, 1), ())
    assert set(terms) == {"weights"}
    assert terms["weights"] == pytest.approx(0.49 / 4, rel=0.05)


def test_divergence_in_numbers():
    """KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s."""
    found = gaussian_kl(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 1.0])))
    assert found == pytest.approx(((1 + 4 - 1) / 2 - np.log(2)) / 2, rel=1e-6)


def test_outputs_that_are_zero_have_a_finite_loss():
    """Networks that say nothing: the change itself counts (wrong before 0.2)."""
    outputs = lambda w, x: x @ w.reshape(2, 2)
    assert behavioural(outputs, jnp.zeros(4), jnp.zeros(4), jnp.eye(2)) == 0
    assert behavioural(outputs, jnp.array([1.0, -1, 0, 0]), jnp.zeros(4), jnp.eye(2)) == pytest.approx(0.5)


def test_pca_without_whitening_keeps_lengths():
    """Codes have the deviations of the components, and with as many codes as directions lengths stay."""
    weights = jax.random.normal(jax.random.key(3), (40, 4)) * jnp.array([1.0, 2.0, 4.0, 8.0])
    codes, found = round_trip(pca(4, whiten=False), jax.random.key(0), weights)
    np.testing.assert_allclose(found, weights, atol=1e-4)
    np.testing.assert_allclose(
        jnp.linalg.norm(codes, axis=1), jnp.linalg.norm(weights - weights.mean(0), axis=1), rtol=1e-4
    )
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(np.asarray(weights).T))[::-1])
    np.testing.assert_allclose(codes.std(0, ddof=1), spread, rtol=1e-4)


def test_signs_of_adapters_are_settled(key):
    """The columns of A sum to something positive, so that a network has one code, whatever signs the decomposition took."""
    layout = Layout(("0/kernel",), ((6, 5),))
    codec = low_rank(layout, jnp.zeros(30), 2)
    for number in range(4):
        code = codec.encode((), jax.random.normal(jax.random.fold_in(key, number), (30,)))
        assert (code[:12].reshape(6, 2).sum(0) > 0).all()
