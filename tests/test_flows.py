"""Paths, fields, solvers and losses against what is known in closed form."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax.base import Interpolant
from gfm_jax.flows import flow_map_step, flow_matching_loss, interpolate, linear, velocity_of
from gfm_jax.forecasting import function_space_loss, laplace_nll, relative_huber, relative_l1, relative_squared_error
from gfm_jax.runs import quadratic, record
from gfm_jax.solve import solve_flow


def test_linear_path():
    path = interpolate(linear, jnp.float32(0.25), jnp.array([0.0, 4.0]), jnp.array([8.0, 0.0]))
    np.testing.assert_allclose(path.x_t, [2.0, 3.0])
    np.testing.assert_allclose(path.dx_t, [8.0, -4.0])


def test_velocity_is_the_derivative_of_any_path():
    trigonometric = Interpolant(lambda t: jnp.cos(jnp.pi / 2 * t), lambda t: jnp.sin(jnp.pi / 2 * t))
    t, x_0, x_1 = jnp.float32(0.3), jnp.array([1.0, 2.0]), jnp.array([-1.0, 0.5])
    step = 1e-2
    ahead, behind = (interpolate(trigonometric, t + h, x_0, x_1).x_t for h in (step, -step))
    np.testing.assert_allclose(interpolate(trigonometric, t, x_0, x_1).dx_t, (ahead - behind) / (2 * step), rtol=1e-3)


def test_the_best_linear_field_on_a_quadratic_run():
    """Flow matching on the piecewise-linear interpolant of w_i - w* = (1 - a)^i has the minimiser
    c = -m a (1 - a/2) / (1 - a + a^2/3), which is -2.5635 at a = .05, m = 50."""
    a, num_steps = 0.05, 50
    task = quadratic(jnp.ones(1))
    run = record(jax.random.key(0), task, optax.sgd, jnp.full(num_steps, a), range(num_steps + 1))
    weights, share = run.weights[:, 0], (jnp.arange(200) + 0.5) / 200

    def of_segment(w, later):
        path = jax.vmap(lambda o: interpolate(linear, o, w, later))(share)
        return path.x_t, num_steps * path.dx_t

    x, v = jax.vmap(of_segment)(weights[:-1], weights[1:])
    slope = jnp.sum(x * v) / jnp.sum(x * x)
    expected = -num_steps * a * (1 - a / 2) / (1 - a + a**2 / 3)
    assert expected == pytest.approx(-2.5635, abs=1e-4)
    assert float(slope) == pytest.approx(expected, rel=1e-3)
    loss = lambda c: flow_matching_loss(c * x, interpolate(linear, jnp.float32(0), x, x)._replace(dx_t=v))
    assert float(jax.grad(loss)(slope)) == pytest.approx(0, abs=1e-4)


def test_weights_of_the_loss_stay_with_their_squares():
    """(1 * 1 + 3 * 9 + 0 * 4 + 2 * 25) / 8: each sample's weight times its own squares; the other coordinate is right."""
    path = interpolate(linear, jnp.float32(0), jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    velocity = jnp.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [5.0, 0.0]])
    weight = jnp.array([1.0, 3.0, 0.0, 2.0])
    assert float(flow_matching_loss(velocity, path, weight)) == pytest.approx(78 / 8)
    assert float(flow_matching_loss(velocity, path, weight[:, None] * jnp.ones(2))) == pytest.approx(78 / 8)


def test_past_the_edge_of_stability_no_field_of_the_weights_can_follow():
    """With 1 < a < 2 the iterates w_i = (1 - a)^i cross the minimum at every step and still converge, but the best field
    v = c w moves them far less than they move: continued from w_0 it misses where they are by most of the distance."""
    a, num_steps = 1.8, 20
    run = record(jax.random.key(0), quadratic(jnp.ones(1)), optax.sgd, jnp.full(num_steps, a), range(num_steps + 1))
    weights = np.asarray(run.weights[:, 0])
    differences = np.diff(weights)
    assert np.corrcoef(differences[1:], differences[:-1])[0, 1] < -0.9  # how such runs are told
    share = (np.arange(400) + 0.5) / 400
    x = weights[:-1, None] + share * differences[:, None]
    v = num_steps * np.broadcast_to(differences[:, None], x.shape)
    slope = (x * v).sum() / (x * x).sum()
    followed = weights[0] * np.exp(slope / num_steps)  # one step later
    assert np.sign(followed) != np.sign(weights[1])
    assert abs(followed - weights[1]) > 0.5 * abs(weights[0])


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 1), (diffrax.Heun(), 2), (diffrax.Tsit5(), 5)])
@pytest.mark.usefixtures("x64")
def test_solver_order(solver, order):
    velocity = lambda t, x: jnp.array([-x[1], x[0]]) * (1 + t)
    exact = jnp.array([jnp.cos(1.5), jnp.sin(1.5)])
    steps = (4, 8) if order == 5 else (32, 64)
    errors = [
        jnp.linalg.norm(solve_flow(velocity, jnp.array([1.0, 0.0]), num_steps=n, solver=solver)[0] - exact)
        for n in steps
    ]
    assert order - 0.2 < float(jnp.log2(errors[0] / errors[1])) < order + 1


def test_a_solve_that_diverges_is_a_value():
    _, info = solve_flow(lambda t, x: x**3, jnp.array([10.0]), 0.0, 50.0, num_steps=20)
    assert not bool(info["finite"])
    with pytest.raises(ValueError, match="num_steps"):
        solve_flow(lambda t, x: x, jnp.zeros(1), num_steps=0)


def test_flow_map_of_a_gaussian_has_its_velocity_and_is_a_semigroup():
    """x_0 ~ N(0, s0^2), x_1 ~ N(m, s1^2): X_{s,t}(x) = t m + (g_t / g_s)(x - s m), b_t(x) = m + (g'/g)(x - t m)."""
    m, s0, s1 = 1.5, 1.0, 0.3
    g = lambda t: jnp.sqrt((1 - t) ** 2 * s0**2 + t**2 * s1**2)
    exact = lambda s, t, x: t * m + g(t) / g(s) * (x - s * m)
    t, x = jnp.float32(0.4), jnp.array([0.2, -1.0])
    b = m + jax.grad(g)(t) / g(t) * (x - t * m)
    np.testing.assert_allclose(velocity_of(exact, t, x), b, rtol=1e-5)
    np.testing.assert_allclose(exact(0.4, 0.9, exact(0.1, 0.4, x)), exact(0.1, 0.9, x), rtol=1e-5)
    mean_velocity = (exact(0.1, 0.9, x) - x) / 0.8
    np.testing.assert_allclose(
        flow_map_step(jnp.float32(0.1), jnp.float32(0.9), x, mean_velocity), exact(0.1, 0.9, x), rtol=1e-5
    )
    np.testing.assert_array_equal(flow_map_step(t, t, x, mean_velocity), x)


def test_losses_in_numbers():
    origin, target = jnp.array([0.0, 0.0]), jnp.array([3.0, 4.0])
    assert float(relative_squared_error(origin, origin, target)) == 1.0
    assert float(relative_squared_error(target, origin, target)) == 0.0
    assert float(relative_l1(jnp.array([1.0, 5.0]), jnp.array([0.0, 3.0]), jnp.array([4.0, 1.0]))) == 2.0
    # u = 1/2 is squared, u = 2 is not: (1/8 + 3/2) / 2
    assert float(relative_huber(jnp.array([0.25, 5.0]), jnp.array([0.0, 3.0]), jnp.array([4.0, 1.0]))) == 0.8125
    value = function_space_loss(lambda w: jnp.sum(w), jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0]), target, 0.0)
    assert float(value) == pytest.approx(np.log(1.001 / 2.001), rel=1e-5)
    far = function_space_loss(lambda w: jnp.float32(1.0), jnp.array([99.0, 0.0]), origin, target, 0.5)
    assert float(far) == pytest.approx(1.5)  # lambda times the ceiling


def test_laplace_nll_learns_the_mean_error():
    errors = jax.random.laplace(jax.random.key(0), (20_000,)) * 0.7
    grid = jnp.linspace(-1.5, 0.5, 401)
    best = grid[jnp.argmin(jax.vmap(lambda s: laplace_nll(s, errors))(grid))]
    assert float(jnp.exp(best)) == pytest.approx(float(jnp.abs(errors).mean()), rel=0.01)


# --- what a solve takes -----------------------------------------------------------------------------------------------


def test_derivatives_that_a_solve_is_asked_for():
    """x' = x^2 from x in half a unit: x / (1 - x / 2), of slope 1 / (1 - x / 2)^2 (wrong before 0.2)."""
    flow = lambda adjoint: lambda x: solve_flow(lambda t, x: x**2, x, 0.0, 0.5, num_steps=64, adjoint=adjoint)[0]
    x = jnp.float32(0.5)
    forward, direct = flow(diffrax.ForwardMode()), flow(diffrax.DirectAdjoint())
    for slope in (jax.jacfwd(forward), jax.grad(flow(None)), jax.grad(direct)):
        assert float(slope(x)) == pytest.approx(1 / 0.75**2, rel=1e-3)
    assert float(jax.grad(jax.grad(direct))(x)) == pytest.approx(1 / 0.75**3, rel=1e-2)


def test_an_implicit_solver_with_its_controller():
    """(wrong before 0.2)"""
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    end, info = solve_flow(lambda t, x: -20 * x, jnp.ones(1), solver=diffrax.Kvaerno3(), stepsize_controller=controller)
    assert bool(info["finite"])
    np.testing.assert_allclose(end, np.exp(-20), atol=1e-5)


def test_a_solve_keeps_the_way_that_it_is_asked_for():
    """x' = x from 1 is e^t, at any times and in either direction."""
    times = np.array([0.25, 0.5, 1.0])
    solve = lambda x, **options: solve_flow(lambda t, x: x, x, num_steps=100, **options)[0]
    saveat = diffrax.SaveAt(t0=True, ts=times)
    kept = jax.jit(lambda x: solve(x, saveat=saveat))(jnp.ones(2))
    np.testing.assert_allclose(kept, np.exp([[0.0], *times[:, None]]) * np.ones(2), rtol=1e-4)
    back = solve(jnp.ones(2), t_0=1.0, t_1=0.0, saveat=diffrax.SaveAt(ts=times[::-1]))
    np.testing.assert_allclose(back[:, 0], np.exp(times[::-1] - 1), rtol=1e-4)
    with pytest.raises(ValueError, match="saveat: expected times that are known"):
        jax.jit(lambda t: solve(jnp.ones(2), t_1=t, saveat=diffrax.SaveAt(ts=times)))(1.0)


def test_a_solve_that_does_not_arrive_is_no_number():
    """Its last point, of a time before t_1, came back as that of t_1, and as finite (wrong before 0.2)."""
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-9)
    fast = lambda t, x: jnp.cos(1e6 * t) * jnp.ones_like(x)
    end, info = solve_flow(fast, jnp.zeros(2), 0.0, 1.0, stepsize_controller=controller)
    assert not info["finite"]
    assert np.isnan(end).all()


def test_times_that_are_traced_put_no_callback_into_the_program():
    """Same numbers, and a program for a machine that is not there (wrong before 0.2)."""
    flow = lambda t_0, t_1: solve_flow(lambda t, x: jnp.cos(t) * x, jnp.ones(2), t_0, t_1)[0]
    traced = jax.jit(flow).trace(jnp.float32(0.2), jnp.float32(1.0))
    assert "callback" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    np.testing.assert_allclose(jax.jit(flow)(0.2, 1.0), flow(0.2, 1.0), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(flow)(1.0, 0.2), flow(1.0, 0.2), rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(flow)(0.5, 0.5), 1)


@pytest.mark.usefixtures("unchecked")
def test_what_a_solve_starts_from():
    """Integers and 16 bits are computed with in float32; numbers of steps are integers (wrong before 0.2)."""
    growth = lambda t, x: x
    for start in (np.array([1]), jnp.ones(1, jnp.bfloat16), [1.0]):
        end, _ = solve_flow(growth, jnp.asarray(start), 0, 1, num_steps=32)
        assert end.dtype == jnp.float32
        assert float(end[0]) == pytest.approx(np.e, rel=1e-3)
    np.testing.assert_array_equal(solve_flow(growth, jnp.ones(1), 1, 1)[0], 1)
    for number in (2.5, True, None):
        with pytest.raises(ValueError, match="num_steps: expected an integer of at least 1"):
            solve_flow(growth, jnp.ones(1), num_steps=number)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_solved_is_refused():
    """(wrong before 0.2): numbers came back."""
    growth = lambda t, x: x
    for times in ({"t_1": np.nan}, {"t_0": np.inf}, {"t_1": np.ones(2)}):
        with pytest.raises(ValueError, match=f"{next(iter(times))}: expected a finite time"):
            solve_flow(growth, jnp.ones(2), **times)
    with pytest.raises(ValueError, match=r"velocity: expected dx/dt of the shape of x_0, \(2,\), got \(\)"):
        solve_flow(lambda t, x: x[0], jnp.ones(2))
    with pytest.raises(ValueError, match=r"solver: expected one made, diffrax\.Heun\(\), got the class"):
        solve_flow(growth, jnp.ones(2), solver=diffrax.Heun)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="there tracers of diffrax's own loop stay behind")
def test_nothing_that_is_traced_stays_behind():
    """What a velocity closes over is an argument of the solve (wrong before 0.2)."""
    follow = jax.jit(lambda rate, x: solve_flow(lambda t, x: rate * x, x, num_steps=8)[0])
    with jax.check_tracer_leaks():
        end = follow(jnp.float32(0.5), jnp.ones(2))
    np.testing.assert_allclose(end, np.exp(0.5), rtol=1e-3)
