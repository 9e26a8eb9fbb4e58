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
from runs import falling_runs, small_task

from gfm_jax.pytrees import map_rows, ravel
from gfm_jax.runs import PARTS, linear_regression, minibatch_indices, quadratic, record, save_steps
from gfm_jax.runs import recorder as recorder_module

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
    many = record(keys, task, optax.adam, rates, saves)
    chunked = record(keys, task, optax.adam, rates, saves, chunk=3)
    for i in range(4):
        one = record(keys[i], task, optax.adam, jnp.asarray(rates[i]), saves)
        chex.assert_trees_all_close(one, jax.tree.map(lambda leaf, i=i: leaf[i], many), rtol=2e-5, atol=2e-6)
    chex.assert_trees_all_close(many, chunked, rtol=2e-5, atol=2e-6)


def test_two_devices_give_the_numbers_of_one(key):
    mesh = jax.make_mesh((2,), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
    task, saves, keys = small_task(), save_steps(12, 4), jax.random.split(key, 4)
    one = record(keys, task, optax.adam, np.full(12, 0.01, np.float32), saves)
    two = record(keys, task, optax.adam, np.full(12, 0.01, np.float32), saves, mesh=mesh)
    assert len(two.weights.sharding.device_set) == 2
    chex.assert_trees_all_close(one, jax.device_get(two), rtol=2e-5, atol=2e-6)
    with pytest.raises(ValueError, match="mesh"):
        record(keys[:3], task, optax.adam, np.full(12, 0.01, np.float32), saves, mesh=mesh)


def test_one_key_for_a_batch_is_split(key):
    task, rates = small_task(), np.full((3, 12), 0.01, np.float32)
    batch = record(key, task, optax.adam, rates, num_saves=4)
    chex.assert_trees_all_equal(batch, record(jax.random.split(key, 3), task, optax.adam, rates, save_steps(12, 4)))
    assert record(key, task, optax.adam, rates[0]).step.tolist() == list(range(13))  # few steps: one save each
    assert len(record(key, task, optax.adam, np.full(64, 0.01, np.float32), keep=("loss",)).step) == 33


def test_second_call_compiles_nothing(key):
    task, saves = small_task(), save_steps(6, 2)
    call = lambda seed, rate: record(
        jax.random.split(jax.random.key(seed), 3), task, optax.adam, np.full((3, 6), rate, np.float32), saves
    )
    call(0, 0.1)
    before = recorder_module._train._cache_size(), recorder_module._start_many._cache_size()
    call(1, 0.2)
    assert (recorder_module._train._cache_size(), recorder_module._start_many._cache_size()) == before


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
    runs = record(keys, task, optax.sgd, np.array([[0.01], [2.0]], np.float32) * np.ones(200, np.float32), saves)
    assert runs.finite.tolist() == [True, False]


def test_variety_reaches_the_task(key):
    run = functools.partial(record, key, small_task(), optax.sgd, jnp.full(4, 0.0), save_steps(4, 2))
    chex.assert_trees_all_close(run(variety={"init_scale": 2.0}).weights, 2 * run().weights, rtol=1e-6)
    noisy = run(variety={"label_noise": 0.9, "data_noise": 0.1})
    assert abs(float(noisy.loss[1] - run().loss[1])) > 1e-3


def test_gradient_descent_on_linear_regression_ends_in_closed_form(key):
    from gfm_jax.runs import gradient_descent_end

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
        ({"learning_rates": jnp.float32(0.1)}, "learning_rates: expected that of every step"),
        ({"saves": [0, 4, 3]}, "saves: expected steps increasing"),
        ({"saves": [0, 99]}, "at most 6"),
        ({"saves": [1, 2]}, "saves"),
        ({"keep": ("weights", "wieghts")}, "wieghts"),
        ({"keep": "weights"}, r"keep: expected a sequence of parts, such as \('weights',\)"),
        ({"saves": [0.0, 3.0, 6.0]}, "saves: expected integers"),
        ({"saves": [0, 2.5]}, "saves: expected integers"),
        ({"saves": [0]}, "saves: expected steps increasing"),
        ({"saves": 6}, "saves: expected steps increasing"),
        ({"learning_rates": jnp.ones((1, 2, 6))}, r"learning_rates: expected \[num_steps\].*got shape \(1, 2, 6\)"),
        ({"learning_rates": [0.1, 0.1, float("nan"), 0.1, 0.1, 0.1]}, r"learning_rates\[2\]: expected a finite number"),
        ({"learning_rates": [0.1, -0.1, 0.1, 0.1, 0.1, 0.1]}, r"learning_rates\[1\]: .* got -0.1"),
        ({"learning_rates": np.array([0.1] * 5 + [np.inf])}, r"learning_rates\[5\]: expected a finite number"),
        ({"learning_rates": jnp.ones(6, jnp.complex64)}, "learning_rates: expected a table of real numbers"),
        ({"learning_rates": ["a"] * 6}, "learning_rates: expected a table of real numbers"),
        ({"learning_rates": [[0.1], [0.1, 0.2]]}, "learning_rates: expected a table of"),
        ({"dtype": jnp.int32}, "dtype: expected one of float32, bfloat16, float16, float64"),
        ({"dtype": "flot32"}, "dtype: expected one of"),
        ({"dtype": jnp.float64}, "dtype: float64 needs"),
        ({"variety": [1.0]}, "variety: expected a dict"),
        ({"variety": {"init_scale": float("nan")}}, r"variety\['init_scale'\]: expected finite numbers"),
        ({"key": jax.random.split(jax.random.key(0), (3, 2))}, r"key: expected one key, .* got shape \(3, 2\)"),
        ({"key": jax.random.split(jax.random.PRNGKey(0), (3, 2))}, r"key: expected one key, .* got shape \(3, 2, 2\)"),
        ({"num_saves": 2}, "num_saves: expected one of saves and num_saves, got both"),
        ({"saves": None, "num_saves": 7}, "num_saves: expected 1..num_steps = 6, got 7"),
        ({"mesh": jax.make_mesh((1,), ("runs",))}, "mesh: expected several runs"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(key, change, match):
    """Of one run and of a batch alike (wrong before 0.2)"""
    good = {"key": key, "optimizer": optax.adam, "learning_rates": jnp.full(6, 0.1), "saves": [0, 3, 6]}
    one = good | change
    with pytest.raises(ValueError, match=match):
        record(one.pop("key"), small_task(), **one)
    if {"saves", "keep", "dtype", "optimizer"} & set(change):
        many = {name: value for name, value in (good | change).items() if name != "key"}
        with pytest.raises(ValueError, match=match):
            record(jax.random.split(key, 2), small_task(), **many)


@pytest.mark.usefixtures("unchecked")
def test_bad_keys_and_tables_of_many(key):
    """(wrong before 0.2)"""
    call = lambda keys, rates=np.ones(6), **rest: record(keys, small_task(), optax.adam, rates, [0, 6], **rest)
    keys = jax.random.split(key, 2)
    with pytest.raises(ValueError, match="key: expected one for each run, got none"):
        call(keys[:0])
    with pytest.raises(ValueError, match=r"learning_rates\[1, 4\]: expected a finite number from 0 on, got nan"):
        call(keys, np.where(np.arange(12).reshape(2, 6) == 10, np.nan, 0.1))
    with pytest.raises(ValueError, match=r"learning_rates: expected \[num_steps\] or \[runs, num_steps\], got shape"):
        call(keys, np.ones((1, 2, 6)))
    with pytest.raises(ValueError, match="chunk: expected a number of runs from 1 on"):
        call(keys, chunk=0)
    with pytest.raises(ValueError, match=r"variety\['init_scale'\]: expected a leading axis of 2 runs"):
        call(keys, variety={"init_scale": np.ones(3)})


@pytest.mark.usefixtures("unchecked")
def test_tables_of_rates_of_every_kind(key):
    """NumPy, lists, integers and bfloat16, in both entries (wrong before 0.2)"""
    task, saves = quadratic(jnp.array([0.5, 0.25])), np.array([0, 1, 2])
    tables = {
        "numpy": np.array([1.0, 0.0]),
        "list": [1.0, 0.0],
        "tuple of ints": (1, 0),
        "ints": np.array([1, 0]),
        "bfloat16": jnp.array([1.0, 0.0], jnp.bfloat16),
        "float16": np.array([1.0, 0.0], np.float16),
    }
    start = np.asarray(task.init(jax.random.split(key)[0]))
    for name, table in tables.items():
        one = record(key, task, optax.sgd, table, saves)
        many = record(key[None], task, optax.sgd, table, jnp.asarray(saves))
        for run in (one, jax.tree.map(lambda leaf: leaf[0], many)):
            np.testing.assert_allclose(run.weights[-1], start * [0.5, 0.75], rtol=1e-6, err_msg=name)
            assert run.time.tolist() == [0, 1, 1], name
            assert run.time.dtype == run.learning_rate.dtype == jnp.float32, name


def test_means_of_half_precision_weights_are_taken_in_float32(key):
    """400 steps in one segment: a sum in bfloat16 would stand still at 256 (wrong before 0.2)"""
    from gfm_jax.base import Task

    start = jnp.ones(2, jnp.bfloat16)
    task = Task(
        {}, lambda key, variety=None: start, lambda key, n, variety=None: jnp.zeros(n), lambda w, data, d: w.sum(), None
    )
    run = record(key, task, optax.sgd, np.zeros(400), [0, 400])
    np.testing.assert_array_equal(run.mean_weights, np.ones((2, 2)))
    np.testing.assert_array_equal(run.gradient, np.ones((2, 2)))
    np.testing.assert_array_equal(run.loss, [2, 2])
    assert run.loss.dtype == jnp.float32


def test_what_is_too_large_for_float16_is_not_finite(key):
    """(wrong before 0.2)"""
    task = quadratic(jnp.zeros(2))
    call = functools.partial(record, key, task, optax.sgd, np.zeros(1), [0, 1], variety={"init_scale": 1e6})
    assert bool(call().finite)
    assert not bool(call(dtype=jnp.float16).finite)


def test_float16_weights_of_a_large_norm_are_finite(key):
    """Of norm 300, whose square is beyond float16 (wrong before 0.2)"""
    task = quadratic(jnp.zeros(9, jnp.float16))
    task = task._replace(init=lambda key, variety=None: jnp.full(9, 100, jnp.float16))
    assert bool(record(key, task, optax.sgd, np.zeros(1), [0, 1]).finite)


def test_an_empty_tensor_is_recorded(key):
    from gfm_jax.base import Task

    start = {"e": jnp.zeros((0, 3)), "w": jnp.array([1.0, 2.0])}
    loss = lambda weights, data, draw: jnp.sum(weights["w"] ** 2) + jnp.sum(weights["e"])
    task = Task({}, lambda key, variety=None: start, lambda key, n, variety=None: jnp.zeros(n), loss, None)
    run = record(key, task, optax.adam, np.full(3, 0.1), [0, 3])
    assert run.layout.shapes == ((0, 3), (2,))
    np.testing.assert_allclose(run.weights, [[1, 2], [0.7, 1.7]], atol=1e-2)
    assert bool(run.finite)


def test_runs_of_a_falling_rate_have_two_clocks():
    """The tests' runs for all that must not take steps for time."""
    runs = falling_runs()
    assert bool(runs.finite.all())
    assert np.asarray(runs.learning_rate)[:, -1].tolist() == [0] * 4
    rates = np.geomspace(0.03, 0.3, 4)[:, None] * np.linspace(1, 0, 60)
    sums = np.concatenate([np.zeros((4, 1)), np.cumsum(rates, 1)], 1)
    np.testing.assert_allclose(runs.time, np.take_along_axis(sums, np.asarray(runs.step), 1), rtol=1e-5)
    assert float(runs.time[0, 10] / runs.time[0, -1]) > 0.7  # at half of the steps
    assert set(runs.state) == {"trace"}


def test_recordings_are_mapped_compiled_and_differentiated_forwards(key):
    """jit of record is in `test_compiling`."""
    task, saves, rates = quadratic(jnp.array([0.5, 0.25])), (0, 2, 4), jnp.array([0.4, 0.3, 0.2, 0.1])
    keys = jax.random.split(key, 2)
    call = lambda key, rates: record(key, task, optax.sgd, rates, saves)
    mapped = jax.jit(jax.vmap(call, (0, None)))(keys, rates)
    alone = [call(key, rates) for key in keys]
    chex.assert_trees_all_close(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), rtol=1e-5)
    # w_4 = w_0 prod_j (1 - r_j h): its derivative in r_j is -h w_4 / (1 - r_j h)
    ends = jax.jacfwd(lambda rates: call(keys[0], rates).weights[-1])(rates)
    h = np.array([0.5, 0.25])[:, None]
    np.testing.assert_allclose(
        ends, -h * np.asarray(alone[0].weights[-1])[:, None] / (1 - np.asarray(rates) * h), rtol=1e-5
    )
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(lambda rates: call(keys[0], rates).weights[-1].sum())(rates)
    many = lambda rates: record(keys, task, optax.sgd, rates, saves).weights[0, -1]
    np.testing.assert_allclose(jax.jacfwd(many)(rates), ends, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_hypergradients_of_fifty_learning_rates(key):
    """Those of Adam's loss on held-out data, forwards, along a random direction against a difference."""
    task, rng = linear_regression(key, 20, 3), np.random.default_rng(0)
    rates, direction = rng.uniform(0.01, 0.05, 50), rng.normal(size=50)

    @jax.jit
    def loss(rates):
        run = record(key, task, optax.adam, rates, (0, 20, 50), keep=("weights",), dtype="float64")
        return task.evaluate(run.weights[-1], task.data["validation"])["loss"]

    difference = (loss(rates + 1e-6 * direction) - loss(rates - 1e-6 * direction)) / 2e-6
    assert abs(float(difference)) > 1e-3
    np.testing.assert_allclose(jax.jacfwd(loss)(rates) @ direction, difference, rtol=1e-6)


def test_a_mesh_as_jax_makes_it(key):
    mesh, keys = jax.make_mesh((2,), ("runs",)), jax.random.split(key, 2)
    call = functools.partial(record, keys, quadratic(jnp.ones(2)), optax.sgd, np.full(4, 0.1), (0, 4))
    chex.assert_trees_all_close(jax.device_get(call(mesh=mesh)), jax.device_get(call()), rtol=1e-6)


def test_a_healthy_recording_passes_debug_nans(key):
    jax.config.update("jax_debug_nans", True)
    try:
        run = record(key[None], quadratic(jnp.ones(2)), optax.adam, np.linspace(0.1, 0, 4), (0, 1, 4))
    finally:
        jax.config.update("jax_debug_nans", False)
    assert bool(run.finite[0])


def test_bad_numbers_of_runs(key):
    with pytest.raises(ValueError, match="learning_rates: expected a leading axis of 3 runs"):
        record(jax.random.split(key, 3), small_task(), optax.adam, np.ones((2, 6), np.float32), [0, 6])


@pytest.mark.parametrize(("steps", "saves"), [(1000, 20), (100, 60), (10, 10)])
@pytest.mark.parametrize("spacing", ["even", "log"])
def test_save_steps(steps, saves, spacing):
    found = save_steps(steps, saves, spacing)
    assert len(found) == saves + 1
    assert found[0] == 0
    assert found[-1] == steps
    assert (np.diff(found) > 0).all()


@pytest.mark.usefixtures("unchecked")
def test_save_steps_bad_input():
    with pytest.raises(ValueError, match="num_saves"):
        save_steps(10, 11)
    with pytest.raises(ValueError, match=r"num_saves: expected an integer of at least 1, got 2\.5"):
        save_steps(10, 2.5)
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
