"""Convolutions brought into another order: the same numbers wherever they stand, and where it pays no others are left."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gfm_jax as gfm
from gfm_jax import fit_program
from gfm_jax.base import Learner
from gfm_jax.convolutions import fast_in_loops

FORMS = {
    "same": {"padding": "SAME"},
    "strided": {"padding": "VALID", "window_strides": (2, 1)},
    "cropped": {"padding": [(2, -1), (0, 3)]},
    "dilated": {"rhs_dilation": (2, 1)},
    "transposed": {"lhs_dilation": (2, 3), "padding": [(1, 1), (0, 2)]},
    "in two groups": {"feature_group_count": 2},
    "by channel": {"feature_group_count": 6},
}
ORDERS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NCHW")]


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), found, expected)


PAIRS = [*((form, ORDERS[0]) for form in FORMS), ("dilated", ORDERS[1]), ("in two groups", ORDERS[2])]


@pytest.mark.parametrize(("form", "order"), PAIRS, ids=str)
def test_values_and_gradients(form, order):
    """Of one kernel, and of three at once."""
    given = {"window_strides": (1, 1), "padding": "SAME", **FORMS[form]}
    inputs = 6 // given.get("feature_group_count", 1)
    convolve = lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=order, **given)
    x, w = draw(
        (3, 9, 8, 6) if order[0] == "NHWC" else (3, 6, 9, 8),
        (3, 2, inputs, 12) if order[1] == "HWIO" else (12, inputs, 3, 2),
    )

    def all_of(x, w):
        y, back = jax.vjp(convolve, x, w)
        return y, back(jnp.cos(y))

    close(fast_in_loops(all_of)(x, w), jax.jit(all_of)(x, w))
    many = [jnp.stack([leaf, 2 * leaf, leaf + 1]) / 2 for leaf in (x, w)]
    close(fast_in_loops(jax.vmap(all_of))(*many), jax.jit(jax.vmap(all_of))(*many))


IN_ORDER = {(lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)), 1)}  # of one group each


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def of_network():
    net, (x,) = Small(), draw((6, 8, 8, 2))
    return net, x, lambda w: (net.apply(w, x) ** 2).mean()


def orders_of(jaxpr):
    """Of every convolution, inside and outside loops: its dimension numbers, and how many groups it has."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn.params["dimension_numbers"], eqn.params["feature_group_count"] * eqn.params["batch_group_count"]
        for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
                yield from orders_of(getattr(leaf, "jaxpr", leaf))


@pytest.mark.parametrize("wrapped", ["loop", "condition", "checkpoint", "scan of scans"])
def test_inside_what_holds_a_program(wrapped):
    net, x, loss = of_network()
    weights = net.init(jax.random.key(0), x)
    step = lambda w: jax.tree.map(lambda a, g: a - 0.1 * g, w, jax.grad(loss)(w))
    once = lambda w, _: (step(w), loss(w))
    programs = {
        "loop": lambda w: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, step(c[1])), (0, w)),
        "condition": lambda w: lax.cond(w["params"]["Dense_0"]["bias"][0] < 1, step, lambda w: w, w),
        "checkpoint": lambda w: jax.grad(jax.checkpoint(loss))(w),
        "scan of scans": lambda w: lax.scan(lambda w, _: lax.scan(once, w, length=2), w, length=2),
    }
    program = programs[wrapped]
    close(jax.jit(fast_in_loops(program))(weights), jax.jit(program)(weights))
    found = set(orders_of(jax.make_jaxpr(fast_in_loops(program))(weights).jaxpr))
    assert found == IN_ORDER
    assert found != set(orders_of(jax.make_jaxpr(program)(weights).jaxpr))  # there is something to do


def test_without_a_convolution_nothing_is_changed():
    step = lambda x: jnp.tanh(x) + 1
    assert fast_in_loops(step)(jnp.ones(3)).shape == (3,)
    assert "tanh" in str(jax.make_jaxpr(fast_in_loops(step))(jnp.ones(3)))


def test_it_has_derivatives():
    net, x, loss = of_network()
    weights = net.init(jax.random.key(0), x)
    close(jax.grad(fast_in_loops(loss))(weights), jax.grad(loss)(weights))
    turn = lambda f: jax.jvp(f, (weights,), (jax.tree.map(jnp.ones_like, weights),))[1]
    close(turn(fast_in_loops(jax.grad(loss))), turn(jax.grad(loss)))


def test_a_fit_and_recordings_hold_convolutions_in_order_alone():
    """And give the numbers of a plain loop."""
    net, x, loss = of_network()
    init = lambda key: net.init(key, jnp.zeros((1, 8, 8, 2)))
    weights, optimizer = init(jax.random.key(0)), optax.sgd(0.1)
    learner = Learner(lambda key, data: weights, lambda key, data: data, lambda w, key, batch: (loss(w), {}))
    _, info = gfm.fit(jax.random.key(1), learner, x, optimizer=optimizer, num_steps=3)
    expected = weights
    for _ in range(3):
        expected = jax.tree.map(lambda a, g: a - 0.1 * g, expected, jax.jit(jax.grad(loss))(expected))
    close(info.last, expected)

    data = {"train": (np.asarray(x), np.arange(6) % 3)}
    task = gfm.classification(gfm.Network(init, net.apply), data, num_classes=3, batch_size=4)
    record = lambda keys: gfm.record(keys, task, optax.sgd, np.full(4, 0.1), (0, 4), keep=("weights",))
    keys = jax.random.split(jax.random.key(2), 3)
    runs = record(keys)
    one = jax.jit(lambda key: gfm.record(key, task, optax.sgd, np.full(4, 0.1), (0, 4), keep=("weights",)))
    close(runs.weights[1], one(keys[1]).weights)
    assert set(orders_of(jax.make_jaxpr(record)(keys).jaxpr)) == IN_ORDER

    program = fit_program.Program(optimizer, learner, optimizer, 0.9, 2, None)
    steps = lambda state: fit_program.take_steps(program, keys[0], state, x, 0, 2)
    start = fit_program.start_state(optimizer, *fit_program.split_frozen(learner, weights))
    assert set(orders_of(jax.make_jaxpr(steps)(start).jaxpr)) == IN_ORDER
