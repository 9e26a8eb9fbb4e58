"""Every integrator is an optax transformation like any other: the contract that optax's own optimizers keep."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax import optimizers

RECIPES = {  # name: (factory, arguments, those that no array can stand for)
    "adams_bashforth": (optimizers.adams_bashforth, {"learning_rate": 4e-4}, ("order",)),
    "adams_bashforth_3": (optimizers.adams_bashforth, {"learning_rate": 4e-4, "order": 3}, ("order",)),
    "taylor4": (optimizers.taylor_sgd, {"learning_rate": 4e-4, "kind": "taylor4"}, ()),
    "taylor4_opt": (optimizers.taylor_sgd, {"learning_rate": 4e-4}, ()),
    "taylor5_opt": (optimizers.taylor_sgd, {"learning_rate": 1e-3, "kind": "taylor5_opt"}, ()),
    "extrapolated_bdf2": (optimizers.extrapolated_bdf2, {"learning_rate": 1e-3}, ()),
    "heun": (optimizers.heun, {"learning_rate": 1e-3}, ()),
    "midpoint": (optimizers.midpoint, {"learning_rate": 1e-3}, ()),
    "ralston": (optimizers.ralston, {"learning_rate": 1e-3}, ()),
    "rk4": (optimizers.rk4, {"learning_rate": 1e-3}, ()),
    "bosh3": (optimizers.explicit_runge_kutta, {"learning_rate": 1e-3, "tableau": diffrax.Bosh3.tableau}, ()),
    "tsit5": (optimizers.explicit_runge_kutta, {"learning_rate": 1e-3, "tableau": diffrax.Tsit5.tableau}, ()),
    "dopri5": (optimizers.explicit_runge_kutta, {"learning_rate": 1e-3, "tableau": diffrax.Dopri5.tableau}, ()),
    "chebyshev": (optimizers.chebyshev, {"learning_rate": 2e-3}, ("num_stages", "damping")),
    "leapfrog": (optimizers.leapfrog, {"learning_rate": 0.03, "friction": 0.5}, ()),
    "symplectic_euler": (optimizers.symplectic_euler, {"learning_rate": 0.03, "friction": 0.5}, ()),
}
OTHERS = {
    "embedded": lambda: optimizers.embedded_runge_kutta(1e-3),
    "embedded_bosh3": lambda: optimizers.embedded_runge_kutta(1e-3, tableau=diffrax.Bosh3.tableau),
    "joint_adam": lambda: optimizers.joint_runge_kutta(optax.adam(1e-2)),
    "joint_momentum": lambda: optimizers.joint_runge_kutta(optax.sgd(1e-4, momentum=0.9)),
}


def build(name):
    if name in OTHERS:
        return OTHERS[name]()
    factory, arguments, _ = RECIPES[name]
    return factory(**arguments)


def parabola(x):
    return jnp.sum(x**2)


def with_stages(optimizer, objective):
    """The optimizer's update, told how to ask for more gradients, which those with one stage do not do."""
    update = optax.with_extra_args_support(optimizer).update
    return lambda grads, state, params, **rest: update(grads, state, params, grad_fn=jax.grad(objective), **rest)


def rosenbrock_and_parabolas(params):
    a, b = params["rosenbrock"]
    rest = jnp.sum((params["matrix"] - 2.0) ** 2) + jnp.sum((params["deep"]["vector"] + 1.0) ** 2)
    return (1 - a) ** 2 + 100 * (b - a**2) ** 2 + rest


START = {"rosenbrock": jnp.zeros(2), "matrix": jnp.zeros((2, 2)), "deep": {"vector": jnp.ones(3)}}
MINIMUM = {"rosenbrock": jnp.ones(2), "matrix": jnp.full((2, 2), 2.0), "deep": {"vector": -jnp.ones(3)}}

every = pytest.mark.parametrize("name", [*RECIPES, *OTHERS])


@every
def test_it_finds_the_minimum(name):
    optimizer = build(name)
    state = optax.tree.map_params(optimizer, lambda v: v, optimizer.init(START))
    update = with_stages(optimizer, rosenbrock_and_parabolas)

    def step(carry, _):
        params, state = carry
        updates, state = update(jax.grad(rosenbrock_and_parabolas)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30_000))((START, state))
    jax.tree.map(lambda found, true: np.testing.assert_allclose(found, true, atol=3e-2), params, MINIMUM)


@every
def test_it_takes_extra_arguments_and_compiles_once(name):
    optimizer, traces = build(name), []
    update = with_stages(optimizer, parabola)

    @jax.jit
    def step(params, state):
        traces.append(name)
        return update(jax.grad(parabola)(params), state, params, value=1.0)

    params = jnp.ones(3)
    _, state = jax.eval_shape(step, params, jax.eval_shape(optimizer.init, params))
    jax.eval_shape(step, params, state)
    assert len(traces) == 1


@pytest.mark.parametrize("name", RECIPES)
def test_its_hyperparameters_can_be_injected(name):
    factory, arguments, static = RECIPES[name]
    plain, injected = factory(**arguments), optax.inject_hyperparams(factory, static)(**arguments)
    params, grads = [-jnp.ones((2, 3)), jnp.ones((2, 5, 2))], [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]
    objective = lambda params: sum(map(parabola, params))
    found = []
    for optimizer in (plain, injected):
        state = jax.jit(optimizer.init)(params)
        update = jax.jit(with_stages(optimizer, objective))
        updates, state = update(grads, state, params)
        found.append((updates, update(grads, state, params)[0]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *found)


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_keeps_the_dtype_of_the_weights(name, dtype):
    optimizer, params = build(name), jnp.array([1.0, 2.0], dtype)
    update = functools.partial(jax.eval_shape, with_stages(optimizer, parabola))
    updates, state = update(params, jax.eval_shape(optimizer.init, params), params)
    assert updates.dtype == dtype
    assert update(params, state, params)[0].dtype == dtype


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_accumulates_gradients(name, dtype):
    optimizer = build(name)
    whole = optax.GradientTransformationExtraArgs(optimizer.init, with_stages(optimizer, parabola))
    params = jnp.array([1.0, 2.0], dtype)
    grads, accumulating = jax.grad(parabola)(params), optax.MultiSteps(whole, every_k_schedule=2)
    state = jax.jit(accumulating.init)(params)
    first, state = jax.jit(accumulating.update)(grads, state, params)
    second, _ = jax.jit(accumulating.update)(grads, state, params)
    np.testing.assert_array_equal(first, jnp.zeros_like(params))
    alone, _ = jax.jit(whole.update)(grads, whole.init(params), params)
    np.testing.assert_allclose(second.astype(float), alone.astype(float), rtol=1e-2)


@every
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_its_state_stays_of_one_kind(name, dtype, request):
    """In the branches of a `lax.cond`, whose results have to be of one shape and dtype."""
    if dtype == jnp.float64:
        request.getfixturevalue("x64")
    optimizer, params = build(name), jnp.array([-1.0, 10.0, 1.0], dtype)
    update, state = with_stages(optimizer, parabola), jax.eval_shape(optimizer.init, params)

    def step(params, state, take):
        grads = jax.grad(parabola)(params)
        return jax.lax.cond(take, lambda: update(grads, state, params), lambda: (grads, state))

    updates, state = jax.eval_shape(step, params, state, True)
    assert jax.eval_shape(optax.apply_updates, params, updates).dtype == dtype
    jax.eval_shape(step, params, state, False)


@pytest.mark.parametrize("name", RECIPES)
def test_it_takes_a_schedule(name):
    factory, arguments, _ = RECIPES[name]
    ends = []
    for rate in (arguments["learning_rate"], optax.constant_schedule(arguments["learning_rate"])):
        optimizer, params = factory(**arguments | {"learning_rate": rate}), jnp.array([1.0, -2.0])
        state = optimizer.init(params)
        update = jax.jit(with_stages(optimizer, parabola))
        for _ in range(6):
            updates, state = update(jax.grad(parabola)(params), state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    np.testing.assert_allclose(*ends, rtol=1e-6)


@every
def test_it_works_on_weights_that_are_spread_over_devices(name):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("axis",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("axis"))
    optimizer, params = build(name), jnp.arange(1.0, 5.0)
    update = jax.jit(with_stages(optimizer, parabola))
    found = []
    for weights in (params, jax.device_put(params, spread)):
        state = jax.jit(optimizer.init)(weights)
        for _ in range(2):
            updates, state = update(jax.grad(parabola)(weights), state, weights)
            weights = optax.apply_updates(weights, updates)
        found.append(weights)
    assert found[1].sharding.is_equivalent_to(spread, 1)
    np.testing.assert_allclose(*found, rtol=1e-6)


@every
def test_it_works_on_many_weights_at_once(name):
    optimizer, params = build(name), jax.random.normal(jax.random.key(0), (3, 4))
    one = jax.jit(lambda x: with_stages(optimizer, parabola)(jax.grad(parabola)(x), optimizer.init(x), x)[0])
    np.testing.assert_allclose(jax.vmap(one)(params), jnp.stack([one(x) for x in params]), rtol=1e-6)
