"""Integrators: what each declares of itself is what it has."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax import optimizers
from gfm_jax.optimizers import multistep, order_conditions, runge_kutta, stability
from gfm_jax.optimizers.tableaus import EXTRAGRADIENT, RK4
from gfm_jax.optimizers.testing import descent, distance, exact_flow, fitted_order, follow, regress

# Of two stages, as diffrax wants it; the second has no weight.
EULER = diffrax.ButcherTableau(
    c=np.ones(1), a_lower=(np.ones(1),), b_sol=np.array([1.0, 0.0]), b_error=np.array([-0.5, 0.5])
)
TABLEAUS = {  # name: (tableau, order, stability, gradients an update)
    "euler": (EULER, 1, 2.0, 1),
    "heun": (diffrax.Heun.tableau, 2, 2.0, 2),
    "midpoint": (diffrax.Midpoint.tableau, 2, 2.0, 2),
    "ralston": (diffrax.Ralston.tableau, 2, 2.0, 2),
    "rk4": (RK4, 4, 2.785293563405282, 4),
    "extragradient": (EXTRAGRADIENT, 1, 1.0, 2),
    "bosh3": (diffrax.Bosh3.tableau, 3, 2.512745326618329, 3),
    "tsit5": (diffrax.Tsit5.tableau, 5, 3.5068, 6),
    "dopri5": (diffrax.Dopri5.tableau, 5, 3.3066, 6),
}

every_scheme = pytest.mark.parametrize("name", multistep.SCHEMES)
every_tableau = pytest.mark.parametrize("name", TABLEAUS)


def of_scheme(name, learning_rate):
    return multistep.linear_multistep(learning_rate, multistep.SCHEMES[name])


def of_tableau(name, learning_rate):
    return runge_kutta.explicit_runge_kutta(learning_rate, TABLEAUS[name][0])


# --- order ------------------------------------------------------------------------------------------------------------


def order(make, gradient, start, end, time, numbers=(160, 320, 640)):
    far = [distance(follow(make, gradient, start, time / num, num), end) for num in numbers]
    return fitted_order(time / np.array(numbers), np.array(far))


@pytest.fixture
def flow(x64):
    """A perceptron of 41 weights, its gradient, where it starts, and where its gradient flow is at time 4."""
    return perceptron()


@functools.cache
def perceptron():
    problem = regress(jax.random.key(0))
    assert optax.tree.size(problem.start) == 41
    return problem.gradient, problem.start, exact_flow(descent(problem.gradient), problem.start, 4.0), 4.0


def rotation():
    """A field that is no gradient: round a circle of radius 1, faster outside of it."""
    return lambda w: (w @ w) * jnp.array([w[1], -w[0]]), jnp.array([1.0, 0.0]), jnp.array([np.cos(6), np.sin(6)]), 6.0


@functools.cache
def with_momentum(friction):
    gradient, start, _, time = perceptron()
    field = lambda x: (x[1], jax.tree.map(lambda g, p: -g - friction * p, gradient(x[0]), x[1]))
    return gradient, start, exact_flow(field, (start, optax.tree.zeros_like(start)), time)[0], time


ADAM = optax.adam(1e-2)


@functools.cache
def under_adam():
    """The joint field of weights and moments, for as long as 40 updates of Adam."""
    gradient, start, *_ = perceptron()

    def field(x):
        moved, state = ADAM.update(gradient(x[0]), x[1], x[0])
        return moved, jax.tree.map(jnp.subtract, state, x[1])

    as_time = jax.tree.map(lambda leaf: leaf.astype(float), ADAM.init(start))
    return gradient, start, exact_flow(field, (start, as_time), 40.0)[0], 40.0


@every_scheme
def test_order_of_multistep_methods(name, flow):
    declared = multistep.SCHEMES[name]
    found, constant = stability.order_and_error_constant(declared.mu, declared.b)
    assert found == declared.order
    assert constant == pytest.approx(declared.error_constant, rel=1e-9)
    assert order(functools.partial(of_scheme, name), *flow) == pytest.approx(declared.order, abs=0.1)


@every_tableau
def test_order_of_runge_kutta_methods(name, flow):
    tableau, declared, *_ = TABLEAUS[name]
    assert order_conditions.runge_kutta_order(tableau) == declared
    problem = flow if declared < 5 else rotation()  # the flow is not known well enough for order 5
    assert order(functools.partial(of_tableau, name), *problem) == pytest.approx(declared, abs=0.1)


def test_order_of_chebyshev(flow):
    assert order(optimizers.chebyshev, *flow) == pytest.approx(1, abs=0.1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("friction", [0.0, 0.5])
@pytest.mark.parametrize(("method", "declared"), [(optimizers.leapfrog, 2), (optimizers.symplectic_euler, 1)])
def test_order_on_the_momentum_equation(method, declared, friction):
    make = functools.partial(method, friction=friction)
    assert order(make, *with_momentum(friction)) == pytest.approx(declared, abs=0.1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["euler", "heun", "midpoint", "bosh3"])
def test_order_of_adam_as_a_joint_field(name):
    tableau, declared, *_ = TABLEAUS[name]
    make = lambda step: optimizers.joint_runge_kutta(ADAM, tableau, step)
    assert order(make, *under_adam()) == pytest.approx(declared, abs=0.1)


@pytest.mark.usefixtures("x64")
def test_order_two_survives_a_schedule_before_the_learning_rate_only():
    """Filtered before the rate, order 2; filtered after it, order 1."""
    gradient, start, end, time = perceptron()
    shape = lambda x: 1 + 0.9 * jnp.cos(jnp.pi * x)
    far = {"before": [], "after": []}
    for num in (320, 640):
        rates = shape(jnp.arange(num) / num)
        schedule = lambda count, rates=rates: (time * rates / rates.sum())[count]
        after = optax.chain(
            optax.scale_by_learning_rate(schedule), optimizers.scale_by_linear_multistep((), (1.5, -0.5))
        )
        for name, transform in (("before", optimizers.adams_bashforth(schedule)), ("after", after)):
            found = follow(lambda _, transform=transform: transform, gradient, start, 0.0, num)
            far[name].append(distance(found, end))
    orders = {name: fitted_order(1 / np.array([320, 640]), np.array(d)) for name, d in far.items()}
    assert orders["before"] == pytest.approx(2, abs=0.1)
    assert orders["after"] == pytest.approx(1, abs=0.2)


# --- stability and noise ----------------------------------------------------------------------------------------------


def largest_stable(make, low, high, num=4000):
    """The largest rate at which a mode of curvature 1 dies out, by bisection on runs."""
    end_of = jax.jit(lambda rate: follow(make, lambda w: w, jnp.ones(1), rate, num))
    for _ in range(12):
        middle = (low + high) / 2
        end = end_of(middle)
        low, high = (middle, high) if bool(jnp.abs(end) < 1) else (low, middle)
    return low


@every_scheme
def test_stability_of_multistep_methods(name, x64):
    declared = multistep.SCHEMES[name]
    assert stability.stability_interval(declared.mu, declared.b) == pytest.approx(declared.stability, abs=1e-3)
    measured = largest_stable(functools.partial(of_scheme, name), 0.0, 2 * declared.stability)
    assert measured == pytest.approx(declared.stability, rel=0.05)


@every_tableau
def test_stability_of_runge_kutta_methods(name, x64):
    tableau, _, declared, _ = TABLEAUS[name]
    assert stability.runge_kutta_interval(tableau) == pytest.approx(declared, rel=1e-4)
    assert largest_stable(functools.partial(of_tableau, name), 0.0, 2 * declared) == pytest.approx(declared, rel=1e-3)


@pytest.mark.parametrize(("mu", "b", "declared"), [((0.9,), (0.1,), 38.0), ((0.9,), (0.19, -0.09), 13.571428)])
def test_stability_of_heavy_ball_and_nesterov(mu, b, declared):
    """In units of the rate that the weights feel."""
    assert stability.stability_interval(mu, b) == pytest.approx(declared, abs=1e-3)


@every_scheme
def test_noise_of_multistep_methods(name):
    declared = multistep.SCHEMES[name]
    assert stability.noise_energy(declared.mu, declared.b) == pytest.approx(declared.noise, rel=1e-6)
    transform = optimizers.scale_by_linear_multistep(declared.mu, declared.b)
    noise = jax.random.normal(jax.random.key(0), (40_000, 16))
    _, directions = jax.lax.scan(lambda s, g: transform.update(g, s)[::-1], transform.init(noise[0]), noise)
    assert float(directions[100:].var()) == pytest.approx(declared.noise, rel=0.02)


@pytest.mark.parametrize("num_stages", [1, 2, 5, 8])
@pytest.mark.parametrize("damping", [0.0, 0.05, 1.0])
def test_chebyshev_is_the_polynomial(num_stages, damping, x64):
    curvature = jnp.linspace(0.0, 1.2, 25) * optimizers.chebyshev_interval(num_stages, damping)
    make = functools.partial(optimizers.chebyshev, num_stages=num_stages, damping=damping)
    end = follow(make, lambda w: curvature * w, jnp.ones(25), 1.0, num_stages)
    np.testing.assert_allclose(end, optimizers.chebyshev_growth(num_stages, damping, curvature), atol=1e-12)
    assert (
        np.abs(optimizers.chebyshev_growth(num_stages, damping, curvature[curvature <= curvature[-1] / 1.2])).max()
        <= 1 + 1e-12
    )


def test_chebyshev_interval():
    assert optimizers.chebyshev_interval(50, 0.01) == pytest.approx((2 - 4 / 3 * 0.01) * 50, rel=1e-4)
    assert optimizers.chebyshev_interval(1, 0.0) == 2


# Lagrange's differences one step ahead, with 3 and 4 points: a root of modulus 1 or more, which nothing damps.
@pytest.mark.parametrize(
    ("mu", "b", "root"), [((-1.0,), (2.0,), "-1"), ((-5 / 2, 1 / 2), (3.0,), "-2.68614")], ids=["3", "4"]
)
def test_counter_examples_diverge_and_are_refused(mu, b, root):
    assert stability.stability_interval(mu, b) == 0
    weight, directions = 1.0, [1.0] * len(mu)
    for _ in range(2000):
        direction = sum(m * d for m, d in zip(mu, directions, strict=True)) + b[0] * weight
        weight, directions = weight - 0.01 * direction, [direction, *directions][: len(mu)]
    assert not abs(weight) < 1e3  # not a number, for the second
    with pytest.raises(ValueError, match=f"mu: expected a zero-stable rule.* got the root {root}"):
        optimizers.scale_by_linear_multistep(mu, b)


# --- mechanics --------------------------------------------------------------------------------------------------------


def pendulum_energies(num_steps, step):
    """Energy of a pendulum after every update of the frictionless leapfrog, at whole steps."""
    transform = optimizers.leapfrog(step)

    def move(carry, _):
        w, state = carry
        updates, new_state = transform.update(jnp.sin(w), state, w)
        # The momentum at w is the mean of those half a step before and after.
        p = jnp.where(state[0].count > 0, (state[0].momentum + new_state[0].momentum) / 2, 0.0)
        return (w + updates, new_state), p**2 / 2 - jnp.cos(w)

    start = jnp.array(2.0)
    return jax.lax.scan(move, (start, transform.init(start)), length=num_steps)[1]


@pytest.mark.usefixtures("x64")
def test_leapfrog_keeps_the_energy_for_long():
    energies = pendulum_energies(100_000, 0.1)
    assert float(jnp.abs(energies - energies[0]).max()) < 5e-3
    assert abs(float(energies[-20_000:].mean() - energies[:20_000].mean())) < 1e-5  # no drift
    half = pendulum_energies(100_000, 0.05)
    swing = [float(jnp.abs(e - e[0]).max()) for e in (energies, half)]
    assert swing[0] / swing[1] == pytest.approx(4, rel=0.1)


@pytest.mark.usefixtures("x64")
def test_leapfrog_goes_back_where_it_came_from():
    transform, num = optimizers.scale_by_leapfrog(0.1), 1000
    move = lambda _, carry: _leap(transform, *carry)
    w, state = jax.lax.fori_loop(0, num, move, (jnp.array(2.0), transform.init(jnp.array(2.0))))
    # Half a step behind the last weights, with the momentum turned round.
    back = state._replace(momentum=-state.momentum)
    w = w + 0.1 * back.momentum
    w, _ = jax.lax.fori_loop(0, num - 1, move, (w, back))
    assert float(w) == pytest.approx(2.0, abs=1e-10)


def _leap(transform, w, state):
    direction, state = transform.update(jnp.sin(w), state)
    return w - 0.1 * direction, state


# --- the same thing by another name -----------------------------------------------------------------------------------


def path(transform, num=12, gradient=None):
    gradient = gradient or jax.grad(lambda w: jnp.sum(jnp.cosh(w) + w[0] * w[1]))
    transform, weights, found = optax.with_extra_args_support(transform), jnp.array([1.0, -0.5]), []
    state = transform.init(weights)
    for _ in range(num):
        updates, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        weights = optax.apply_updates(weights, updates)
        found.append(weights)
    return jnp.stack(found)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (lambda: optimizers.adams_bashforth(0.1), lambda: optax.optimistic_gradient_descent(0.1, 1.0, 0.5)),
        (lambda: optimizers.adams_bashforth(0.1, 1), lambda: optax.sgd(0.1)),
        (lambda: optimizers.symplectic_euler(0.1, 2.0), lambda: optax.sgd(0.01, momentum=np.exp(-0.2))),
        (lambda: optimizers.chebyshev(0.1, 1, 0.0), lambda: optax.sgd(0.1)),
        (lambda: optimizers.joint_runge_kutta(optax.sgd(0.1), RK4), lambda: optimizers.rk4(0.1)),
        (lambda: optimizers.joint_runge_kutta(optax.adam(0.1), EULER), lambda: optax.adam(0.1)),
        (
            lambda: optimizers.joint_runge_kutta(optax.adamw(lambda count: 0.1 / (1.0 + count)), EULER),
            lambda: optax.adamw(lambda count: 0.1 / (1.0 + count)),
        ),
        (
            lambda: optimizers.joint_runge_kutta(optax.optimistic_gradient_descent(0.1), EULER),
            lambda: optax.optimistic_gradient_descent(0.1),
        ),
        (
            lambda: optax.chain(
                optimizers.scale_by_linear_multistep((0.9,), (0.1,)), optax.scale_by_learning_rate(0.1)
            ),
            lambda: optax.chain(optax.scale_by_learning_rate(0.1), heavy_ball_from_the_start()),
        ),
    ],
)
def test_equivalences(ours, other):
    np.testing.assert_allclose(path(ours()), path(other()), rtol=1e-12)


def heavy_ball_from_the_start():
    """Momentum whose past is what the first gradient would have made it."""

    def update(updates, state, params=None):
        state = updates if state is None else 0.9 * state + 0.1 * updates
        return state, state

    return optax.GradientTransformation(lambda params: None, update)


def test_every_first_update_is_eulers():
    for name in multistep.SCHEMES:
        np.testing.assert_allclose(path(of_scheme(name, 0.1), 1), path(optax.sgd(0.1), 1), rtol=1e-6)


def test_a_constant_gradient_is_followed_exactly_from_the_start():
    """Through the warm-up of every rule, and where the learning rate jumps: time is the sum of learning rates."""
    rates = jnp.array([0.1] * 5 + [0.02] * 5)
    for name in multistep.SCHEMES:
        moved = path(of_scheme(name, lambda count: rates[count]), 10, lambda w: jnp.ones(2)) - jnp.array([1.0, -0.5])
        np.testing.assert_allclose(moved[:, 0], -jnp.cumsum(rates), rtol=1e-5)


@pytest.mark.parametrize("name", multistep.SCHEMES)
def test_history_survives_a_checkpoint(name, tmp_path):
    import orbax.checkpoint as ocp

    transform, gradient = of_scheme(name, 0.1), jax.grad(lambda w: jnp.sum(w**4))
    weights = jnp.array([1.0, -0.5])
    state = transform.init(weights)
    for _ in range(4):
        updates, state = transform.update(gradient(weights), state, weights)
        weights = optax.apply_updates(weights, updates)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
    after = [transform.update(gradient(weights), s, weights)[0] for s in (state, restored)]
    np.testing.assert_array_equal(*after)


# --- step control -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_step_control_keeps_to_its_tolerance_and_knows_the_time(flow):
    gradient, start, *_ = flow
    far = []
    for relative in (1e-3, 1e-5):
        transform = optimizers.embedded_runge_kutta(1.0, relative, relative / 100)
        weights, state = start, transform.init(start)
        step = jax.jit(lambda w, s, transform=transform: transform.update(gradient(w), s, w, grad_fn=gradient))
        for _ in range(60):
            updates, state = step(weights, state)
            weights = optax.apply_updates(weights, updates)
        assert int(state.accepted) + int(state.refused) == 60
        assert int(state.refused) >= 1  # the first rate is far too large
        far.append(distance(weights, exact_flow(descent(gradient), start, state.time)))
    assert far[0] < 1e-2
    assert far[1] < far[0] / 20


def test_step_control_finds_its_way_out_of_infinity():
    transform = optimizers.embedded_runge_kutta(1e6)
    weights, gradient = jnp.array([3.0]), jax.grad(lambda w: jnp.sum(jnp.exp(w)))
    state = transform.init(weights)
    for _ in range(40):
        updates, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        weights = optax.apply_updates(weights, updates)
    assert bool(jnp.isfinite(weights).all())
    assert int(state.accepted) > 5
    assert float(weights[0]) < 3


@pytest.mark.parametrize("tableau", [diffrax.Bosh3.tableau, diffrax.Tsit5.tableau, diffrax.Dopri5.tableau])
def test_step_control_by_the_pairs_of_diffrax(tableau, x64):
    """One update of w' = -w: the difference of the two rules, its scale and its order are as diffrax's solver has them."""
    absolute, rate, w = 3e-2, 0.5, jnp.array([1.0, -3.0])
    transform = optimizers.embedded_runge_kutta(rate, relative=1e-12, absolute=absolute, tableau=tableau)
    updates, state = transform.update(w, transform.init(w), w, grad_fn=lambda w: w)
    [solver] = [s for s in (diffrax.Bosh3(), diffrax.Tsit5(), diffrax.Dopri5()) if s.tableau is tableau]
    term = diffrax.ODETerm(lambda t, w, args: -w)
    moved, error, *_ = solver.step(term, 0.0, rate, w, None, solver.init(term, 0.0, rate, w, None), False)
    np.testing.assert_allclose(w + updates, moved, rtol=1e-12)
    scaled = float(jnp.sqrt(jnp.mean((error / absolute) ** 2)))
    assert float(state.error) == pytest.approx(scaled, rel=1e-6)
    change = np.clip(0.9 * scaled ** (-1 / solver.error_order(term)), 0.2, 5.0)
    assert float(state.learning_rate) == pytest.approx(rate * change, rel=1e-6)


@pytest.mark.parametrize("name", TABLEAUS)
def test_an_update_asks_for_no_gradient_that_has_no_weight(name):
    tableau, *_, num = TABLEAUS[name]
    makes = [lambda: optimizers.explicit_runge_kutta(0.1, tableau)]
    makes.append(lambda: optimizers.joint_runge_kutta(optax.adam(0.1), tableau))
    for make in makes:
        assert asked(make()) == num - 1  # the first is given
    if tableau.b_error.any():
        assert asked(optimizers.embedded_runge_kutta(0.1, tableau=tableau)) == tableau.num_stages - 1


def asked(transform):
    count, w = [], jnp.ones(2)
    transform.update(w, transform.init(w), w, grad_fn=lambda w: count.append(1) or w)
    return len(count)


# --- one or two updates by hand, at rates that fall -------------------------------------------------------------------


def by_hand(transform, gradients, start=1.0):
    """The weights after each update, of a method with one gradient an update that is given these."""
    weights, found = jnp.float32(start), []
    state = transform.init(weights)
    for gradient in gradients:
        updates, state = transform.update(jnp.float32(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        found.append(float(weights))
    return np.array(found)


def falling(*rates):
    return lambda count: jnp.asarray(rates, jnp.float32)[count]


def linear_path(transform, num):
    """On w^2 / 2 from 1."""
    weights, found = jnp.float32(1.0), []
    state = transform.init(weights)
    for _ in range(num):
        updates, state = transform.update(weights, state, weights, grad_fn=lambda w: w)
        weights = optax.apply_updates(weights, updates)
        found.append(float(weights))
    return np.array(found)


def test_stages_lie_as_far_ahead_as_the_rate_of_their_own_update():
    """Growth 1 - q + q^2 / 2 of Heun's method, and of the fourth order, at the rates .2 and .1."""
    q = np.array([0.2, 0.1])
    np.testing.assert_allclose(linear_path(optimizers.heun(falling(*q)), 2), np.cumprod(1 - q + q**2 / 2), rtol=1e-6)
    growth = 1 - q + q**2 / 2 - q**3 / 6 + q**4 / 24
    np.testing.assert_allclose(linear_path(optimizers.rk4(falling(*q)), 2), np.cumprod(growth), rtol=1e-6)
    euler = linear_path(optimizers.explicit_runge_kutta(falling(*q), EXTRAGRADIENT), 2)
    np.testing.assert_allclose(euler, np.cumprod(1 - q + q**2), rtol=1e-6)


def test_a_stage_half_way_looks_up_the_rate_of_the_update_that_it_is_in():
    """Counters of 1/2 and 3/2 are 0 and 1 updates that are over: the midpoint rule moves by .1 (1 - .05) and .2 (1 - .1)."""
    joint = optimizers.joint_runge_kutta(optax.sgd(falling(0.1, 0.2, 0.0)), diffrax.Midpoint.tableau)
    np.testing.assert_allclose(linear_path(joint, 3), np.cumprod([1 - 0.1 * 0.95, 1 - 0.2 * 0.9, 1]), rtol=1e-6)
    heun = optimizers.joint_runge_kutta(optax.sgd(falling(0.1, 0.0)), diffrax.Heun.tableau)  # its second stage is at 1
    np.testing.assert_allclose(linear_path(heun, 1), [1 - 0.05], rtol=1e-6)


def test_the_next_rate_follows_the_root_of_the_error_of_the_lower_order():
    """lr .9 e^(-1/2) of a method of order 2, with e = lr^2 / 2 over the tolerance on w^2 / 2 from 1."""
    transform = optimizers.embedded_runge_kutta(0.1, relative=1e-2, absolute=1e-3)
    weights = jnp.float32(1.0)
    _, state = transform.update(weights, transform.init(weights), weights, grad_fn=lambda w: w)
    error = 0.1 * 0.1 / 2 / 1.1e-2  # k_2 - k_1 = -lr, half of it in lr (b - b_low)
    assert float(state.error) == pytest.approx(error, rel=1e-5)
    assert float(state.learning_rate) == pytest.approx(0.1 * 0.9 * error**-0.5, rel=1e-5)
    assert float(state.time) == pytest.approx(0.1)


def test_step_control_of_half_precision_weights_measures_in_float32():
    """(wrong before 0.2)"""
    grad_fn = lambda w: (1.0 + w.astype(jnp.float32) / 3).astype(w.dtype)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        weights = jnp.arange(1.0, 9.0, dtype=dtype)
        transform = optimizers.embedded_runge_kutta(0.25)
        _, state = transform.update(grad_fn(weights), transform.init(weights), weights, grad_fn=grad_fn)
        stages = [
            np.asarray(grad_fn(w), np.float64) for w in (weights, (weights - 0.25 * grad_fn(weights)).astype(dtype))
        ]
        off = 0.25 * (stages[1] - stages[0]) / 2 / (1e-5 + 1e-3 * np.asarray(weights, np.float64))
        assert float(state.error) == pytest.approx(np.sqrt((off**2).mean()), rel=1e-5)
        found[dtype] = state.error.dtype
    assert set(found.values()) == {jnp.dtype(jnp.float32)}


def test_friction_and_kicks_at_rates_that_change():
    rates, gradients, friction = (0.3, 0.1, 0.2), (1.0, -2.0, 0.5), 0.7
    p, w, before, leaps, kicks = 0.0, 1.0, 0.0, [], []
    for h, g in zip(rates, gradients, strict=True):
        p = np.exp(-friction * before / 2) * (p - before / 2 * g)
        p = np.exp(-friction * h / 2) * p - h / 2 * g
        w, before = w + h * p, h
        leaps.append(w)
    np.testing.assert_allclose(by_hand(optimizers.leapfrog(falling(*rates), friction), gradients), leaps, rtol=1e-5)
    p, w = 0.0, 1.0
    for h, g in zip(rates, gradients, strict=True):
        p = np.exp(-friction * h) * p - h * g
        w += h * p
        kicks.append(w)
    euler = optimizers.symplectic_euler(falling(*rates), friction)
    np.testing.assert_allclose(by_hand(euler, gradients), kicks, rtol=1e-5)


def test_the_first_updates_of_multistep_rules():
    """Directions of gradients that differ: the rows of the start, then the rule."""
    g = np.array([1.0, -2.0, 0.5, 3.0, -1.0])
    directions = lambda transform: -np.diff(np.concatenate([[0.0], by_hand(transform, g, 0.0)]))
    third = [g[0], 2 * g[1] - g[0], 9 / 4 * g[2] - 2 * g[1] + 3 / 4 * g[0]]
    third += [(23 * g[k] - 16 * g[k - 1] + 5 * g[k - 2]) / 12 for k in (3, 4)]
    np.testing.assert_allclose(directions(optimizers.adams_bashforth(1.0, 3)), third, rtol=1e-5)
    second = [g[0], *(1.5 * g[k] - 0.5 * g[k - 1] for k in range(1, 5))]
    np.testing.assert_allclose(directions(optimizers.adams_bashforth(1.0, 2)), second, rtol=1e-5)
    found = directions(optimizers.taylor_sgd(1.0, "taylor4"))
    rule = [0.5 * found[k - 1] - 0.5 * found[k - 2] + g[k] for k in range(2, 5)]
    np.testing.assert_allclose(found[2:], rule, rtol=1e-5)
    np.testing.assert_allclose(found[:2], [g[0], 0.5 * g[0] + g[1] - 0.5 * g[0]], rtol=1e-5)


def test_momentum_of_chebyshev_starts_again_after_every_cycle():
    g = np.array([1.0, -2.0, 0.5])
    once = np.diff(np.concatenate([[0.0], by_hand(optimizers.chebyshev(1.0, 3), g, 0.0)]))
    twice = np.diff(np.concatenate([[0.0], by_hand(optimizers.chebyshev(1.0, 3), [*g, *g], 0.0)]))
    np.testing.assert_allclose(twice, [*once, *once], rtol=1e-5, atol=1e-6)
    assert abs(once[1] + g[1]) > 0.1  # a direction that remembers


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimizers.scale_by_linear_multistep((0.5,), (1.0,)), "mu, b: expected sum b = 1 - sum mu"),
        (lambda: optimizers.scale_by_linear_multistep((1.5, -0.3), (-0.2,)), "zero-stable.*root 1.26"),
        (lambda: optimizers.scale_by_linear_multistep((0.0, -1.0), (2.0,)), "zero-stable.*root .*1j"),
        (lambda: optimizers.scale_by_linear_multistep((), ()), "b: expected a coefficient"),
        (lambda: optimizers.scale_by_linear_multistep((), (1.5, -0.5), [[0.5]]), "start: expected rows with sum 1"),
        (lambda: optimizers.scale_by_linear_multistep((), (1.0,), [[0.5, 0.5]]), "start: expected .* at most 1"),
        (lambda: optimizers.adams_bashforth(0.1, 4), "order: expected one of 1, 2, 3, got 4"),
        (lambda: optimizers.taylor_sgd(0.1, "taylor6"), "kind: expected one of taylor4, taylor4_opt"),
        (lambda: optimizers.adams_bashforth(-0.1), "learning_rate: expected a number from 0 on"),
        (lambda: optimizers.heun(float("nan")), "learning_rate: expected a number from 0 on"),
        (lambda: optimizers.leapfrog(-0.1), "learning_rate: expected a number from 0 on"),
        (lambda: optimizers.leapfrog(0.1, -1.0), "friction: expected a number from 0 on"),
        (lambda: optimizers.chebyshev(0.1, 0), "num_stages: expected at least 1, got 0"),
        (lambda: optimizers.chebyshev(0.1, 5, -0.1), "damping: expected a number from 0 on"),
        (lambda: optimizers.embedded_runge_kutta(0.0), "first_rate: expected a positive number"),
        (lambda: optimizers.embedded_runge_kutta(0.1, relative=-1.0), "relative: expected a positive number"),
        (lambda: optimizers.embedded_runge_kutta(0.1, tableau=RK4), "tableau: expected one with an embedded rule"),
        (lambda: optimizers.explicit_runge_kutta(0.1, diffrax.Kvaerno3.tableau), "tableau: .* got an implicit one"),
        (lambda: optimizers.embedded_runge_kutta(0.1, tableau=diffrax.KenCarp3().tableau), "got MultiButcherTableau"),
        (lambda: optimizers.joint_runge_kutta(optax.adam(0.1), diffrax.Tsit5()), "tableau: expected .* got Tsit5"),
        (lambda: optimizers.joint_runge_kutta(optax.adam(0.1), step=0.0), "step: expected a positive number"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "build",
    [
        lambda: optimizers.heun(0.1),
        lambda: optimizers.embedded_runge_kutta(0.1),
        lambda: optimizers.joint_runge_kutta(optax.adam(0.1)),
    ],
)
def test_stages_need_a_way_to_ask_for_gradients(build):
    transform, w = build(), jnp.ones(2)
    with pytest.raises(ValueError, match="grad_fn: expected update"):
        transform.update(w, transform.init(w), w)
    with pytest.raises(ValueError, match="params: expected update"):
        transform.update(w, transform.init(w), grad_fn=lambda w: w)


@pytest.mark.usefixtures("unchecked")
def test_an_injected_choice_is_refused_with_the_way_out():
    transform = optax.inject_hyperparams(optimizers.adams_bashforth)(learning_rate=0.1, order=2)
    with pytest.raises(ValueError, match=r"order: .*static_args"):
        transform.init(jnp.ones(2))
