"""Programs that are compiled with little optimisation, at the top level and inside other transformations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import small_task

from gfm_jax.compiling import inside_a_trace, quick_jit
from gfm_jax.networks import MLP, init_network
from gfm_jax.runs import record

square = quick_jit(lambda x, power: x**power, static_argnums=1)


def test_it_gives_the_same_numbers_at_the_top_and_inside_every_transformation():
    """(wrong before 0.2)"""
    x = jnp.array([1.0, -2.0, 3.0])
    f = lambda x: square(x, 2)
    outside = {
        "top": f(x),
        "jit": jax.jit(f)(x),
        "jit of a constant": jax.jit(lambda: f(x))(),
        "vmap": jax.vmap(f)(x),
        "vmap of a constant": jax.vmap(lambda _: f(x))(x)[0],
        "jit of vmap": jax.jit(jax.vmap(f))(x),
        "scan": jax.lax.scan(lambda carry, x: (carry, f(x)), 0, x)[1],
        "checkpoint": jax.checkpoint(f)(x),
    }
    for name, found in outside.items():
        np.testing.assert_array_equal(found, [1, 4, 9], err_msg=name)
    np.testing.assert_array_equal(jax.grad(lambda x: f(x).sum())(x), [2, -4, 6])
    np.testing.assert_array_equal(jax.jacfwd(f)(x), np.diag([2, -4, 6]))
    assert jax.eval_shape(f, x).shape == (3,)


def test_a_second_call_compiles_nothing_more():
    f = quick_jit(lambda x: x + 1)
    f(jnp.ones(3)), f(jnp.zeros(3))
    assert f._cache_size() == 1
    jax.jit(f)(jnp.ones(3))
    assert f._cache_size() == 1  # inside it is part of the outer program


def test_it_knows_where_it_is():
    seen = {"top": inside_a_trace(1.0), "value": inside_a_trace({"a": jnp.ones(2)})}
    jax.jit(lambda: seen.update(jit=inside_a_trace(1.0)))()
    jax.vmap(lambda x: seen.update(vmap=inside_a_trace([x])))(jnp.ones(2))
    assert seen == {"top": False, "value": False, "jit": True, "vmap": True}


def test_bad_level():
    with pytest.raises(ValueError, match="level: expected an optimization level 0, 1, 2 or 3, got 5"):
        quick_jit(abs, level=5)


def test_networks_start_inside_jit_and_vmap():
    """(wrong before 0.2)"""
    network, inputs = MLP((4, 3)), jnp.zeros((1, 5))
    keys = jax.random.split(jax.random.key(0), 3)
    start = lambda key: init_network(network, key, inputs)
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(start, keys))
    for many in (jax.vmap(start), jax.jit(jax.vmap(start)), lambda keys: jax.lax.map(start, keys)):
        chex.assert_trees_all_close(many(keys), alone, rtol=1e-6)


def test_recordings_inside_jit():
    """(wrong before 0.2)"""
    keys, rates = jax.random.split(jax.random.key(0), 2), np.linspace(0.1, 0, 6, dtype=np.float32)
    task = small_task()
    call = lambda keys, rates: record(keys, task, optax.adam, rates, (0, 3, 6))
    chex.assert_trees_all_close(jax.jit(call)(keys, rates), call(keys, rates), rtol=2e-5, atol=2e-6)
