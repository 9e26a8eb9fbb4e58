import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import small_task

from gfm_jax.pytrees import map_rows, ravel
from gfm_jax.tasks import linear_regression, minibatch_indices, quadratic
from gfm_jax.trajectories import PARTS, record, record_many, save_steps
from gfm_jax.trajectories import recorder as recorder_module

OPTIMIZERS = {
    "sgd": (optax.sgd, ()),
    "momentum": (functools.partial(optax.sgd, momentum=0.9), ("trace",)),
    "adam": (optax.adam, ("mu", "nu")),
    "rmsprop": (optax.rmsprop, ("nu",)),
    "clipped": (lambda rate: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate)), ("mu", "nu")),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("x64")
def test_equals_a_plain_optax_loop(name):
    optimizer, slots = OPTIMIZERS[name]
    task = small_task.__wrapped__()
    double = functools.partial(jax.tree.map, lambda x: x.astype(float) if x.dtype.kind == "f" else x)
    init = task.init
    task = task._replace(data=double(task.data), init=lambda key, variety=None: double(init(key, variety)))
    key, saves = jax.random.key(3), np.array([0, 1, 5, 12, 20])
    rates = jnp.asarray(optax.cosine_decay_schedule(0.05, 20)(np.arange(20)))
    run = record(key, task, optimizer, rates, saves, dtype=jnp.float64)

    key_init, key_draws = jax.random.split(key)
    weights, draws = task.init(key_init), task.draws(key_draws, 20)
    transform = optimizer(lambda count: rates[count])
    state, path, gradients, losses = transform.init(weights), [ravel(weights)], [], []
    for k in range(20):
        draw = jax.tree.map(lambda leaf, k=k: leaf[k], draws)
        loss, gradient = jax.value_and_grad(task.loss)(weights, task.data, draw)
        updates, state = transform.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        path.append(ravel(weights)), gradients.append(ravel(gradient)), losses.append(loss)
    path, gradients, losses = np.array(path), np.array(gradients), np.array(losses)

    np.testing.assert_allclose(run.weights, path[saves], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.time, np.concatenate([[0], np.cumsum(rates)])[saves], rtol=1e-12)
    segments = list(itertools.pairwise(saves))
    np.testing.assert_allclose(run.mean_weights[1:], [path[a + 1 : b + 1].mean(0) for a, b in segments], rtol=1e-8)
    np.testing.assert_allclose(run.gradient[1:], [gradients[a:b].mean(0) for a, b in segments], rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(run.loss[1:], [losses[a:b].mean() for a, b in segments], rtol=1e-9)
    np.testing.assert_allclose(run.mean_weights[0], path[0])
    np.testing.assert_allclose(run.gradient[0], gradients[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.learning_rate[1:], np.array(rates)[saves[1:] - 1])
    assert set(run.state) == set(slots)
    for slot in slots:
        np.testing.assert_allclose(run.state[slot][-1], ravel(optax.tree.get(state, slot)), rtol=1e-8, atol=1e-14)
    assert bool(run.finite)


def test_many_runs_are_single_runs(key):
    task, saves = small_task(), save_steps(12, 4)
    keys, rates = (
        jax.random.split(key, 4),
        np.linspace(0.01, 0.1, 4, dtype=np.float32)[:, None] * np.ones(12, np.float32),
    )
    many = record_many(keys, task, optax.adam, rates, saves)
    chunked = record_many(keys, task, optax.adam, rates, saves, chunk=3)
    for i in range(4):
        one = record(keys[i], task, optax.adam, jnp.asarray(rates[i]), saves)
        chex.assert_trees_all_close(one, jax.tree.map(lambda leaf, i=i: leaf[i], many), rtol=2e-5, atol=2e-6)
    chex.assert_trees_all_close(many, chunked, rtol=2e-5, atol=2e-6)


def test_two_devices_give_the_numbers_of_one(key):
    mesh = jax.make_mesh((2,), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
    task, saves, keys = small_task(), save_steps(12, 4), jax.random.split(key, 4)
    one = record_many(keys, task, optax.adam, np.full(12, 0.01, np.float32), saves)
    two = record_many(keys, task, optax.adam, np.full(12, 0.01, np.float32), saves, mesh=mesh)
    assert len(two.weights.sharding.device_set) == 2
    chex.assert_trees_all_close(one, jax.device_get(two), rtol=2e-5, atol=2e-6)
    with pytest.raises(ValueError, match="mesh"):
        record_many(keys[:3], task, optax.adam, np.full(12, 0.01, np.float32), saves, mesh=mesh)


def test_second_call_compiles_nothing(key):
    task, saves = small_task(), save_steps(6, 2)
    call = lambda seed, rate: record_many(
        jax.random.split(jax.random.key(seed), 3), task, optax.adam, np.full((3, 6), rate, np.float32), saves
    )
    call(0, 0.1)
    before = recorder_module._train_many._cache_size(), recorder_module._start_many._cache_size()
    call(1, 0.2)
    assert (recorder_module._train_many._cache_size(), recorder_module._start_many._cache_size()) == before


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_rounds_and_nothing_else(key, dtype):
    task, saves, rates = small_task(), save_steps(6, 2), jnp.full(6, 0.1)
    full = record(key, task, optax.adam, rates, saves)
    low = record(key, task, optax.adam, rates, saves, dtype=dtype)
    assert low.weights.dtype == dtype
    np.testing.assert_array_equal(np.asarray(low.weights), np.asarray(full.weights.astype(dtype)))


def test_parts_that_are_not_kept_are_absent(key):
    run = record(key, small_task(), optax.adam, jnp.full(6, 0.1), save_steps(6, 2), keep=("weights",))
    assert [name for name in PARTS if getattr(run, name) is not None] == ["weights"]


def test_a_diverged_run_is_a_value():
    task = quadratic(jnp.array([1.0, 100.0]))
    keys, saves = jax.random.split(jax.random.key(0), 2), save_steps(200, 4)
    runs = record_many(keys, task, optax.sgd, np.array([[0.01], [2.0]], np.float32) * np.ones(200, np.float32), saves)
    assert runs.finite.tolist() == [True, False]


def test_variety_reaches_the_task(key):
    run = functools.partial(record, key, small_task(), optax.sgd, jnp.full(4, 0.0), save_steps(4, 2))
    chex.assert_trees_all_close(run(variety={"init_scale": 2.0}).weights, 2 * run().weights, rtol=1e-6)
    noisy = run(variety={"label_noise": 0.9, "data_noise": 0.1})
    assert abs(float(noisy.loss[1] - run().loss[1])) > 1e-3


def test_gradient_descent_on_linear_regression_ends_in_closed_form(key):
    from gfm_jax.tasks import gradient_descent_end

    task = linear_regression(key)
    run = record(key, task, optax.sgd, jnp.full(100, 0.2), save_steps(100, 1))
    expected = gradient_descent_end(task, run.weights[0], 0.2, 100)
    np.testing.assert_allclose(run.weights[-1], expected, atol=1e-5)


def test_minibatches_cover_every_epoch_once(key):
    for num_examples, batch in ((50, 8), (5000, 64)):  # below and above the size at which one word holds key and index
        per_epoch = num_examples // batch
        order = np.asarray(minibatch_indices(key, num_examples, batch, 2 * per_epoch + 1))
        assert order.shape == (2 * per_epoch + 1, batch)
        epochs = order[: 2 * per_epoch].reshape(2, -1)
        for epoch in epochs:
            assert len(set(epoch.tolist())) == per_epoch * batch
            assert epoch.min() >= 0
            assert epoch.max() < num_examples
        assert (epochs[0] != epochs[1]).any()
        np.testing.assert_array_equal(order[:3], minibatch_indices(key, num_examples, batch, 3))


def test_minibatch_order_is_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    first = np.asarray(jax.vmap(lambda key: minibatch_indices(key, 8, 1, 1)[0, 0])(keys))
    counts = np.bincount(first, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3  # chi-squared with 7 degrees of freedom, p = .001


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"optimizer": optax.adam(1e-3)}, "optimizer: expected a function of the learning rate"),
        ({"learning_rate": jnp.float32(0.1)}, "learning_rate: expected that of every step"),
        ({"saves": [0, 4, 3]}, "saves: expected steps increasing"),
        ({"saves": [0, 99]}, "at most 6"),
        ({"saves": [1, 2]}, "saves"),
        ({"keep": ("weights", "wieghts")}, "wieghts"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(key, change, match):
    good = {"optimizer": optax.adam, "learning_rate": jnp.full(6, 0.1), "saves": [0, 3, 6]}
    with pytest.raises(ValueError, match=match):
        record(key, small_task(), **(good | change))


def test_bad_numbers_of_runs(key):
    with pytest.raises(ValueError, match="learning_rate: expected a leading axis of 3 runs"):
        record_many(jax.random.split(key, 3), small_task(), optax.adam, np.ones((2, 6), np.float32), [0, 6])


@pytest.mark.parametrize(("steps", "saves"), [(1000, 20), (100, 60), (10, 10)])
@pytest.mark.parametrize("spacing", ["even", "log"])
def test_save_steps(steps, saves, spacing):
    found = save_steps(steps, saves, spacing)
    assert len(found) == saves + 1
    assert found[0] == 0
    assert found[-1] == steps
    assert (np.diff(found) > 0).all()


def test_save_steps_bad_input():
    with pytest.raises(ValueError, match="num_saves"):
        save_steps(10, 11)
    with pytest.raises(ValueError, match="spacing"):
        save_steps(10, 5, "cubic")


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from(["even", "log"]))
def test_saves_are_where_they_must_be(num_steps, share, spacing):
    num_saves = 1 + round(share * (num_steps - 1))
    saves = save_steps(num_steps, num_saves, spacing)
    assert len(saves) == num_saves + 1
    assert saves[0] == 0
    assert saves[-1] == num_steps
    assert (np.diff(saves) > 0).all()


@pytest.mark.parametrize("num", [1, 3, 8, 11])
def test_rows_are_mapped_in_full_batches(num):
    traces = []

    def double(row):
        traces.append(row)
        return {"a": 2 * row["a"], "sum": row["a"].sum() + row["b"]}

    rows = {"a": np.arange(2.0 * num, dtype=np.float32).reshape(num, 2), "b": np.ones(num, np.float32)}
    found = jax.jit(lambda rows: map_rows(double, rows, 8))(rows)
    np.testing.assert_array_equal(found["a"], 2 * rows["a"])
    np.testing.assert_array_equal(found["sum"], rows["a"].sum(1) + 1)
    assert len(traces) == 1
