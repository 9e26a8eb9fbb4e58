"""Optimizers as optax has them, in the recorder: wrappers that leave steps out, extra arguments, masks and partitions."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax import optimizers
from gfm_jax.base import Task
from gfm_jax.optimizers import WholeGradient
from gfm_jax.optimizers.tableaus import EXTRAGRADIENT
from gfm_jax.pytrees import ravel
from gfm_jax.runs import record

STEPS = 40
FALLING = np.linspace(1, 0, STEPS)


def line(bad=()):
    """loss = w, so that the weights are minus the sum of the rates that were used; not finite in the batches `bad`."""
    is_bad = jnp.zeros(STEPS, bool).at[jnp.array(bad, int)].set(True)
    init = lambda key, variety=None: {"w": jnp.zeros(())}
    draws = lambda key, num_steps, variety=None: is_bad[:num_steps]
    loss = lambda weights, data, draw: weights["w"] * jnp.where(draw, jnp.nan, 1.0)
    return Task({}, init, draws, loss, lambda weights, split: {"loss": weights["w"]})


def bowl():
    """A quadratic of a tree of weights; its curvature differs from step to step."""
    start = {"x": jnp.array([1.0, -2.0]), "y": jnp.array([[0.5], [1.5]])}
    init = lambda key, variety=None: start
    draws = lambda key, num_steps, variety=None: 1 + 0.1 * jnp.cos(jnp.arange(num_steps, dtype=jnp.float32))

    def loss(weights, data, draw):
        x, y = weights["x"], weights["y"]
        return draw * (jnp.sum(x**2 * jnp.array([1.0, 0.3])) + 0.5 * jnp.sum((y - 0.2) ** 2) + 0.1 * x[0] * y[1, 0])

    return Task({}, init, draws, loss, lambda weights, split: {"loss": loss(weights, split, 1.0)})


BOWL = bowl()


# --- the clock ----------------------------------------------------------------------------------------------------------


def used(*steps):
    return FALLING[list(steps)]


SKIPPING = {  # optimizer, batches that are not finite, rates used (in the order of the steps)
    "accumulated": (lambda lr: optax.MultiSteps(optax.sgd(lr), 4).gradient_transformation(), (), used(*range(10))),
    "accumulated, as an object": (lambda lr: optax.MultiSteps(optax.sgd(lr), 4), (), used(*range(10))),
    "if finite": (lambda lr: optax.apply_if_finite(optax.sgd(lr), 100), range(5, 15), used(*range(30))),
    "injected inside": (lambda lr: optax.MultiSteps(optax.inject_hyperparams(optax.sgd)(lr), 4), (), used(*range(10))),
    "injected outside": (
        lambda lr: optax.inject_hyperparams(lambda rate: optax.apply_if_finite(optax.sgd(rate), 100))(lr),
        range(5, 15),
        used(*range(5), *range(15, STEPS)),
    ),
    "the rate behind": (
        lambda lr: optax.chain(
            optax.MultiSteps(optax.identity(), 4).gradient_transformation(), optax.scale_by_learning_rate(lr)
        ),
        (),
        used(*range(3, STEPS, 4)),
    ),
    "both": (  # a mean that was not finite once stays so
        lambda lr: optax.MultiSteps(optax.apply_if_finite(optax.sgd(lr), 100), 2), range(6, 14), used(*range(3))
    ),
    "every third": (
        lambda lr: optax.conditionally_mask(optax.sgd(lr), lambda step: step % 3 == 0), (), used(*range(14))
    ),
    "schedule-free": (lambda lr: optax.chain(optax.sgd(lr)), (), FALLING),
    "no look-up": (lambda lr: optax.MultiSteps(optax.scale(-1.0), 4), (), None),
}  # fmt: skip


@pytest.mark.parametrize("name", SKIPPING)
def test_time_is_the_sum_of_the_rates_that_were_used(name):
    """(wrong before 0.2)"""
    optimizer, bad, rates = SKIPPING[name]
    run = record(jax.random.key(0), line(tuple(bad)), optimizer, FALLING, [0, 1, 8, 16, 27, STEPS])
    if rates is None:  # without a look-up the run's own table counts, at the steps that were taken
        np.testing.assert_allclose(run.time[-1], FALLING[3::4].sum(), rtol=1e-6)
        return
    np.testing.assert_allclose(run.time, -run.weights[:, 0], atol=4e-6)
    np.testing.assert_allclose(run.time[-1], rates.sum(), rtol=1e-6)
    assert run.learning_rate[-1] == pytest.approx(rates[-1], abs=1e-7)
    np.testing.assert_array_equal(run.step, [0, 1, 8, 16, 27, STEPS])
    if name == "the rate behind":  # the last of the first 27 steps that was taken is the 24th
        assert run.learning_rate[-2] == pytest.approx(FALLING[23], abs=1e-7)


def test_the_clocks_of_the_report():
    """8.846 and 18.846, with the rate .769 at the end of the first (wrong before 0.2)"""
    keys = jax.random.split(jax.random.key(0), 2)
    accumulated = record(keys, line(), SKIPPING["accumulated"][0], FALLING, [0, STEPS])
    np.testing.assert_allclose(accumulated.time[:, 1], 8.846, atol=5e-4)
    np.testing.assert_allclose(accumulated.learning_rate, [[1, 0.769], [1, 0.769]], atol=5e-4)
    finite = record(keys, line(tuple(range(5, 15))), SKIPPING["if finite"][0], FALLING, [0, STEPS])
    np.testing.assert_allclose(finite.time[:, 1], 18.846, atol=5e-4)


def test_sam_in_transparent_mode_takes_every_second_step():
    """(wrong before 0.2)"""
    sam = lambda lr: optax.contrib.sam(optax.sgd(lr), optax.sgd(0.05), sync_period=2)
    run = record(jax.random.key(0), line(), sam, FALLING, [0, 1, 2, STEPS])
    np.testing.assert_allclose(run.time, [0, 0, 1, FALLING[:20].sum()], rtol=1e-6)
    np.testing.assert_allclose(run.weights[-1], -FALLING[:20].sum(), rtol=1e-5)


def test_parts_with_counters_of_their_own_share_the_clock_of_the_one_that_is_ahead():
    parts = lambda lr: optax.partition(
        {"a": optax.sgd(lr), "b": optax.MultiSteps(optax.sgd(lr), 2).gradient_transformation()}, {"x": "b", "y": "a"}
    )
    rates = np.linspace(0.2, 0, 10)
    run = record(jax.random.key(0), BOWL, parts, rates, [0, 4, 10])
    np.testing.assert_allclose(run.time, [0, rates[:4].sum(), rates.sum()], rtol=1e-6)


def test_an_optimizer_that_chooses_its_rates_keeps_its_own_time():
    """(wrong before 0.2)"""
    run = record(jax.random.key(0), BOWL, lambda lr: optimizers.embedded_runge_kutta(3.0), FALLING, [0, 1, 2, 12])
    transform, weights = optimizers.embedded_runge_kutta(3.0), BOWL.init(None)
    state, draws, times = transform.init(weights), BOWL.draws(None, 12), [0.0]

    @jax.jit
    def step(weights, state, draw):
        gradient = lambda w: jax.grad(BOWL.loss)(w, None, draw)
        updates, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        return optax.apply_updates(weights, updates), state

    for draw in draws:
        weights, state = step(weights, state, draw)
        times.append(float(state.time))
    assert int(state.refused) >= 1
    np.testing.assert_allclose(run.time, np.array(times)[[0, 1, 2, 12]], rtol=1e-4)
    assert run.learning_rate[-1] == pytest.approx(max(np.diff(times)[np.diff(times) > 0][-1], 0), rel=1e-3)


# --- extra arguments ----------------------------------------------------------------------------------------------------


def plain_loop(task, optimizer, rates):
    """What a user of optax writes."""
    weights, draws = task.init(None), task.draws(None, len(rates))
    transform = optimizer(lambda count: jnp.asarray(rates, jnp.float32)[count])
    transform = transform if isinstance(transform, optax.MultiSteps) else optax.with_extra_args_support(transform)
    alone = "opaque" in optimizer.__name__

    @jax.jit
    def step(weights, state, draw):
        value_fn = lambda w: task.loss(w, None, draw)
        value, grad = jax.value_and_grad(value_fn)(weights)
        grad_fn = WholeGradient(lambda w, *_: jax.grad(value_fn)(w), weights)
        more = {"value": value, "grad": grad, "value_fn": value_fn} if optimizer.__name__ in NEEDY else {}
        more |= {"grad_fn": grad_fn} if optimizer.__name__ not in NEEDY or alone else {}
        updates, state = transform.update(grad, state, weights, **more)
        return optax.apply_updates(weights, updates), state

    state, path = transform.init(weights), [ravel(weights)]
    for draw in draws:
        weights, state = step(weights, state, draw)
        path.append(ravel(weights))
    return np.array(path)


def lbfgs(lr):
    return optax.lbfgs(lr, memory_size=3)


def polyak(lr):
    return optax.polyak_sgd(scaling=lr)


def backtracking(lr):
    return optax.chain(optax.sgd(lr), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5))


def plateau(lr):
    return optax.chain(optax.adam(lr), optax.contrib.reduce_on_plateau(patience=1, cooldown=1))


def momo(lr):
    return optax.contrib.momo(lr)


NEEDY = ("lbfgs", "polyak", "backtracking", "plateau", "momo")


def opaque_sam(lr):
    return optax.contrib.sam(optax.sgd(lr), optax.sgd(0.05), opaque_mode=True)


def opaque_sam_in_a_chain(lr):
    return optax.chain(optax.contrib.sam(optax.sgd(lr), optax.sgd(0.05), opaque_mode=True), optax.clip(1.0))


def accumulated_heun(lr):
    return optax.MultiSteps(optimizers.heun(lr), 1)


def masked_heun(lr):
    return optax.chain(
        optax.masked(optimizers.heun(lr), {"x": True, "y": False}),
        optax.masked(optax.scale(-0.1), {"x": False, "y": True}),
    )


def partition(lr):
    return optax.partition(
        {"a": optimizers.explicit_runge_kutta(lr, EXTRAGRADIENT), "b": optax.sgd(lr)}, {"x": "a", "y": "b"}
    )


def flat_joint(lr):
    return optax.flatten(optimizers.joint_runge_kutta(optax.adam(lr)))


EVERY = [lbfgs, polyak, backtracking, plateau, momo, opaque_sam, opaque_sam_in_a_chain]
EVERY += [accumulated_heun, masked_heun, partition, flat_joint]


@pytest.mark.filterwarnings("ignore:optimizer")  # L-BFGS, and others, keep what is no slot
@pytest.mark.parametrize("optimizer", EVERY, ids=lambda optimizer: optimizer.__name__)
def test_it_is_the_loop_of_optax(optimizer):
    """(wrong before 0.2)"""
    rates = np.linspace(0.3, 0.0, 8)
    runs = record(jax.random.split(jax.random.key(0), 2), BOWL, optimizer, rates, range(9), keep=("weights",))
    path = plain_loop(BOWL, optimizer, rates)
    np.testing.assert_allclose(runs.weights, np.stack([path, path]), rtol=1e-5, atol=1e-6)
    assert np.abs(path[-1] - path[0]).max() > 0.1


# --- methods with several stages inside wrappers -----------------------------------------------------------------------


def test_extragradient_of_a_part_by_hand():
    """x by w - lr g(w - lr g(w)), y by w - lr g(w), on x^2 / 2 + y^2 / 2 (wrong before 0.2)"""
    loss = lambda weights, data, draw: 0.5 * (weights["x"] ** 2 + weights["y"] ** 2)
    start = {"x": jnp.float32(1.0), "y": jnp.float32(1.0)}
    task = Task({}, lambda key, variety=None: start, lambda key, n, variety=None: jnp.zeros(n), loss, None)
    run = record(jax.random.key(0), task, partition, np.full(5, 0.1), [0, 5])
    np.testing.assert_allclose(run.weights[-1], [(1 - 0.1 + 0.01) ** 5, 0.9**5], rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [optimizers.heun, optimizers.midpoint, optimizers.rk4, optimizers.joint_runge_kutta],
    ids=lambda method: method.__name__,
)
@pytest.mark.parametrize("wrap", ["masked", "frozen", "flat", "accumulated"])
def test_a_users_loop_hands_over_the_whole_gradient(method, wrap):
    """(wrong before 0.2)"""
    own = method(0.1) if method is not optimizers.joint_runge_kutta else method(optax.adam(0.1))
    wrapped = {
        "masked": lambda: optax.masked(own, {"x": True, "y": True}),
        "frozen": lambda: optax.partition({"t": own, "f": optax.set_to_zero()}, {"x": "t", "y": "f"}),
        "flat": lambda: optax.flatten(own),
        "accumulated": lambda: optax.MultiSteps(own, 1),
    }[wrap]()
    params = BOWL.init(None)
    grad_fn = jax.grad(lambda w: BOWL.loss(w, None, 1.0))
    update = lambda t: t.update(
        grad_fn(params), t.init(params), params, grad_fn=WholeGradient(grad_fn, params)
    )[0]  # fmt: skip
    found, expected = update(wrapped), update(own)
    if wrap == "frozen":  # stages see the other part where it is
        np.testing.assert_array_equal(found["y"], 0)
        of_x = lambda x: grad_fn({"x": x["x"], "y": params["y"]}) | {"y": jnp.zeros((2, 1))}
        expected = own.update(
            of_x(params), own.init(params), params, grad_fn=lambda w: of_x({"x": w["x"], "y": params["y"]})
        )[0]
    np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-5)


def test_without_it_a_sentence_says_what_to_do():
    """(wrong before 0.2)"""
    params, grad_fn = BOWL.init(None), jax.grad(lambda w: BOWL.loss(w, None, 1.0))
    for wrapped in (
        optax.masked(optimizers.heun(0.1), {"x": True, "y": False}),
        optax.partition({"a": optimizers.rk4(0.1), "b": optax.sgd(0.1)}, {"x": "a", "y": "b"}),
        optax.flatten(optimizers.joint_runge_kutta(optax.sgd(0.1))),
        optax.masked(optimizers.embedded_runge_kutta(0.1), {"x": True, "y": False}),
    ):
        with pytest.raises(ValueError, match=r"grad_fn: .*hand over grad_fn=WholeGradient\(grad_fn, params\)"):
            wrapped.update(grad_fn(params), wrapped.init(params), params, grad_fn=grad_fn)
    with pytest.raises(ValueError, match=r"optax\.flatten must stand outside"):
        WholeGradient(grad_fn, params)(jnp.ones(2))


def test_an_optimizer_with_a_random_key_in_its_state():
    """(wrong before 0.2): its key was taken for a number."""
    noisy = lambda lr: optax.noisy_sgd(lr, key=3)
    run = record(jax.random.key(0), line(), noisy, np.full(4, 0.1), [0, 4])
    optimizer, params = noisy(0.1), {"w": jnp.zeros(())}
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update({"w": jnp.ones(())}, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(run.weights[-1], params["w"][None], rtol=1e-5)


# --- what cannot be recorded ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda lr: optax.lookahead(optax.adam(lr), 5, 0.5), "optimizer: .*optax.lookahead"),
        (optax.rprop, "optimizer: expected a function of the learning rate, a schedule; got TypeError"),
        (lambda lr: optax.contrib.differentially_private_aggregate(1.0, 1.0, jax.random.key(0)), "optimizer: expected"),
        (lambda lr: optax.GradientTransformation(lambda w: (), lambda g, s, w=None: (g["x"], s)), "updates like the"),
        (lambda lr: optax.GradientTransformation(lambda w: (), lambda g, s, w=None: (g, (*s, 1))), "keeps its form"),
        (optax.MultiSteps(optax.sgd(0.1), 2), "optimizer: expected a function of the learning rate, .* got MultiSteps"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused_before_anything_compiles(optimizer, message):
    """(wrong before 0.2)"""
    traced = []
    task = BOWL._replace(loss=lambda *args: traced.append(args))
    for call, keys in ((record, jax.random.key(0)), (record, jax.random.split(jax.random.key(0), 2))):
        with pytest.raises(ValueError, match=message):
            call(keys, task, optimizer, np.full(5, 0.1), [0, 5])
    assert not traced


def test_a_state_that_could_not_be_recorded_is_named():
    """(wrong before 0.2)"""
    bare = lambda lr: optax.GradientTransformation(lambda w: w, lambda g, s, w=None: (g, g))
    call = functools.partial(record, jax.random.key(0), BOWL, bare, np.full(2, 0.1), [0, 2])
    with pytest.warns(UserWarning, match=r"optimizer: \(no name\) of its state is shaped like some of the weights"):
        assert call().state == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(keep=("weights",))
        record(jax.random.key(0), BOWL, optax.contrib.muon, np.full(2, 0.1), [0, 2])


def test_slots_of_a_partition_are_recorded():
    """Of one run under Adam and under a partition into two (wrong before 0.2)"""
    rates = np.linspace(0.1, 0, 6)
    two = lambda lr: optax.partition({"a": optax.adam(lr), "b": optax.adam(lr)}, {"x": "b", "y": "a"})
    run = functools.partial(record, jax.random.key(0), BOWL, learning_rates=rates, saves=[0, 3, 6])
    plain, parts = run(optax.adam), run(two)
    np.testing.assert_allclose(parts.weights, plain.weights, rtol=1e-6)
    assert set(parts.state) == {"mu", "nu"}
    for slot in ("mu", "nu"):
        np.testing.assert_allclose(parts.state[slot], plain.state[slot], rtol=1e-6)
