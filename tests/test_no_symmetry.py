"""What is no symmetry is not claimed: many small networks, each with an operation that tells units apart or bends them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from runs import jittered

from gfm_jax.encoders import axis_rules, change_of_outputs, find_relabeling, find_symmetry

INPUTS = jax.random.normal(jax.random.key(1), (5, 3))
IMAGES = jax.random.normal(jax.random.key(2), (2, 5, 5, 3))
WEIGHTS = {"a": jax.random.normal(jax.random.key(3), (3, 8)), "b": jax.random.normal(jax.random.key(4), (8, 2))}


def between(operation):
    """A network with the operation on its hidden units [5, 8]; the last layer takes as many of its units as are left."""

    def apply(w, x):
        h = operation(nn.relu(x @ w["a"]))
        h = h.reshape(len(x), -1).astype(jnp.float32)
        return h @ jnp.resize(w["b"], (h.shape[1], 2)) if h.shape[1] > 8 else h @ w["b"][: h.shape[1]]

    return apply


def pad(low, high, interior=0, value=0.0):
    return lambda h: lax.pad(h, value, [(0, 0, 0), (low, high, interior)])


def window(h, **options):
    given = {"window_dimensions": (1, 1), "window_strides": (1, 1), "padding": ((0, 0), (0, 0))} | options
    return lax.reduce_window(h, -jnp.inf, lax.max, **given)


def power_of_two(h):
    return jnp.exp2(jnp.round(jnp.log2(h + 1e-3)))


# The operation, and how many families and rescalings are right: none, where units are told apart; those without rescalings,
# where they are bent. Of some, less is claimed than is true.
NONE, BENT, WHOLE = [], [0], [1]
OPERATIONS = {
    "nothing": (lambda h: h, WHOLE),
    # places are moved, though the size stays
    "pad +1 -1": (pad(1, -1), NONE),
    "pad -2 +2": (pad(-2, 2), NONE),
    "pad +1 -1 by ones": (pad(1, -1, 0, 1.0), NONE),
    "pad inside": (pad(-7, 0, 1), NONE),
    "pad by nothing": (pad(0, 0), WHOLE),
    "roll": (lambda h: jnp.roll(h, 1, axis=1), NONE),
    "roll by padding": (lambda h: pad(1, -1)(h) + pad(-7, 7)(h), NONE),
    "flip": (lambda h: h[:, ::-1], NONE),
    "rev": (lambda h: lax.rev(h, (1,)), NONE),
    "sort": (lambda h: jnp.sort(h, axis=1), NONE),
    "gather": (lambda h: h[:, np.array([1, 0, 3, 2, 5, 4, 7, 6])], NONE),
    "gather the same": (lambda h: jnp.take(h, np.arange(8), axis=1), NONE),
    "scatter": (lambda h: h.at[:, 0].set(1.0), NONE),
    "dynamic slice": (lambda h: lax.dynamic_slice(h, (0, 2), (5, 6)), NONE),
    "dynamic slice of all": (lambda h: lax.dynamic_slice(h, (0, 3), (5, 8)), WHOLE),
    "dynamic update": (lambda h: lax.dynamic_update_slice(h, jnp.ones((5, 2)), (0, 1)), NONE),
    "strided slice": (lambda h: h[:, ::2], NONE),
    "halves exchanged": (lambda h: jnp.concatenate([h[:, 4:], h[:, :4]], axis=1), NONE),
    "halves added": (lambda h: h[:, 4:] + h[:, :4], NONE),
    "split": (lambda h: jnp.multiply(*jnp.split(h, 2, axis=1)), NONE),
    "twice": (lambda h: jnp.concatenate([h, 2 * h], axis=1), None),
    "tile": (lambda h: jnp.tile(h, (1, 2)), None),
    "repeat": (lambda h: jnp.repeat(h, 2, axis=1), None),
    "reshape in another order": (lambda h: lax.reshape(h, (8, 5), dimensions=(1, 0)).reshape(5, 8), None),
    "reshape across": (lambda h: h.reshape(10, 4)[:, ::-1].reshape(5, 8), None),
    "cumsum": (lambda h: jnp.cumsum(h, axis=1), NONE),
    "cummax": (lambda h: lax.cummax(h, axis=1), NONE),
    "differences": (lambda h: jnp.diff(h, axis=1), NONE),
    "scan": (lambda h: lax.scan(lambda c, x: (c + x, c * x), jnp.zeros(5), h.T)[1].T, NONE),
    "argmax": (lambda h: jax.nn.one_hot(jnp.argmax(h, axis=1), 8), NONE),
    "top": (lambda h: lax.top_k(h, 3)[0], NONE),
    "numbered": (lambda h: h * lax.iota(jnp.float32, 8), NONE),
    "mask": (lambda h: jnp.where(jnp.arange(8) < 4, h, 0.0), NONE),
    "matrix": (lambda h: h @ jnp.triu(jnp.ones((8, 8))), NONE),
    "fft": (lambda h: jnp.abs(jnp.fft.fft(h, axis=1)), NONE),
    # pooling
    "strided window": (lambda h: window(h, window_strides=(1, 2)), NONE),
    "padded window": (lambda h: jnp.maximum(window(h, padding=((0, 0), (1, -1))), -1), NONE),
    "dilated window": (lambda h: jnp.maximum(window(h, base_dilation=(1, 2)), -1)[:, 1:9], NONE),
    "wide window": (lambda h: window(h, window_dimensions=(1, 3), padding=((0, 0), (1, 1))), NONE),
    "window of one": (window, WHOLE),
    "window over examples": (lambda h: window(h, window_dimensions=(2, 1), padding=((1, 0), (0, 0))), WHOLE),
    # what does not scale
    "to int": (lambda h: (4 * h).astype(jnp.int32), BENT),
    "to bytes": (lambda h: (4 * h).astype(jnp.uint8), BENT),
    "to bool": (lambda h: h.astype(bool), None),
    "to bfloat16": (lambda h: h.astype(jnp.bfloat16), WHOLE),
    "to float8": (lambda h: h.astype(jnp.float8_e4m3fn).astype(jnp.float32), BENT),
    "reduced to 2 bits": (lambda h: lax.reduce_precision(h, 8, 2), BENT),
    "to int by way of bool": (lambda h: (h > 0.5).astype(jnp.int32), BENT),
    "round": (jnp.round, BENT),
    "clip": (lambda h: jnp.clip(h, 0.0, 1.0), BENT),
    "clamp": (lambda h: lax.clamp(0.0, h, 1.0), BENT),
    "clamp by arrays": (lambda h: lax.clamp(jnp.zeros((5, 8)), h, jnp.ones((5, 8))), BENT),
    "clamp between units": (lambda h: lax.clamp(jnp.zeros((5, 8)), h, jnp.broadcast_to(h[:, :1], (5, 8)) + 1), NONE),
    "zeros and one": (lambda h: jnp.maximum(h, jnp.zeros((5, 8)) + 1), BENT),
    "one over zeros": (lambda h: jnp.minimum(h, 1 / (jnp.zeros((5, 8)) * 1.0 + 1)), BENT),
    "zeros to the power of 0": (lambda h: jnp.minimum(h, lax.integer_pow(jnp.zeros((5, 8)), 0)), BENT),
    "padded zeros": (lambda h: jnp.maximum(h, lax.pad(jnp.zeros((4, 8)), 1.0, [(1, 0, 0), (0, 0, 0)])), BENT),
    "power": (lambda h: h**1.5, BENT),
    "power of 0": (lambda h: lax.integer_pow(h, 0) + h, BENT),
    "power of 2": (lambda h: h**2, WHOLE),
    "power of -1": (lambda h: (h + 1) ** -1, BENT),
    "square and root": (lambda h: jnp.sqrt(h**2 + 1), BENT),
    "power of two": (power_of_two, BENT),
    "softmax": (lambda h: jax.nn.softmax(h, axis=1), BENT),
    "norm": (lambda h: h / (1e-3 + jnp.linalg.norm(h, axis=1, keepdims=True)), BENT),
    "largest taken off": (lambda h: h - h.max(1, keepdims=True), BENT),
    "steps": (lambda h: jnp.where(h > 0, 1.0, 0.0), None),
    "steps of two kinds": (lambda h: jnp.where(h > 0.5, 2.0, 1.0), BENT),
    "choice by itself": (lambda h: jnp.where(h > 0.5, h, -h), BENT),
    "choice of three": (lambda h: lax.select_n((h > 1).astype(jnp.int32), 0 * h, h**2), None),
    "choice of zero and two": (lambda h: lax.select_n((h > 0) + 0, jnp.zeros((5, 8)), h) + 0 * h**2, None),
    "over itself": (lambda h: h / (h + 1), BENT),
    "rem": (lambda h: lax.rem(h, 1.0), BENT),
    "sign": (lambda h: jnp.sign(h - 0.5), BENT),
    "with jvp": (jax.nn.silu, BENT),
    "kept in memory": (jax.checkpoint(lambda h: jnp.tanh(h)), BENT),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_more_is_claimed_than_holds(name):
    """By the rules alone, so that there is nothing for the trial to drop: warnings are errors here (wrong before 0.2)."""
    operation, right = OPERATIONS[name]
    apply = between(operation)
    found = find_symmetry(apply, WEIGHTS, INPUTS, check=False)
    assert find_symmetry(apply, WEIGHTS, INPUTS) == found
    if right is not None:
        assert [len(family.exponents) for family in found.families] == right
    if found.families:
        rough = 0.05 if "bfloat16" in name else 1e-4
        assert change_of_outputs(jax.random.key(0), found, apply, WEIGHTS, INPUTS) < rough


class Pooled(nn.Module):
    """A convolution, something done to its images, and a dense layer over all of them."""

    operation: object
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(8, (3, 3))(x))
        h = self.operation(h) if self.groups == 1 else nn.Conv(8, (3, 3), feature_group_count=self.groups)(h)
        return nn.Dense(2)(h.reshape(len(x), -1))


CONVOLUTIONS = {
    "strided pool of width 1": (Pooled(lambda h: nn.max_pool(h, (1, 1), (2, 2))), 1),
    "mean pool of width 1": (Pooled(lambda h: nn.avg_pool(h, (1, 1), (2, 2))), 1),
    "slices": (Pooled(lambda h: lax.slice(h, (0, 0, 0, 0), h.shape, (1, 2, 2, 1))), 1),
    "strided pool with padding": (Pooled(lambda h: nn.max_pool(h, (3, 3), (2, 2), "SAME")), 1),
    "images moved": (Pooled(lambda h: lax.pad(h, 0.0, [(0, 0, 0), (1, -1, 0), (-1, 1, 0), (0, 0, 0)])), 1),
    "channels moved": (Pooled(lambda h: lax.pad(h, 0.0, [(0, 0, 0), (0, 0, 0), (0, 0, 0), (1, -1, 0)])), 0),
    "images turned": (Pooled(lambda h: jnp.rot90(h, axes=(1, 2))), None),
    "channels into space": (Pooled(lambda h: h.reshape(2, 5, 5, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5)), None),
    "channels shuffled": (Pooled(lambda h: h.reshape(2, 5, 5, 2, 4).swapaxes(3, 4).reshape(h.shape)), None),
    "pool over channels": (Pooled(lambda h: nn.max_pool(h.transpose(0, 3, 1, 2), (2, 1), (2, 1))), None),
    "strided convolution": (Pooled(nn.Conv(8, (1, 1), (2, 2), use_bias=False)), None),
    "groups": (Pooled(None, groups=2), None),
    "depthwise": (Pooled(None, groups=8), 1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_of_images(name, key):
    """Strided windows of width 1 leave out entries, padding moves them (wrong before 0.2)."""
    network, right = CONVOLUTIONS[name]
    weights = jax.jit(network.init)(key, IMAGES)
    weights = jittered(weights, 0.3)
    found = find_symmetry(network.apply, weights, IMAGES, check=False)
    assert find_symmetry(network.apply, weights, IMAGES) == found
    assert right is None or len(found.families) == right
    if found.families:
        assert change_of_outputs(key, found, jax.jit(network.apply), weights, IMAGES) < 1e-4


def test_groups_of_a_batch():
    """A convolution whose batch is cut into groups (wrong before 0.2)."""
    weights = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3, 3)), jnp.float32)}
    dimensions = lax.conv_dimension_numbers((6, 3, 5, 5), (4, 3, 3, 3), ("NCHW", "OIHW", "NCHW"))

    def apply(w, x):
        images = jnp.einsum("xchw,cb->bchw", w["a"][:, :3].transpose(2, 1, 0, 3), jnp.eye(3)[:, :2])
        images = jnp.resize(images, (2, 3, 5, 5)) * x
        return lax.conv_general_dilated(
            images, w["a"][:, 3:], (1, 1), "VALID", dimension_numbers=dimensions, batch_group_count=2
        )

    found = find_symmetry(apply, weights, jnp.ones((2, 1, 1, 1)), check=False)
    assert (
        not found.families or change_of_outputs(jax.random.key(0), found, apply, weights, jnp.ones((2, 1, 1, 1))) < 1e-4
    )


# --- the trial --------------------------------------------------------------------------------------------------------


def test_what_a_rule_claims_wrongly_is_dropped_with_a_warning(monkeypatch):
    """By family, with the names of the tensors; the others stay (wrong before 0.2)."""
    monkeypatch.setitem(axis_rules.RULES, "rev", axis_rules.RULES["neg"])
    weights = WEIGHTS | {"c": jax.random.normal(jax.random.key(5), (2, 6)), "d": jnp.ones((6, 2))}
    apply = lambda w, x: nn.relu((nn.relu(x @ w["a"])[:, ::-1] @ w["b"]) @ w["c"]) @ w["d"]
    assert sorted(family.size for family in find_symmetry(apply, weights, INPUTS, check=False).families) == [2, 6, 8]
    with pytest.warns(
        UserWarning, match="find_symmetry: the exchange of 8 units of a, b dropped: it changes outputs by"
    ):
        found = find_symmetry(apply, weights, INPUTS)
    assert sorted(family.size for family in found.families) == [2, 6]


def test_a_rescaling_that_fails_is_dropped_alone(monkeypatch):
    """The units may still change places (wrong before 0.2)."""
    monkeypatch.setitem(axis_rules.RULES, "tanh", axis_rules.RULES["neg"])
    apply = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]
    with pytest.warns(UserWarning, match="find_symmetry: a rescaling of 8 units of a, b dropped"):
        [family] = find_symmetry(apply, WEIGHTS, INPUTS).families
    assert (family.size, family.exponents) == (8, ())


def test_a_wrong_relabeling_is_refused(monkeypatch):
    monkeypatch.setitem(axis_rules.RULES, "rev", axis_rules.RULES["neg"])
    apply = lambda w, x: (x @ w["a"])[:, ::-1]
    assert find_relabeling(apply, WEIGHTS, INPUTS, check=False).families[0].size == 8
    with pytest.raises(ValueError, match="apply: expected outputs that are units of the network's last layer"):
        find_relabeling(apply, WEIGHTS, INPUTS)


def test_a_trial_under_debug_nans():
    """From shapes a variance is negative at first, which is no mistake of the user."""
    jax.config.update("jax_debug_nans", True)
    try:
        shapes = jax.eval_shape(lambda: WEIGHTS | {"var": jnp.ones(8)})
        [family] = find_symmetry(
            lambda w, x: nn.relu(x @ w["a"] / jnp.sqrt(w["var"])) @ w["b"], shapes, INPUTS
        ).families
    finally:
        jax.config.update("jax_debug_nans", False)
    assert len(family.exponents) == 2


def test_of_what_is_never_finite_nothing_is_claimed():
    with pytest.warns(UserWarning, match="outputs at random weights are not finite, so that it cannot be tried"):
        assert not find_symmetry(lambda w, x: jnp.nan * nn.relu(x @ w["a"]) @ w["b"], WEIGHTS, INPUTS).families


@pytest.mark.parametrize("given", ["arrays", "zeros", "shapes", "numpy", "under jit"])
def test_a_trial_needs_no_values(given, key):
    """Statistics of a norm, embeddings of tokens, keys of dropout: the same is found from shapes."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens, scale, rng):
            h = nn.Embed(5, 4)(tokens) * jnp.log(scale)[:, None, None]
            h = nn.Dense(6)(nn.Dropout(0.2, deterministic=False)(h, rng=rng))
            return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=True)(h)).mean(1))

    tokens, scale = jnp.array([[0, 1, 2], [4, 3, 3]]), jnp.array([2.0, 3.0])
    weights = jax.jit(Network().init)(key, tokens, scale, key)
    if given == "zeros":
        weights = jax.tree.map(jnp.zeros_like, weights)
    if given == "numpy":
        weights, tokens, scale = jax.tree.map(np.asarray, (weights, tokens, scale))
    if given == "shapes":
        weights, tokens, scale, key = jax.eval_shape(lambda *args: args, weights, tokens, scale, key)
    found = []
    find = lambda *args: found.append(find_symmetry(Network().apply, *args))
    jax.eval_shape(find, weights, tokens, scale, key) if given == "under jit" else find(weights, tokens, scale, key)
    assert [(family.size, len(family.exponents)) for family in found[0].families] == [(6, 2)]
