"""Support sets as conditions: what they must not depend on, and what they must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.networks import DeepSet, SetTransformer, TimeMLP, WithContext
from gfm_jax.weights import class_context, label_codes, support_tokens

WAYS, SHOTS = 5, 4
CODES = label_codes(WAYS)


@pytest.fixture
def support(key):
    return jax.random.normal(key, (WAYS * SHOTS, 3)), jnp.repeat(jnp.arange(WAYS), SHOTS)


def test_label_codes_are_the_corners_of_a_simplex():
    expected = (1 + 1 / (WAYS - 1)) * np.eye(WAYS) - 1 / (WAYS - 1)
    np.testing.assert_allclose(CODES @ CODES.T, expected, atol=1e-6)
    np.testing.assert_allclose(CODES.sum(0), 0, atol=1e-6)


def frozen(features, labels, codes=CODES):
    return class_context(features, labels, codes)


def learned(module):
    def context(features, labels, codes=CODES):
        tokens = support_tokens(features, labels, codes).reshape(len(features), -1)
        return module.apply(jax.jit(module.init)(jax.random.key(1), tokens), tokens)

    return context


CONTEXTS = {"frozen": frozen, "deep_set": learned(DeepSet()), "transformer": learned(SetTransformer(num_layers=1))}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_order_of_the_examples_does_not_matter(name, support, key):
    features, labels = support
    order = jax.random.permutation(key, len(labels))
    context = CONTEXTS[name]
    np.testing.assert_allclose(context(features[order], labels[order]), context(features, labels), atol=2e-5)


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_order_of_the_labels_matters_through_their_codes_alone(name, support, key):
    features, labels = support
    order = jax.random.permutation(key, WAYS)
    context = CONTEXTS[name]
    renamed = context(features, order[labels], CODES[jnp.argsort(order)])
    np.testing.assert_allclose(renamed, context(features, labels), atol=2e-5)
    assert jnp.abs(context(features, order[labels]) - renamed).max() > 1e-3


def test_the_frozen_context_tells_the_class_means(support):
    """Codes sum to zero: what all classes share is not told, and what tells them apart is, linearly."""
    features, labels = support
    found = frozen(features, labels).reshape(WAYS, -1)[:, :-1]
    means = jnp.stack([features[labels == k].mean(0) for k in range(WAYS)])
    np.testing.assert_allclose(found, CODES.T @ means / WAYS, atol=1e-5)
    np.testing.assert_allclose(frozen(features + 3.0, labels).reshape(WAYS, -1)[:, :-1], found, atol=1e-5)


def test_a_velocity_with_a_learned_context(support, key):
    features, labels = support
    tokens = support_tokens(features, labels, CODES)
    network = WithContext(TimeMLP((16,)), DeepSet(16, 8), num_tokens=WAYS * SHOTS)
    params = jax.jit(network.init)(key, jnp.zeros(1), jnp.ones(6), tokens)
    assert network.apply(params, jnp.zeros(1), jnp.ones(6), tokens).shape == (6,)
    assert set(params["params"]) == {"network", "context"}
    with pytest.raises(ValueError, match="cond: expected 20 tokens of one length, got 159 numbers"):
        network.apply(params, jnp.zeros(1), jnp.ones(6), tokens[:-1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("context", [class_context, support_tokens])
@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (jnp.zeros((0, 3)), jnp.zeros(0, int), "features: expected a support set .* not empty"),
        (jnp.zeros((2, 3)), jnp.zeros(3, int), "labels: expected one for each of 2 examples"),
        (jnp.zeros((2, 3)), jnp.array([0, 5]), "labels: expected 0..4, got 0..5"),
        (jnp.zeros((2, 3)), jnp.array([-1, 2]), "labels: expected 0..4, got -1..2"),
    ],
)
def test_bad_support(context, features, labels, message):
    with pytest.raises(ValueError, match=message):
        context(features, labels, CODES)
    with pytest.raises(ValueError, match="num_ways: expected at least 2"):
        label_codes(1)
