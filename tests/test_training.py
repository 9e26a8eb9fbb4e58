import os
import signal
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfm_jax import fitting
from gfm_jax.fitting import fit
from gfm_jax.optimizers import heun

DATA = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
OPTIMIZER = optax.adam(0.05)


def sample(key, data):
    return data[jax.random.randint(key, (32,), 0, len(data))]


def loss(params, key, batch):
    target = batch @ jnp.array([1.0, -2.0, 0.5])
    error = batch @ params["w"] + params["b"] - target
    return jnp.mean(error**2), {"error": jnp.abs(error).mean()}


def straight(num_steps=60, **choices):
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    settings = {"chunk": 20} | choices
    return fit(jax.random.key(1), loss, start, jnp.asarray(DATA), sample, OPTIMIZER, num_steps, **settings)


def test_finds_the_minimum():
    found = straight(400)
    np.testing.assert_allclose(found.params["w"], [1.0, -2.0, 0.5], atol=1e-2)
    assert found.losses[-1] < 1e-3 < found.losses[0]


def test_the_chunk_does_not_matter():
    chex.assert_trees_all_close(straight(chunk=7).last, straight(chunk=60).last, rtol=1e-6)


def test_average_lags_behind_and_forgets_its_start():
    found = straight(60, average=0.9)
    assert 0 < float(jnp.abs(found.params["w"] - found.last["w"]).max()) < 0.2
    chex.assert_trees_all_close(straight(5, average=0.0).params, straight(5, average=0.0).last)


def test_second_fit_compiles_nothing():
    straight()
    before = fitting._take_steps._cache_size()
    straight()
    assert fitting._take_steps._cache_size() == before


def test_two_devices_give_the_numbers_of_one():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    chex.assert_trees_all_close(
        jax.device_get(straight(mesh=mesh).last), jax.device_get(straight().last), rtol=1e-4, atol=1e-5
    )


def test_killed_then_resumed(tmp_path):
    """kill -9 after the first checkpoint; the resumed fit ends at the numbers of one that was never stopped."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import jax
        jax.config.update("jax_num_cpu_devices", 2)
        from gfm_jax import fitting
        import test_training
        save, calls = fitting.save, []
        def once(*arguments):
            if calls:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(save(*arguments))
        fitting.save = once
        test_training.straight(folder={str(tmp_path / "fit")!r}, save_every=0)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "fit" / "checkpoints").iterdir()] == ["20"]
    half = fitting.seconds_of(tmp_path / "fit")
    (tmp_path / "fit" / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()  # half of one
    resumed = straight(folder=tmp_path / "fit")
    never_stopped = straight()
    same_fit(resumed, never_stopped)
    assert resumed.seconds > half > 0
    done_before = straight(folder=tmp_path / "fit")
    same_fit(done_before, never_stopped)
    assert done_before.seconds == resumed.seconds == fitting.seconds_of(tmp_path / "fit")


def same_fit(one, other):
    """Parameters, and what every step said, bit for bit."""
    chex.assert_trees_all_equal(jax.device_get(one[:-1]), jax.device_get(other[:-1]))


def test_params_given_are_not_given_away():
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    fit(jax.random.key(1), loss, start, jnp.asarray(DATA), sample, OPTIMIZER, 3)
    np.testing.assert_array_equal(start["w"], np.zeros(3))


# --- folders ----------------------------------------------------------------------------------------------------------


def in_folder(
    folder, key=1, rate=0.05, data=DATA, num_steps=5, average=0.99, width=3, factor=1.0, schedule=None, **choices
):
    def scaled(params, key, batch):
        value, info = loss({**params, "w": params["w"][:3]}, key, batch)
        return factor * value, info

    start = {"w": jnp.zeros(width), "b": jnp.zeros(())}
    optimizer = optax.adam(schedule or rate)
    settings = {"folder": folder, "average": average} | choices
    return fit(jax.random.key(key), scaled, start, jnp.asarray(data), sample, optimizer, num_steps, **settings)


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits") / "one"
    return folder, in_folder(folder, schedule=optax.cosine_decay_schedule(0.05, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 7}, r"key key threefry2x32 uint32 \[2\] \[0, 1\], here key .* \[0, 7\]"),
        ({"schedule": optax.cosine_decay_schedule(0.04, 5)}, r"init_value 0\.05, here 0\.04"),
        ({"data": DATA + 5}, r"data float32 \[256, 3\] crc32 \w+, here float32 \[256, 3\] crc32"),
        ({"data": np.append(DATA[:-1], DATA[-1:] + 1e-3, axis=0)}, "data float32"),
        ({"num_steps": 4}, "num_steps 5, here 4"),
        ({"average": 0.5}, r"average 0\.99, here 0\.5"),
        ({"width": 4}, r"params.w float32 \[3\] .* here float32 \[4\]"),
        ({"factor": 2.0}, r"loss.factor 1, here 2"),
        ({"rate": 0.05, "schedule": None}, "learning_rate"),
    ],
)
def test_a_folder_of_another_fit_is_refused(used, change, message):
    """It names the folder and what differs, with both values (wrong before 0.2)."""
    folder, _ = used
    change = {"schedule": optax.cosine_decay_schedule(0.05, 5)} | change
    with pytest.raises(ValueError, match=f"folder: .*one holds another fit: .*{message}"):
        in_folder(folder, **change)


def test_the_same_fit_is_found_in_its_folder(used):
    """Made anew from the same numbers, it is the same fit, whatever its chunks are."""
    folder, found = used
    again = in_folder(folder, schedule=optax.cosine_decay_schedule(0.05, 5), chunk=2)
    same_fit(again, found)


def test_a_folder_may_lie_in_the_users_home(tmp_path, monkeypatch):
    """(wrong before 0.2): a folder called ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = in_folder("~/fit", progress=True)  # and a bar without a name
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]
    same_fit(in_folder(tmp_path / "fit"), found)
    assert fitting.seconds_of("~/fit") == found.seconds


def test_folders_of_something_else_are_refused(tmp_path):
    """(wrong before 0.2)"""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"folder: expected .* empty or with a fit of this library, got notes\.txt in it"
    ):
        in_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="folder: expected a folder"):
        in_folder(tmp_path / "notes.txt")
    (tmp_path / "other" / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a checkpoint of an unknown fit, its fingerprint\.json cannot be read"):
        in_folder(tmp_path / "other")


def test_a_damaged_checkpoint_is_named(tmp_path):
    in_folder(tmp_path)
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"folder: the checkpoint in .* is damaged .* remove it to start anew"):
        in_folder(tmp_path)


def test_a_fit_that_left_no_checkpoint_binds_nobody(tmp_path):
    with pytest.raises(FloatingPointError):
        in_folder(tmp_path, data=DATA * np.nan)
    assert (tmp_path / "fingerprint.json").exists()
    assert np.isfinite(in_folder(tmp_path).losses).all()


def test_a_second_fit_at_the_same_time_is_refused(tmp_path, monkeypatch):
    """While a fit runs its folder is its own; afterwards it is free again (wrong before 0.2)."""
    seen, save = [], fitting.save

    def beside(*arguments):
        with pytest.raises(
            ValueError, match=rf"folder: .* being written by another process \(process {os.getpid()} on"
        ):
            in_folder(tmp_path)
        seen.append(save(*arguments))

    monkeypatch.setattr(fitting, "save", beside)
    first = in_folder(tmp_path)
    assert seen == [None]
    same_fit(in_folder(tmp_path), first)


STABLE = """
import sys
sys.path.insert(0, {tests!r})
import jax, optax, numpy as np
from gfm_jax import fitting
from gfm_jax.weights import autoencoder
from gfm_jax.flows import empirical_flow_matching, self_distilled_flow_map
from gfm_jax.networks import TimeMLP
told, key = {{}}, jax.random.key(0)
def instead(key, loss, params, data, sample, optimizer, num_steps, **_):
    told.update(fitting._identity(key, loss, {{}}, (), sample, optimizer, num_steps, 0.9))
    raise StopIteration
def name(fit, *arguments):
    try:
        fit(key, *arguments)
    except StopIteration:
        print(sorted(told.items()))
for module in ("flows.empirical_flow_matching", "flows.self_distilled_flow_map", "weights.autoencoder"):
    sys.modules[f"gfm_jax.{{module}}"].minimise = instead
    sys.modules[f"gfm_jax.{{module}}"].init_network = lambda *_: {{}}
points = np.ones((20, 2), np.float32)
name(empirical_flow_matching(TimeMLP((8,)), 4, batch_size=4, num_steps=10).fit, points)
name(self_distilled_flow_map(TimeMLP((8,)), "esd", learned_weight=True).fit, points)
name(autoencoder(1, lambda w, x: x @ w[:1], np.ones((3, 1)), augment=lambda key, w: -2.5 * w).fit, jax.numpy.asarray(points))
"""


def test_two_processes_tell_the_same_of_a_fit():
    """No address, hash or order of a set gets into what identifies a fit (wrong before 0.2)."""
    script = STABLE.format(tests=os.path.dirname(__file__))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = lambda seed: subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, **pipes
    )
    (first, error), (second, _) = (process.communicate() for process in [run("1"), run("2")])
    assert len(first.splitlines()) == 3, error
    assert first == second
    assert "0x" not in first
    assert all(number in first for number in ("'0.75'", "2.5"))


# --- optimizers and numbers --------------------------------------------------------------------------------------------


def quadratic(params, key, batch):
    return 0.5 * jnp.sum((params["w"] - batch.mean(0)) ** 2), {}


def on_quadratic(optimizer, num_steps=3, start=None, **choices):
    """From 0 towards 2; the whole set is every batch."""
    start = {"w": jnp.zeros(2)} if start is None else start
    data = jnp.full((4, 2), 2.0)
    return fit(jax.random.key(0), quadratic, start, data, lambda key, data: data, optimizer, num_steps, **choices)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.lbfgs(memory_size=3),
        lambda: optax.polyak_sgd(),
        lambda: optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=50)),
        lambda: optax.contrib.momo(1.0),
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
        lambda: optax.contrib.sam(optax.sgd(0.5), optax.sgd(0.01), opaque_mode=True),
        lambda: optax.contrib.schedule_free_sgd(0.5),
    ],
)
def test_optimizers_that_ask_for_more_than_the_gradient(make):
    """The minimum of half a square is where they go (wrong before 0.2)."""
    found = on_quadratic(make(), 200)
    np.testing.assert_allclose(found.last["w"], 2.0, atol=0.05)
    assert np.isfinite(found.losses).all()


def test_what_an_optimizer_is_told_is_of_the_batch():
    """value and value_fn at (0, 0) are 4, the gradient is -2, and elsewhere, at (1, 1), -1 (wrong before 0.2)."""

    def update(updates, state, params=None, *, value, grad, value_fn, grad_fn, **_):
        there = {"w": jnp.ones(2)}
        told = jnp.stack([value, value_fn(params), grad["w"][0], value_fn(there), grad_fn(there)["w"][0]])
        return {"w": jnp.zeros(2)}, told

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(5), update)
    params = {"w": jnp.zeros(2)}
    state = fitting._start(optimizer, params)
    static = (quadratic, lambda key, data: data, optimizer, 0.9, 1, None)
    (_, told, _), _ = fitting._take_steps(static, jax.random.key(0), state, jnp.full((4, 2), 2.0), 0, 1)
    np.testing.assert_allclose(told, [4, 4, -2, 1, -1])


def test_heun_and_multi_steps():
    """Heun on a quadratic shrinks the distance by 1 - h + h^2 / 2; two halves of a step make one (wrong before 0.2)."""
    np.testing.assert_allclose(2 - on_quadratic(heun(0.1), 2).last["w"], 2 * 0.905**2, rtol=1e-6)
    np.testing.assert_allclose(
        2 - on_quadratic(optax.MultiSteps(optax.sgd(0.1), 2), 4).last["w"], 2 * 0.9**2, rtol=1e-6
    )
    within = optax.MultiSteps(heun(0.1), 1)
    np.testing.assert_allclose(2 - on_quadratic(within, 2).last["w"], 2 * 0.905**2, rtol=1e-6)
    wrapped = within.gradient_transformation()
    np.testing.assert_allclose(2 - on_quadratic(wrapped, 2).last["w"], 2 * 0.905**2, rtol=1e-6)


def test_lookahead():
    """Slow weights go half of the way at every second step (wrong before 0.2)."""
    optimizer, plain = optax.lookahead(optax.sgd(0.1), 2, 0.5), {"w": jnp.zeros(2)}
    found = on_quadratic(optimizer, 2, start=optax.LookaheadParams.init_synced(plain))
    np.testing.assert_allclose(found.last.slow["w"], (2 - 2 * 0.9**2) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"params: expected optax\.LookaheadParams\.init_synced"):
        on_quadratic(optimizer)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_average_of_half_precision_does_not_stand_still(dtype):
    """Parameters that stay at 1 after one step from 0: the average is there to the rounding of the dtype."""

    def one_step(params, key, batch):  # gradient -1 at 0, none at 1
        return -jnp.sum(jnp.where(params["w"] < 0.5, params["w"], jax.lax.stop_gradient(params["w"]))), {}

    start, data = {"w": jnp.zeros(3, dtype)}, jnp.ones((4, 1))
    settings = {"average": 0.999, "chunk": 3000}
    sample_all = lambda key, data: data
    found = fit(jax.random.key(0), one_step, start, data, sample_all, optax.sgd(1.0), 3000, **settings)
    wide = fit(jax.random.key(0), one_step, {"w": jnp.zeros(3)}, data, sample_all, optax.sgd(1.0), 3000, **settings)
    assert found.params["w"].dtype == found.last["w"].dtype == dtype
    np.testing.assert_array_equal(found.params["w"], wide.params["w"].astype(dtype))
    assert found.losses.dtype == found.gradient_norms.dtype == np.float32


def test_norms_of_half_precision_are_summed_in_float32():
    """|(300, 300, ...)| overflows in float16 (wrong before 0.2)."""
    steep = lambda params, key, batch: (300.0 * params["w"].sum().astype(jnp.float32), {})
    start = {"w": jnp.zeros(4, jnp.float16)}
    found = fit(jax.random.key(0), steep, start, jnp.ones((4, 1)), lambda key, data: data, optax.sgd(1e-3), 1)
    np.testing.assert_allclose(found.gradient_norms, 600.0)


@pytest.mark.parametrize(("num_steps", "chunk"), [(5, 200), (7, 3)])
def test_nothing_that_is_not_a_number_is_made(num_steps, chunk):
    """A debugger of NaN finds none in a healthy fit, of whatever length (wrong before 0.2)."""
    jax.config.update("jax_debug_nans", True)
    try:
        found = straight(num_steps, chunk=chunk)
    finally:
        jax.config.update("jax_debug_nans", False)
    assert np.isfinite(found.losses).all()
    assert len(found.losses) == num_steps


def test_infos_keep_their_shape_and_counts_their_dtype():
    told = lambda params, key, batch: (params["w"].sum() ** 2, {"each": params["w"], "rows": jnp.int32(len(batch))})
    found = on_quadratic(optax.sgd(0.1), 3) and fit(
        jax.random.key(0),
        told,
        {"w": jnp.ones(2)},
        jnp.ones((4, 1)),
        lambda key, data: data,
        optax.sgd(0.1),
        3,
        chunk=2,
    )
    np.testing.assert_allclose(found.info["each"], np.array([[1, 1], [0.6, 0.6], [0.36, 0.36]]), rtol=1e-6)
    assert found.info["rows"].tolist() == [4, 4, 4]
    assert found.info["rows"].dtype == np.int32


# --- meshes -----------------------------------------------------------------------------------------------------------


def explicit_mesh():
    return jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))


def test_a_mesh_of_explicit_axes():
    """As `jax.make_mesh` makes it; data and parameters may live on it, with and without `mesh` (wrong before 0.2)."""
    mesh, start = explicit_mesh(), {"w": jnp.zeros(3), "b": jnp.zeros(())}
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    data, start = jax.device_put(DATA, over), jax.device_put(start, whole)
    want = jax.device_get(straight().last)
    for found in (
        straight(mesh=mesh),
        fit(jax.random.key(1), loss, start, data, sample, OPTIMIZER, 60, chunk=20, mesh=mesh),
        fit(jax.random.key(1), loss, start, data, sample, OPTIMIZER, 60, chunk=20),
    ):
        chex.assert_trees_all_close(jax.device_get(found.last), want, rtol=1e-4, atol=1e-5)


def test_resumed_on_a_mesh(tmp_path):
    mesh = explicit_mesh()
    whole = straight(mesh=mesh, folder=tmp_path)
    again = straight(mesh=mesh, folder=tmp_path)
    same_fit(again, whole)
    assert len(again.last["w"].sharding.device_set) == 2


def test_a_batch_that_devices_do_not_divide():
    """(wrong before 0.2)"""
    odd = lambda key, data: data[:33]
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    with pytest.raises(ValueError, match=r"mesh: its 2 devices must divide .* got batch \(33, 3\)"):
        fit(jax.random.key(1), loss, start, jnp.asarray(DATA), odd, OPTIMIZER, 5, mesh=explicit_mesh())


# --- what comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 2.5}, r"num_steps: expected a whole number of at least 1, got 2\.5"),
        ({"num_steps": True}, "num_steps: expected a whole number"),
        ({"chunk": 0}, "chunk: expected a whole number of at least 1, got 0"),
        ({"average": float("nan")}, r"average: expected a decay in \[0, 1\), got nan"),
        ({"average": "0.9"}, "average: expected a decay"),
        ({"optimizer": optax.adam}, "optimizer: expected an optax transformation with init and update"),
        ({"loss": None}, "loss: expected a function, got NoneType"),
        ({"loss": lambda params, key, batch: params["w"].sum()}, r"loss: expected \(scalar, info\)"),
        ({"loss": lambda params, key, batch: (params["w"], {})}, r"loss: expected \(scalar, info\)"),
        ({"params": {}}, "params: expected a pytree with at least one array"),
        ({"params": {"z": jnp.ones(3, complex)}}, r"params: expected floats.* got complex64 at"),
        ({"params": {"n": jnp.arange(3)}}, r"params: expected floats.* got int32 at \['n'\]"),
        ({"data": jnp.zeros((0, 3))}, r"data: expected at least one row in every array, got shape \(0, 3\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    """(wrong before 0.2)"""
    arguments = {
        "key": jax.random.key(1), "loss": loss, "params": {"w": jnp.zeros(3), "b": jnp.zeros(())},
        "data": jnp.asarray(DATA), "sample": sample, "optimizer": OPTIMIZER, "num_steps": 5,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        fit(**(arguments | change))


def test_a_loss_that_diverges_names_the_data():
    """(wrong before 0.2)"""
    data = {"x": jnp.asarray(DATA), "y": jnp.ones(3).at[1].set(jnp.nan)}
    with pytest.raises(
        FloatingPointError, match=r"loss: nan after 2 steps; not finite before the first step: data\['y'\]"
    ):
        fit(
            jax.random.key(1), lambda params, key, batch: (params["w"].sum() * batch[1], {}), {"w": jnp.ones(3)}, data,
            lambda key, data: data["y"], OPTIMIZER, 2,
        )  # fmt: skip


def test_bad_input():
    with pytest.raises(ValueError, match="num_steps"):
        straight(0)
    with pytest.raises(ValueError, match="average"):
        straight(5, average=1.0)
    nan = lambda params, key, batch: (params["w"].sum() * jnp.nan, {})
    with pytest.raises(FloatingPointError, match="loss: nan"):
        fit(jax.random.key(1), nan, {"w": jnp.zeros(3)}, jnp.asarray(DATA), sample, OPTIMIZER, 5)
