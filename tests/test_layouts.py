"""Layouts: names of tensors, order of layers, output axes, and what is no parameter."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

from gfm_jax.base import Layout
from gfm_jax.layers import layer_of, natural_order, output_axis
from gfm_jax.pytrees import (
    check_parameters,
    depths,
    layout_from_dict,
    layout_of,
    layout_to_dict,
    output_axes,
    ravel,
    unravel,
)
from gfm_jax.weights import from_tokens, low_rank, to_tokens, tokens_of


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def flat_names(tree, **options):
    return layout_of(tree, **options).names


def test_a_batch_of_vectors_is_a_tree_led_by_runs():
    like = {"kernel": zeros(2, 3), "bias": zeros(3, dtype=jnp.bfloat16)}
    vectors = np.arange(18.0, dtype=np.float32).reshape(2, 9)
    batch = unravel(like, vectors)
    for i in range(2):
        jax.tree.map(
            np.testing.assert_array_equal, unravel(like, vectors[i]), jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        )
    assert (batch["kernel"].shape, batch["bias"].dtype) == ((2, 2, 3), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"vector: expected shape \(9,\) to fill the weights, got \(9, 2\)"):
        unravel(like, vectors.T)


# --- names ------------------------------------------------------------------------------------------------------------


class Module(nnx.Module):
    """Two layers in a list, a norm with statistics, and a layer that draws random numbers."""

    def __init__(self, rngs):
        self.layers = getattr(nnx, "List", list)([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.drop(self.bn(self.layers[0](x))))


@pytest.fixture(scope="module")
def module():
    return Module(nnx.Rngs(0))


def test_one_network_has_one_layout_in_every_container(module):
    """As an NNX state, a pure dict, what msgpack and orbax restore, and a dict of flat names (wrong before 0.2)."""
    state = nnx.state(module, nnx.Param)
    pure = nnx.to_pure_dict(state)
    expected = tuple(f"{layer}/{name}" for layer, name in [
        ("bn", "bias"), ("bn", "scale"), *((f"layers/{k}", name) for k in "01" for name in ("bias", "kernel"))
    ])  # fmt: skip
    held = lambda tree: {k: held(v) if isinstance(v, dict) else {"value": v} for k, v in tree.items()}
    restored = serialization.msgpack_restore(serialization.to_bytes(pure))
    for tree in (state, pure, restored, held(restored), {"params": restored}):
        assert layout_of(tree) == layout_of(pure)
        assert flat_names(tree) == expected
    for prefix, separator in (("", "/"), ("params/", "/"), ("params.", ".")):
        flat = {
            prefix + name.replace("/", separator): leaf
            for name, leaf in zip(expected, jax.tree.leaves(pure), strict=True)
        }
        assert [name.replace(".", "/") for name in flat_names(flat)] == list(expected)
        assert depths(layout_of(flat)) == depths(layout_of(pure))
        assert output_axes(layout_of(flat)) == output_axes(layout_of(pure))


def test_a_tensor_may_be_called_value():
    """The field in which NNX holds an array is left out of names, a tensor of that name is not."""
    assert flat_names({"query": zeros(2), "value": zeros(2)}) == ("query", "value")
    assert flat_names({"a": {"key": zeros(2), "value": zeros(2)}}) == ("a/key", "a/value")


# --- order of layers --------------------------------------------------------------------------------------------------

IN_ORDER = {
    "numbers": "Dense_0 Dense_1 Dense_2 Dense_9 Dense_10 Dense_11",
    "blocks": "Embed_0/x Block_0/Dense_0 Block_2/Dense_0 Block_10/Dense_0 LayerNorm_0 Dense_0",
    "norms": "Conv_0 BatchNorm_0 Conv_1 BatchNorm_1 Conv_2 Dense_0 Dense_1",
    "norms of dense layers": "Dense_0 LayerNorm_0 Dense_1 LayerNorm_1 Dense_2",
    "torch": "conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.1.conv1 layer10.0.conv1 fc",
    "torch sequential": "0 2 4 10",
    "equinox": "layers/0 layers/1 layers/10",
    "haiku": "mlp/~/linear_0 mlp/~/linear_1 mlp/~/linear_10",
    "keras": "conv2d batch_normalization conv2d_1 batch_normalization_1 dense dense_1",
    "coder": "encoder.0 encoder.1 decoder.0 decoder.1",
    "own": "hidden_0 hidden_1 output",
    "own cnn": "conv_0 conv_1 output",
    "transformer": "wte h.0.attn.c_attn h.0.mlp.c_fc h.2.attn.c_attn h.10.attn.c_attn ln_f lm_head",
    "numbers alone": "1 2 10",
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_layers_are_in_natural_order(name):
    """Whatever the order in which they come (wrong before 0.2)."""
    expected = IN_ORDER[name].split()
    slashed = [layer.replace(".", "/") for layer in expected]
    for given in (expected, expected[::-1], sorted(expected)):
        assert natural_order(given) == slashed
    layout = layout_of({f"{layer}/{leaf}": zeros(2) for layer in expected for leaf in ("bias", "kernel")})
    number = [slashed.index(layer_of(name)) for name in layout.names]
    assert depths(layout) == tuple(k / (len(expected) - 1) for k in number)


def test_layers_of_names_without_a_path():
    assert [layer_of(name) for name in ("w1", "b1", "w10", "b_10", "w", "bias", "stem")] == [
        "1",
        "1",
        "10",
        "10",
        "",
        "",
        "stem",
    ]
    layout = layout_of({"w1": zeros(2, 3), "b1": zeros(3), "w2": zeros(3, 1), "b2": zeros(1), "w10": zeros(1, 1)})
    assert dict(zip(layout.names, depths(layout), strict=True)) == {"b1": 0, "w1": 0, "b2": 0.5, "w2": 0.5, "w10": 1}
    assert depths(layout_of({"w": zeros(2), "b": zeros(2)})) == (0, 0)


def test_torch_names_have_depths():
    """All were 0, since they have no "/" (wrong before 0.2)."""
    layout = layout_of({f"{k}.{leaf}": zeros(2) for k in (0, 2, 10) for leaf in ("weight", "bias")})
    assert dict(zip(layout.names, depths(layout), strict=True)) == {
        f"{k}.{leaf}": depth for k, depth in ((0, 0), (2, 0.5), (10, 1)) for leaf in ("weight", "bias")
    }


def test_the_order_of_use_is_read_from_the_network():
    """The names tell nothing here; casts of all weights, loops and inner functions do not hide the use (wrong before 0.2)."""
    weights = {name: {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)} for name in "abcde"}
    order = "dbeca"

    def layer(w, x):
        return jnp.tanh(x @ w["kernel"] + w["bias"])

    def plain(w, x):
        for name in order:
            x = layer(w[name], x)
        return x

    def involved(w, x):
        w = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), w)  # all of them, in alphabetical order
        w["a"]["kernel"] = w["a"]["kernel"] / jnp.linalg.norm(w["a"]["kernel"])
        x = jax.jit(layer)(w["d"], x.astype(jnp.bfloat16))
        x = jax.lax.scan(lambda x, _: (layer(w["b"], x), None), x, None, length=2)[0]
        x = jax.checkpoint(layer)(w["e"], x)
        x = jax.lax.cond(x.sum() > 0, lambda x: layer(w["c"], x), lambda x: x, x)
        return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, layer(w["a"], c[1])), (0, x))[1]

    for network in (plain, involved):
        layout = layout_of(weights, network, jax.ShapeDtypeStruct((2, 3), jnp.float32))
        assert dict(zip(layout.names, depths(layout), strict=True)) == {
            f"{name}/{leaf}": order.index(name) / 4 for name in order for leaf in ("bias", "kernel")
        }
        assert (layout.names, layout.shapes) == (layout_of(weights).names, layout_of(weights).shapes)
    inputs = jnp.ones((2, 3))
    assert layout_of(weights, lambda w: involved(w, inputs)).layers == layout_of(weights, plain, inputs).layers


def test_the_order_of_use_of_a_flax_network():
    """A head whose name comes first in the alphabet is the last layer, and an unused tensor lies behind it."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True, name="z")(nn.Dense(4, name="m")(x))
            self.param("spare", nn.initializers.ones, (2,))
            return nn.Dense(2, name="a")(x)

    variables = jax.eval_shape(Network().init, jax.random.key(0), jnp.ones((1, 3)))
    rest = {"batch_stats": jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["batch_stats"])}
    apply = lambda params, x: Network().apply({"params": params} | rest, x)
    layout = layout_of(variables["params"], apply, jnp.ones((1, 3)))
    found = dict(zip(map(layer_of, layout.names), depths(layout), strict=True))
    assert found == {"m": 0, "z": 1 / 3, "a": 2 / 3, "spare": 1}


# --- output axes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "convention", "axis"),
    [
        ("Dense_0/kernel", (3, 4), None, -1),
        ("linear/w", (3, 4), None, -1),
        ("Conv_0/kernel", (5, 5, 1, 8), None, -1),
        ("conv1.weight", (8, 1, 5, 5), None, 0),
        ("layers/0/weight", (4, 3), None, 0),
        ("attn.in_proj_weight", (12, 4), None, 0),
        ("layers/0/weight", (4, 3), "flax", -1),
        ("a/kernel", (4, 3), "torch", 0),
        ("embed_tokens.weight", (100, 8), None, -1),
        ("embed_tokens.weight", (100, 8), "torch", -1),
        ("Embed_0/embedding", (100, 8), None, -1),
        ("bn.weight", (8,), None, -1),
        ("a/bias", (8,), "torch", -1),
        ("scale", (), "torch", -1),
    ],
)
def test_output_axes(name, shape, convention, axis):
    assert output_axis(name, shape, convention) == axis
    assert output_axes(Layout((name,), (shape,), convention)) == (axis,)


def test_a_bias_tells_the_output_axis():
    """Where no convention was given: a bias has as many entries as its layer has outputs."""
    axes = lambda kernel, bias: output_axes(layout_of({"a": {"weight": zeros(*kernel), "bias": zeros(bias)}}))[1]
    assert [axes((4, 3), 4), axes((4, 3), 3), axes((3, 3), 3), axes((8, 2, 3, 3), 8)] == [0, -1, 0, 0]
    assert output_axes(layout_of({"w": zeros(4, 3), "b": zeros(4)})) == (-1, 0)
    assert output_axes(layout_of({"w": zeros(4, 3), "b": zeros(4)}, convention="flax")) == (-1, -1)


def torch_and_flax():
    """One network in both conventions: the tensors of flax, transposed for torch."""
    rng = np.random.default_rng(0)
    conv, dense = rng.normal(size=(3, 3, 2, 5)), rng.normal(size=(20, 6))
    biases = rng.normal(size=5), rng.normal(size=6)
    flax = {"0": {"bias": biases[0], "kernel": conv}, "1": {"bias": biases[1], "kernel": dense}}
    torch = {"0.bias": biases[0], "0.weight": conv.transpose(3, 2, 0, 1), "1.bias": biases[1], "1.weight": dense.T}
    return jax.tree.map(jnp.asarray, flax), jax.tree.map(jnp.asarray, torch)


def test_tokens_are_units_in_both_conventions():
    """A token holds a unit's bias and its incoming weights, which torch keeps in rows (wrong before 0.2)."""
    flax, torch = torch_and_flax()
    found = []
    for tree in (flax, torch):
        tokens = tokens_of(layout_of(tree))
        vectors = to_tokens(tokens, ravel(tree))
        np.testing.assert_array_equal(from_tokens(tokens, vectors), ravel(tree))
        assert tokens.layer.tolist() == [0] * 5 + [1] * 6
        found.append(np.asarray(vectors))
    np.testing.assert_allclose(found[0][:, 0], found[1][:, 0])
    np.testing.assert_allclose(np.sort(found[0], axis=1), np.sort(found[1], axis=1))
    np.testing.assert_allclose(found[0][5:], found[1][5:])  # dense layers: the very same tokens


def test_low_rank_codes_are_those_of_units_in_both_conventions():
    """The kernel of a convolution is the matrix [incoming, units] wherever its units lie (wrong before 0.2)."""
    flax, torch = torch_and_flax()
    of_rank_one = lambda rows, columns: np.outer(np.arange(1.0, rows + 1), np.arange(2.0, columns + 2))
    flax["0"]["kernel"] = jnp.asarray(of_rank_one(18, 5).reshape(3, 3, 2, 5), jnp.float32)
    torch["0.weight"] = jnp.transpose(flax["0"]["kernel"], (3, 2, 0, 1))
    codes = []
    for tree in (flax, torch):
        layout = layout_of(tree)
        codec = low_rank(layout, jnp.zeros(layout.dim), 1)
        code = codec.encode((), ravel(tree))
        back = unravel(tree, codec.decode((), code))
        kernels = (back["0"]["kernel"], flax["0"]["kernel"]) if tree is flax else (back["0.weight"], torch["0.weight"])
        np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-3)
        codes.append(np.asarray(code))
    # the biases, then the code of the convolution's kernel: 18 incoming and 5 units; the dense layer's is the same, too
    np.testing.assert_allclose(
        np.delete(codes[0], slice(5, 23)), np.delete(codes[1], slice(5, 23)), rtol=1e-3, atol=1e-3
    )


# --- layouts as they are kept -----------------------------------------------------------------------------------------


def test_layouts_are_serialized():
    """By flax, alone and inside parameters, and as JSON (wrong before 0.2)."""
    plain = Layout(("a/kernel", "b"), ((2, 3), ()))
    full = Layout(("a/kernel", "b"), ((2, 3), ()), "torch", (1, 0))
    for layout in (plain, full):
        assert serialization.from_bytes(layout, serialization.to_bytes(layout)) == layout
        params = {"layouts": (layout,), "w": jnp.arange(3.0)}
        again = serialization.from_bytes({"layouts": (plain,), "w": jnp.zeros(3)}, serialization.to_bytes(params))
        assert again["layouts"] == (layout,)
        np.testing.assert_array_equal(again["w"], params["w"])
        assert layout_from_dict(json.loads(json.dumps(layout_to_dict(layout)))) == layout
        assert jax.jit(lambda layout: layout)(layout) == layout  # a static node
        assert hash(layout) == hash(Layout(*(getattr(layout, f) for f in ("names", "shapes", "convention", "layers"))))
    assert layout_from_dict({"names": ["w"], "shapes": [[2]]}) == Layout(("w",), ((2,),))
    assert plain != full


@pytest.mark.usefixtures("unchecked")
def test_bad_layouts():
    with pytest.raises(ValueError, match='convention: expected "flax", "torch" or None, got \'pytorch\''):
        layout_of({"w": zeros(2)}, convention="pytorch")
    with pytest.raises(ValueError, match='convention: expected "flax", "torch" or None'):
        output_axes(Layout(("w",), ((2, 2),), "keras"))
    with pytest.raises(ValueError, match="apply: expected a network beside the inputs, got None"):
        layout_of({"w": zeros(2)}, None, zeros(2))


# --- parameters and other state ---------------------------------------------------------------------------------------


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)))


VARIABLES = jax.eval_shape(Normed().init, jax.random.key(0), jnp.ones((1, 3)))
NORM = {"scale": zeros(3), "bias": zeros(3)}
REFUSED = {
    "batch_stats": (VARIABLES, "parameters alone, got the collections batch_stats; take variables"),
    "batch_stats of one of two": ({"a": VARIABLES, "b": VARIABLES["params"]}, "got the collections batch_stats"),
    "batch_stats alone": ({"batch_stats": VARIABLES["batch_stats"]}, "got the collections batch_stats"),
    "cache": ({"params": {"w": zeros(2)}, "cache": {"k": zeros(2)}}, "got the collections cache"),
    "unknown collection": ({"params": {"w": zeros(2)}, "ema": {"w": zeros(2)}}, "got the collections ema"),
    "flat collections": ({"params/w": zeros(2), "batch_stats/bn/mean": zeros(2)}, "got the collections batch_stats"),
    "statistics in a dict": (
        {"bn": {**NORM, "mean": zeros(3), "var": zeros(3)}},
        "statistic or a constant: bn/mean, bn/var",
    ),
    "statistics alone": ({"BatchNorm_0": {"mean": zeros(3), "var": zeros(3)}}, "constant: BatchNorm_0/mean"),
    "statistics of torch": ({"bn1.weight": zeros(3), "bn1.running_var": zeros(3)}, "constant: bn1.running_var"),
    "counter of torch": ({"bn1.num_batches_tracked": zeros(dtype=np.int64)}, "constant: bn1.num_batches_tracked"),
    "statistics of keras": ({"bn/gamma": zeros(3), "bn/moving_mean": zeros(3)}, "constant: bn/moving_mean"),
    "statistics of haiku": ({"bn/~/mean_ema": {"average": zeros(3)}}, "constant: bn/~/mean_ema/average"),
    "spectral norm of torch": ({"a.weight_orig": zeros(3, 3), "a.weight_u": zeros(3)}, "constant: a.weight_u"),
    "integers": ({"w": zeros(3), "n": {"count": zeros(dtype=np.int32)}}, "floating-point arrays, got int32 at n/count"),
    "bytes": ({"w": zeros(3, dtype=np.uint8)}, "got uint8 at w"),
    "masks": ({"w": zeros(3), "mask": zeros(3, dtype=bool)}, "got bool at mask"),
    "keys": ({"w": zeros(3), "key": jax.random.key(0)}, r"got key<\w+> at key; .* not to be trained"),
    "complex": ({"w": zeros(3, dtype=np.complex64)}, "got complex64 at w; write a complex weight as two real arrays"),
    "a function": ({"w": zeros(3), "activation": math.sin}, "got a builtin_function_or_method at activation"),
    "a text": ({"w": "relu"}, "got a str at w"),
    "a number that counts": ({"w": 3}, r"got int\d\d at w"),
    "an integer array": (zeros(3, dtype=np.int32), "got int32 at the root"),
    "nothing": ({"a": None}, "weights: expected a pytree with at least one array, got one without leaves"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_parameter_is_refused(name):
    """By name and with the way out, as arrays and as shapes, also under jit (wrong before 0.2)."""
    weights, message = REFUSED[name]
    for check in (check_parameters, layout_of):
        with pytest.raises(ValueError, match=message):
            check(weights)
    if all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(weights)) and jax.tree.leaves(weights):
        held = lambda leaf: jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)  # int64 is int32
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, held(leaf)), weights)
        message = message.replace("int64", "int32")
        with pytest.raises(ValueError, match=message):
            check_parameters(shapes)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda w: check_parameters(w) and w, shapes)
    with pytest.raises(ValueError, match="draft: expected"):
        check_parameters(weights, "draft")


def test_states_of_nnx_are_refused(module):
    """Statistics, keys and counters, by type (wrong before 0.2)."""
    for state in (nnx.state(module), nnx.split(module)[1], nnx.state(module, (nnx.Param, nnx.BatchStat))):
        with pytest.raises(
            ValueError, match=r"variables of type nnx.Param, got BatchStat at bn/mean, BatchStat at bn/var"
        ):
            layout_of(state)
    with pytest.raises(ValueError, match=r"RngCount at drop/rngs/count, RngKey at drop/rngs/key; take nnx.state"):
        layout_of(nnx.state(module, nnx.RngState))
    lora = {"a": nnx.LoRAParam(jnp.ones(2)), "b": nnx.Param(jnp.ones(2))}
    assert flat_names(lora) == ("a", "b")


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (VARIABLES["params"], tuple(f"{a}/{b}" for a, b in [("BatchNorm_0", "bias"), ("BatchNorm_0", "scale")] + [
            (f"Dense_{k}", name) for k in (0, 1) for name in ("bias", "kernel")])),
        ({"params": {"w": zeros(2)}, "temperature": zeros()}, ("w", "temperature")),
        ({"a": None, "e": zeros(0, 3), "w": zeros(2)}, ("e", "w")),
        ({"w": 1.5, "v": np.float32(2)}, ("v", "w")),
        ({"w": jnp.zeros(2, jnp.bfloat16), "v": np.zeros(2)}, ("v", "w")),
        ({"mean": zeros(3), "var": zeros(3)}, ("mean", "var")),  # of a Gaussian
        ({"mean": {"kernel": zeros(3)}, "var": {"kernel": zeros(3)}, "bias": zeros(3)}, ("bias", "mean/kernel", "var/kernel")),
        ({"cache": {"w": zeros(2)}, "body": {"w": zeros(2)}}, ("body/w", "cache/w")),
        (zeros(3), ("",)),
    ],
)  # fmt: skip
def test_parameters_pass(weights, names):
    assert check_parameters(weights) == names == layout_of(weights).names
