"""A run of one's own, watched by its optimizer: what is kept, in which memory, and inside which wrappers."""

import functools
import itertools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import gfm_jax as gfm
from gfm_jax.runs.watch import OPTIONAL

WEIGHTS = {"head": {"bias": jnp.ones(4)}, "kernel": jnp.arange(6.0).reshape(3, 2) / 3}
SCHEDULE = optax.linear_schedule(0.1, 0.01, 50)


def loss(weights, i):
    return ((weights["kernel"] - i / 10) ** 2).sum() + (weights["head"]["bias"] ** 2 * (1 + i % 3)).sum()


@functools.partial(jax.jit, static_argnums=0)
def step(optimizer, weights, state, i):
    value, gradient = jax.value_and_grad(loss)(weights, i)
    updates, state = optimizer.update(gradient, state, weights, value=value)
    return optax.apply_updates(weights, updates), state, value, gradient


def train(optimizer, num_steps, weights=WEIGHTS, state=None, begin=0):
    state = optimizer.init(weights) if state is None else state
    path = [gfm.ravel(weights)]
    for i in range(begin, num_steps):
        weights, state, *_ = step(optimizer, weights, state, i)
        path.append(gfm.ravel(weights))
    return weights, state, np.array(path)


@pytest.mark.parametrize("num_steps", [1, 7, 8, 9, 50, 77])
def test_what_is_kept_is_what_was(num_steps):
    """Weights, means, slots, losses and clock at every save, against the whole run kept by hand."""
    optimizer = gfm.watch(optax.adam(SCHEDULE), SCHEDULE, num_saves=8, keep=OPTIONAL, dtype=jnp.float32)
    weights, state = WEIGHTS, optimizer.init(WEIGHTS)
    slots = lambda: {name: gfm.ravel(slot) for name, slot in gfm.optimizer_slots(state.inner_state, weights).items()}
    path, states, losses, gradients = [gfm.ravel(weights)], [slots()], [], []
    for i in range(num_steps):
        weights, state, value, gradient = step(optimizer, weights, state, i)
        (
            losses.append(value),
            gradients.append(gfm.ravel(gradient)),
            path.append(gfm.ravel(weights)),
            states.append(slots()),
        )
    path, losses, gradients = np.array(path), np.array(losses), np.array(gradients)

    run = gfm.trajectory(state, weights)
    steps = np.asarray(run.step)
    segments = list(itertools.pairwise(steps))
    rates = np.array([SCHEDULE(i) for i in range(num_steps)])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(run.weights, path[steps])
    close(run.time, np.concatenate([[0], np.cumsum(rates)])[steps])
    close(run.learning_rate, rates[np.maximum(steps - 1, 0)])
    close(run.loss, [losses[0], *(losses[a:b].mean() for a, b in segments)])
    close(run.gradient, [gradients[0], *(gradients[a:b].mean(0) for a, b in segments)], atol=1e-5)
    close(run.mean_weights, [path[0], *(path[a + 1 : b + 1].mean(0) for a, b in segments)])
    for name in ("mu", "nu"):
        close(run.state[name], [states[k][name] for k in steps])
    assert run.layout.names == ("head/bias", "kernel")
    assert bool(run.finite)


def test_the_history_stays_evenly_spread_in_fixed_memory():
    optimizer = gfm.watch(optax.sgd(0.0), 0.0, num_saves=8)
    state = optimizer.init(WEIGHTS)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    after = jax.jit(lambda state: optimizer.update(WEIGHTS, state, WEIGHTS)[1])
    for count in range(1, 200):
        state = after(state)
        steps = np.asarray(gfm.trajectory(state).step)
        assert len(steps) == count if count <= 8 else 4 < len(steps) <= 8
        assert len(set(np.diff(steps))) <= 1
        assert steps[0] == 0
        assert count - 1 - steps[-1] < max(np.diff(steps), default=1)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.watched.rows)) == 2 * 8 * 10


def test_it_changes_no_update():
    for plain in (optax.adamw(1e-2), optax.lbfgs()):
        watched = gfm.watch(plain)
        fn = functools.partial(loss, i=1)
        value, gradient = jax.value_and_grad(fn)(WEIGHTS)
        extra = {"value": value, "grad": gradient, "value_fn": fn}
        one = watched.update(gradient, watched.init(WEIGHTS), WEIGHTS, **extra)
        other = optax.with_extra_args_support(plain).update(gradient, plain.init(WEIGHTS), WEIGHTS, **extra)
        for a, b in zip(*(jax.tree.leaves(tree) for tree in ((one[0], one[1].inner_state), other)), strict=True):
            np.testing.assert_array_equal(a, b)


def inject(learning_rate):
    return gfm.watch(optax.adam(learning_rate), learning_rate)


WRAPPED = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), gfm.watch(optax.adam(0.1), 0.1)),
    "around a chain": gfm.watch(optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)), 0.1),
    "inside inject_hyperparams": optax.inject_hyperparams(inject)(learning_rate=0.1),
    "around inject_hyperparams": gfm.watch(optax.inject_hyperparams(optax.adam)(0.1)),
    "scaled afterwards": optax.chain(gfm.watch(optax.sgd(0.1), 0.1), optax.scale(0.5)),
    "around masked": gfm.watch(optax.masked(optax.sgd(0.1), {"head": {"bias": False}, "kernel": True}), 0.1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_inside_and_around_wrappers(name):
    weights, state, path = train(WRAPPED[name], 9)
    run = gfm.trajectory(state, weights)
    assert run.step.tolist() == list(range(10))
    np.testing.assert_allclose(run.weights, path, rtol=1e-2, atol=1e-2)  # bfloat16 of the way from the start
    np.testing.assert_allclose(run.time, 0.1 * np.arange(10), rtol=1e-5)
    assert np.isfinite(run.loss).all()


@pytest.mark.parametrize("where", ["inside", "around", "around inject_hyperparams"])
def test_steps_are_updates_that_are_taken(where):
    """`MultiSteps` takes one of four: the clock, the schedule and the saves go by these."""
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    optimizer = {
        "inside": lambda: optax.MultiSteps(gfm.watch(optax.sgd(schedule), schedule), 4),
        "around": lambda: gfm.watch(optax.MultiSteps(optax.sgd(schedule), 4), schedule),
        "around inject_hyperparams": lambda: gfm.watch(
            optax.MultiSteps(optax.inject_hyperparams(optax.sgd)(schedule), 4)
        ),
    }[where]()
    weights, state, path = train(optimizer, 12)
    run = gfm.trajectory(state, weights)
    assert run.step.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(run.weights, path[::4], rtol=1e-2, atol=2e-2)
    np.testing.assert_allclose(run.time, np.concatenate([[0], np.cumsum([schedule(i) for i in range(3)])]), rtol=1e-5)
    np.testing.assert_allclose(run.learning_rate, [schedule(i) for i in (0, 0, 1, 2)], rtol=1e-5)


def test_losses_of_accumulated_minibatches_are_averaged():
    optimizer = gfm.watch(optax.MultiSteps(optax.sgd(0.1), 4), 0.1)
    weights, state = WEIGHTS, optimizer.init(WEIGHTS)
    for i in range(12):
        _, state = optimizer.update(WEIGHTS, state, weights, value=float(i))
    assert gfm.trajectory(state, weights).loss.tolist() == [0, 1.5, 5.5, 9.5]


def test_updates_that_were_not_finite_are_no_steps():
    optimizer = gfm.watch(optax.apply_if_finite(optax.adam(0.1), 5), 0.1)
    weights, state = WEIGHTS, optimizer.init(WEIGHTS)
    for i in range(6):
        gradient = jax.tree.map(lambda leaf, i=i: leaf * (jnp.nan if i in (1, 2) else 1.0), WEIGHTS)
        updates, state = optimizer.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
    run = gfm.trajectory(state, weights)
    assert run.step.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(run.time, 0.1 * np.arange(5), rtol=1e-5)


def test_a_schedule_of_inject_hyperparams():
    weights, state, _ = train(gfm.watch(optax.inject_hyperparams(optax.adam)(SCHEDULE)), 9)
    rates = np.array([SCHEDULE(i) for i in range(9)])
    np.testing.assert_allclose(gfm.trajectory(state, weights).time, np.concatenate([[0], np.cumsum(rates)]), rtol=1e-5)


def test_frozen_parts_are_left_out():
    parts = {"head": {"bias": "frozen"}, "kernel": "trained"}
    transforms = {"trained": gfm.watch(optax.sgd(0.1), 0.1), "frozen": optax.set_to_zero()}
    weights, state, path = train(optax.partition(transforms, parts), 5)
    for given in (weights, {"kernel": weights["kernel"]}):
        run = gfm.trajectory(state, given)
        assert run.layout.names == ("kernel",)
        np.testing.assert_allclose(run.weights, path[:, 4:], rtol=1e-2)
    two = optax.partition({"trained": gfm.watch(optax.sgd(0.1), 0.1), "frozen": gfm.watch(optax.sgd(0.0), 0.0)}, parts)
    _, state, _ = train(two, 2)
    with pytest.raises(
        ValueError, match=r"got 2, of parts of the weights; hand over that of one part, such as opt_state"
    ):
        gfm.trajectory(state)
    assert gfm.trajectory(state.inner_states["trained"]).layout.names == ("kernel",)


def test_inside_scan_and_vmap():
    optimizer = gfm.watch(optax.adam(0.1), 0.1, num_saves=4)

    def whole(weights):
        def body(carry, i):
            return step(optimizer, *carry, i)[:2], None

        return jax.lax.scan(body, (weights, optimizer.init(weights)), jnp.arange(21))[0]

    weights, state = jax.jit(whole)(WEIGHTS)
    by_hand = train(optimizer, 21)
    np.testing.assert_allclose(
        gfm.trajectory(state, weights).weights, gfm.trajectory(*by_hand[1::-1]).weights, rtol=1e-5
    )
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), WEIGHTS)
    found, states = jax.jit(jax.vmap(whole))(many)
    runs = gfm.trajectory(states, found)
    assert runs.layout == gfm.layout_of(WEIGHTS)
    for i in range(2):
        _, alone = whole(jax.tree.map(lambda leaf, i=i: leaf[i], many))
        run = gfm.trajectory(jax.tree.map(lambda leaf, i=i: leaf[i], states))
        np.testing.assert_allclose(run.weights, gfm.trajectory(alone).weights, rtol=1e-5)
        np.testing.assert_allclose(runs.weights[i, :-1], run.weights, rtol=1e-6)
        np.testing.assert_allclose(runs.loss[i, :-1], run.loss, rtol=1e-6)


def test_a_donated_state():
    optimizer = gfm.watch(optax.adam(0.1), 0.1)
    once = jax.jit(lambda weights, state: step(optimizer, weights, state, 1)[:2], donate_argnums=(0, 1))
    carry = jax.tree.map(jnp.copy, WEIGHTS)
    carry = carry, optimizer.init(carry)
    for _ in range(3):
        carry = once(*carry)
    assert gfm.trajectory(carry[1], carry[0]).step.tolist() == [0, 1, 2, 3]


def test_weights_divided_over_devices_stay_so():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    over = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    start = {"head": {"bias": jnp.ones(4)}, "kernel": jnp.arange(8.0).reshape(4, 2)}
    divided = jax.device_put(start, {"head": {"bias": over("x")}, "kernel": over("x", None)})
    optimizer = gfm.watch(optax.adam(0.1), 0.1, num_saves=4, keep=OPTIONAL)
    weights, state, _ = train(optimizer, 11, divided)
    assert state.watched.rows["weights"]["kernel"].sharding.is_equivalent_to(over(None, "x", None), 3)
    whole_weights, whole, _ = train(optimizer, 11, start)
    one, other = gfm.trajectory(state, weights), gfm.trajectory(whole, whole_weights)
    for a, b in zip(*(jax.tree.leaves(run._replace(layout=None)) for run in (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(jax.nn.relu(self.norm(self.hidden(x))))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gfm.watch(optax.adam(0.1), 0.1, keep=("state",)), wrt=nnx.Param)

    @nnx.jit
    def once(model, optimizer):
        value, gradient = nnx.value_and_grad(lambda model: jnp.mean(model(jnp.ones((5, 3))) ** 2))(model)
        optimizer.update(model, gradient, value=value)

    path = [gfm.ravel(nnx.state(model, nnx.Param))]
    for _ in range(5):
        once(model, optimizer)
        path.append(gfm.ravel(nnx.state(model, nnx.Param)))
    for state in (optimizer.opt_state, nnx.state(optimizer)):
        run = gfm.trajectory(state, nnx.state(model, nnx.Param))
        np.testing.assert_allclose(run.weights, np.array(path), rtol=1e-2, atol=5e-3)
        assert run.layout == gfm.layout_of(nnx.state(model, nnx.Param))
        assert set(run.state) == {"mu", "nu"}
        assert np.isfinite(run.loss).all()


@pytest.mark.parametrize("with_target", [True, False])
def test_an_orbax_checkpoint_in_the_middle(tmp_path, with_target):
    optimizer = optax.chain(optax.clip(10.0), gfm.watch(optax.adam(0.1), 0.1, num_saves=4, keep=OPTIONAL))
    weights, state, _ = train(optimizer, 30)
    half_way, half, _ = train(optimizer, 13)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", half if with_target else None)
    if with_target:
        weights_again, again, _ = train(optimizer, 30, half_way, restored, begin=13)
        for one, other in zip(*map(jax.tree.leaves, ((weights, state), (weights_again, again))), strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        one, other = gfm.trajectory(restored, half_way), gfm.trajectory(half, half_way)
        assert one.layout == other.layout
        for a, b in zip(
            jax.tree.leaves(one._replace(layout=None)), jax.tree.leaves(other._replace(layout=None)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_a_restored_list_of_many_layers(tmp_path):
    """msgpack and orbax bring a list back as a dict of numbers, "10" before "2"."""
    weights = [jnp.full(2, float(k)) for k in range(12)]
    optimizer = gfm.watch(optax.adam(0.1), 0.1, keep=("state",))
    state = optimizer.init(weights)
    for _ in range(3):
        _updates, state = optimizer.update(weights, state, weights)
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))
    one, other = gfm.trajectory(restored, weights), gfm.trajectory(state, weights)
    assert one.layout == other.layout
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(one.state["mu"], other.state["mu"])


def test_half_precision_keeps_small_motions():
    """Saves hold the way from the first weights: bfloat16 of the weights themselves would lose a motion of a thousandth."""
    weights = {"w": jnp.full(64, 100.0)}
    optimizer = gfm.watch(optax.sgd(1.0), 1.0)
    state = optimizer.init(weights)
    for _ in range(4):
        updates, state = optimizer.update({"w": jnp.full(64, 1e-3)}, state, weights)
        weights = optax.apply_updates(weights, updates)
    moved = np.asarray(gfm.trajectory(state).weights - 100.0)
    np.testing.assert_allclose(moved[:, 0], -1e-3 * np.arange(4), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_precision(dtype):
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype), WEIGHTS)
    optimizer = gfm.watch(optax.sgd(0.1), 0.1, keep=("mean_weights", "gradient"))
    weights, state, path = train(optimizer, 5, weights)
    run = gfm.trajectory(state, weights)
    np.testing.assert_allclose(run.weights, path.astype(np.float32), rtol=2e-2, atol=2e-2)
    assert run.weights.dtype == jnp.float32


def test_without_rates_the_clock_is_the_number_of_steps():
    weights, state, _ = train(gfm.watch(optax.sgd(0.1)), 6)
    with pytest.warns(
        UserWarning, match="learning_rate: not known to `watch`; the clock of the run is its number of steps"
    ):
        run = gfm.trajectory(state, weights)
    assert run.time is None
    assert run.learning_rate is None
    ahead = gfm.forecast(gfm.forecasting.baselines.linear("step"), (), run, until=12)
    assert np.isfinite(ahead.weights).all()


def test_a_watched_run_is_forecast_as_a_recorded_one(key):
    task = gfm.linear_regression(key, 20, 3)
    recorded = gfm.record(key, task, optax.adam, jnp.full(8, 0.1), range(9))
    optimizer = gfm.watch(optax.adam(0.1), 0.1, dtype=jnp.float32, keep=OPTIONAL)
    key_init, key_draws = jax.random.split(key)
    weights, draws = task.init(key_init, None), task.draws(key_draws, 8, None)
    state = optimizer.init(weights)
    for i in range(8):
        draw = jax.tree.map(lambda leaf, i=i: leaf[i], draws)
        value, gradient = jax.value_and_grad(task.loss)(weights, task.data, draw)
        updates, state = optimizer.update(gradient, state, weights, value=value)
        weights = optax.apply_updates(weights, updates)
    run = gfm.trajectory(state, weights)
    for part in ("weights", "mean_weights", "gradient", "learning_rate", "loss", "time"):
        np.testing.assert_allclose(getattr(run, part), getattr(recorded, part), rtol=1e-4, atol=1e-6, err_msg=part)
    for one, other in zip(jax.tree.leaves(run.state), jax.tree.leaves(recorded.state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    forecaster = gfm.forecasting.baselines.log_time()
    one, other = (gfm.forecast(forecaster, (), each, until=20).weights for each in (run, recorded))
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gfm.watch(optax.adam), "optimizer: expected an optax transformation.*got a function; call it"),
        (lambda: gfm.watch(3), "optimizer: expected an optax transformation.*got int"),
        (lambda: gfm.watch(optax.sgd(0.1), num_saves=7), "num_saves: expected an even number from 4 on, got 7"),
        (lambda: gfm.watch(optax.sgd(0.1), num_saves=2), "num_saves: expected an even number"),
        (lambda: gfm.watch(optax.sgd(0.1), keep="state"), "keep: expected a sequence of parts"),
        (lambda: gfm.watch(optax.sgd(0.1), keep=("slots",)), "keep: .*got slots"),
        (lambda: gfm.watch(optax.sgd(0.1), dtype=jnp.int8), "dtype: expected bfloat16 or float32"),
        (lambda: gfm.watch(optax.sgd(0.1), -0.1), "learning_rate: expected a schedule, or a finite number"),
        (lambda: gfm.watch(optax.sgd(0.1), [0.1, 0.2]), "learning_rate: expected a schedule"),
        (lambda: gfm.watch(optax.sgd(0.1)).init({"n": jnp.arange(3)}), "params: expected real floating-point arrays"),
        (
            lambda: gfm.watch(optax.sgd(0.1)).init({"params": WEIGHTS, "batch_stats": WEIGHTS}),
            "params: expected parameters alone, got the collections batch_stats",
        ),
        (
            lambda: gfm.watch(optax.sgd(0.1)).update(WEIGHTS, gfm.watch(optax.sgd(0.1)).init(WEIGHTS)),
            "params: expected the weights",
        ),
        (
            lambda: gfm.watch(optax.sgd(0.1)).update(WEIGHTS, optax.sgd(0.1).init(WEIGHTS), WEIGHTS),
            "state: expected what `init` of the watched optimizer returned, got tuple",
        ),
        (
            lambda: gfm.watch(optax.sgd(0.1)).update(WEIGHTS, gfm.watch(optax.sgd(0.1)).init(WEIGHTS), {"w": jnp.ones(3)}),
            "params: expected the weights that `init` was given, got a tree of another structure",
        ),
        (
            lambda: gfm.watch(optax.sgd(0.1)).update(
                WEIGHTS, gfm.watch(optax.sgd(0.1)).init(WEIGHTS), WEIGHTS, value=jnp.ones(3)
            ),
            r"value: expected the loss, a scalar, got shape \(3,\)",
        ),
        (lambda: gfm.watch(optax.sgd(0.1), "0.1"), "learning_rate: expected a schedule, or a finite number"),
        (lambda: gfm.trajectory(WEIGHTS, gfm.watch(optax.sgd(0.1)).init(WEIGHTS)), "got none; the state comes first"),
        (lambda: gfm.trajectory(optax.adam(0.1).init(WEIGHTS)), "opt_state: expected the state of an opt.*, got none"),
        (lambda: gfm.trajectory(gfm.watch(optax.sgd(0.1)).init(WEIGHTS)), "expected the state of at least one update"),
        (lambda: gfm.trajectory(train(gfm.watch(optax.sgd(0.1)), 2)[1], {"w": jnp.ones(3)}), "weights: expected those"),
        (
            lambda: jax.jit(gfm.trajectory)(train(gfm.watch(optax.sgd(0.1)), 2)[1]),
            "opt_state: expected known values, got traced ones",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
