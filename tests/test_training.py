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

import gfm_jax as gfm
from gfm_jax import fit_program, fitting
from gfm_jax.base import Defaults, Learner, Procedure
from gfm_jax.fitting import fit
from gfm_jax.flows import EmpiricalTargets, esd, logit_normal, lsd
from gfm_jax.networks import TimeMLP
from gfm_jax.optimizers import heun

DATA = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
OPTIMIZER = optax.adam(0.05)


def sample(key, data):
    return data[jax.random.randint(key, (32,), 0, len(data))]


def loss(params, key, batch):
    target = batch @ jnp.array([1.0, -2.0, 0.5])
    error = batch @ params["w"] + params["b"] - target
    return jnp.mean(error**2), {"error": jnp.abs(error).mean()}


def descend(loss, params, data, sample, optimizer, num_steps, *, key=1, **choices):
    """The fit of a loss alone, from given parameters."""
    learner = Learner(lambda key, data: params, sample, loss)
    return fit(jax.random.key(key), learner, data, optimizer=optimizer, num_steps=num_steps, **choices)


def zeros(width=3):
    return {"w": jnp.zeros(width), "b": jnp.zeros(())}


def everything(key, data):
    return data


def straight(num_steps=60, **choices):
    return descend(loss, zeros(), jnp.asarray(DATA), sample, OPTIMIZER, num_steps, **({"chunk": 20} | choices))


def test_finds_the_minimum():
    params, info = straight(400)
    np.testing.assert_allclose(params["w"], [1.0, -2.0, 0.5], atol=1e-2)
    assert info.losses[-1] < 1e-3 < info.losses[0]


def test_the_chunk_does_not_matter():
    chex.assert_trees_all_close(straight(chunk=7)[1].last, straight(chunk=60)[1].last, rtol=1e-6)


def test_average_lags_behind_and_forgets_its_start():
    params, info = straight(60, ema_decay=0.9)
    assert 0 < float(jnp.abs(params["w"] - info.last["w"]).max()) < 0.2
    params, info = straight(5, ema_decay=0.0)
    chex.assert_trees_all_close(params, info.last)


def programs():
    """How many different fits were compiled."""
    return fit_program.take_steps._cache_size()


def test_second_fit_compiles_nothing():
    straight()
    before = programs()
    straight()
    assert programs() == before


NET = TimeMLP((3,))
WHICH = (lambda w, x: x * w[:2].sum(), lambda w, x: x * w[1:].sum())
CHOICES = {
    "residual": lambda other: gfm.flow_map(NET, esd if other else lsd),
    "stop": lambda other: gfm.flow_map(NET, lsd._replace(stop="point" if other else None)),
    "batch size": lambda other: gfm.flow_matching(NET, batch_size=5 if other else 6),
    "times": lambda other: gfm.flow_matching(NET, times=logit_normal if other else gfm.flows.uniform),
    "targets": lambda other: gfm.flow_matching(NET, targets=EmpiricalTargets(4, "per_sample") if other else None),
    "outputs": lambda other: gfm.autoencoder(1, WHICH[other], jnp.ones((4, 2)), widths=(3,), logits=False),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_program_is_of_the_choices_of_a_method(choice):
    """Built anew from equal choices it compiles nothing; from another choice it shares no program."""
    fit_three = lambda other: fit(jax.random.key(0), CHOICES[choice](other), DATA, num_steps=3)[1].losses
    one = fit_three(False)
    before = programs()
    np.testing.assert_array_equal(fit_three(False), one)
    assert programs() == before
    assert (fit_three(True) != one).any()


def test_two_devices_give_the_numbers_of_one():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    chex.assert_trees_all_close(
        jax.device_get(straight(mesh=mesh)[1].last), jax.device_get(straight()[1].last), rtol=1e-4, atol=1e-5
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
    assert resumed[1].seconds > half > 0
    done_before = straight(folder=tmp_path / "fit")
    same_fit(done_before, never_stopped)
    assert done_before[1].seconds == resumed[1].seconds == fitting.seconds_of(tmp_path / "fit")


def same_fit(one, other):
    """Parameters, and what every step said, bit for bit."""
    without_seconds = lambda found: jax.device_get((found[0], found[1][:-1]))
    chex.assert_trees_all_equal(without_seconds(one), without_seconds(other))


def test_params_given_are_not_given_away():
    start = zeros()
    descend(loss, start, jnp.asarray(DATA), sample, OPTIMIZER, 3)
    np.testing.assert_array_equal(start["w"], np.zeros(3))


# --- folders ----------------------------------------------------------------------------------------------------------


def in_folder(
    folder, key=1, rate=0.05, data=DATA, num_steps=5, ema_decay=0.99, width=3, factor=1.0, schedule=None, **choices
):
    def scaled(params, key, batch):
        value, info = loss({**params, "w": params["w"][:3]}, key, batch)
        return factor * value, info

    settings = {"key": key, "folder": folder, "ema_decay": ema_decay} | choices
    return descend(scaled, zeros(width), jnp.asarray(data), sample, optax.adam(schedule or rate), num_steps, **settings)


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
        ({"ema_decay": 0.5}, r"ema_decay 0\.99, here 0\.5"),
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
    assert fitting.seconds_of("~/fit") == found[1].seconds


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
    assert np.isfinite(in_folder(tmp_path)[1].losses).all()


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
import jax, numpy as np
import gfm_jax as gfm
from gfm_jax import fitting
net, key = gfm.networks.TimeMLP((8,)), jax.random.key(0)
augment = lambda key, w: -2.5 * w
for method in (
    gfm.empirical_flow_matching(net, 4, batch_size=4),
    gfm.flow_map(net, gfm.flows.esd, learned_weight=True),
    gfm.autoencoder(1, lambda w, x: x @ w[:1], np.ones((3, 1)), augment=augment),
):
    optimizer = method.learner.defaults.optimizer(1e-3, 10)
    print(sorted(fitting._identity(key, method.learner, {}, (), optimizer, 10, 0.9).items()))
"""


def test_two_processes_tell_the_same_of_a_fit():
    """No address, hash or order of a set gets into what identifies a fit (wrong before 0.2)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = lambda seed: subprocess.Popen(
        [sys.executable, "-c", STABLE], env=os.environ | {"PYTHONHASHSEED": seed}, **pipes
    )
    (first, error), (second, _) = (process.communicate() for process in [run("1"), run("2")])
    assert len(first.splitlines()) == 3, error
    assert first == second
    assert "0x" not in first
    assert all(number in first for number in ("'192'", "2.5"))  # of the batch that learns the diagonal


# --- optimizers and numbers --------------------------------------------------------------------------------------------


def quadratic(params, key, batch):
    return 0.5 * jnp.sum((params["w"] - batch.mean(0)) ** 2), {}


def on_quadratic(optimizer, num_steps=3, start=None, **choices):
    """From 0 towards 2; the whole set is every batch."""
    start = {"w": jnp.zeros(2)} if start is None else start
    return descend(quadratic, start, jnp.full((4, 2), 2.0), everything, optimizer, num_steps, key=0, **choices)


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
    _, info = on_quadratic(make(), 200)
    np.testing.assert_allclose(info.last["w"], 2.0, atol=0.05)
    assert np.isfinite(info.losses).all()


def test_what_an_optimizer_is_told_is_of_the_batch():
    """value and value_fn at (0, 0) are 4, the gradient is -2, and elsewhere, at (1, 1), -1 (wrong before 0.2)."""

    def update(updates, state, params=None, *, value, grad, value_fn, grad_fn, **_):
        there = {"w": jnp.ones(2)}
        told = jnp.stack([value, value_fn(params), grad["w"][0], value_fn(there), grad_fn(there)["w"][0]])
        return {"w": jnp.zeros(2)}, told

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(5), update)
    learner = Learner(None, everything, quadratic)
    state = fit_program.start_state(optimizer, *fit_program.split_frozen(learner, {"w": jnp.zeros(2)}))
    program = fit_program.Program(optimizer, learner, optimizer, 0.9, 1, None)
    (_, told, *_), _ = fit_program.take_steps(program, jax.random.key(0), state, jnp.full((4, 2), 2.0), 0, 1)
    np.testing.assert_allclose(told, [4, 4, -2, 1, -1])


def test_heun_and_multi_steps():
    """Heun on a quadratic shrinks the distance by 1 - h + h^2 / 2; two halves of a step make one (wrong before 0.2)."""
    left = lambda optimizer, num_steps=2: 2 - on_quadratic(optimizer, num_steps)[1].last["w"]
    np.testing.assert_allclose(left(heun(0.1)), 2 * 0.905**2, rtol=1e-6)
    np.testing.assert_allclose(left(optax.MultiSteps(optax.sgd(0.1), 2), 4), 2 * 0.9**2, rtol=1e-6)
    within = optax.MultiSteps(heun(0.1), 1)
    np.testing.assert_allclose(left(within), 2 * 0.905**2, rtol=1e-6)
    np.testing.assert_allclose(left(within.gradient_transformation()), 2 * 0.905**2, rtol=1e-6)


def test_lookahead():
    """Slow weights go half of the way at every second step (wrong before 0.2)."""
    optimizer, plain = optax.lookahead(optax.sgd(0.1), 2, 0.5), {"w": jnp.zeros(2)}
    _, info = on_quadratic(optimizer, 2, start=optax.LookaheadParams.init_synced(plain))
    np.testing.assert_allclose(info.last.slow["w"], (2 - 2 * 0.9**2) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"params: expected optax\.LookaheadParams\.init_synced"):
        on_quadratic(optimizer)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_average_of_half_precision_does_not_stand_still(dtype):
    """Parameters that stay at 1 after one step from 0: the average is there to the rounding of the dtype."""

    def one_step(params, key, batch):  # gradient -1 at 0, none at 1
        return -jnp.sum(jnp.where(params["w"] < 0.5, params["w"], jax.lax.stop_gradient(params["w"]))), {}

    from_zeros = lambda dtype: descend(
        one_step, {"w": jnp.zeros(3, dtype)}, jnp.ones((4, 1)), everything, optax.sgd(1.0), 3000,
        key=0, ema_decay=0.999, chunk=3000,
    )  # fmt: skip
    params, info = from_zeros(dtype)
    assert params["w"].dtype == info.last["w"].dtype == dtype
    np.testing.assert_array_equal(params["w"], from_zeros(jnp.float32)[0]["w"].astype(dtype))
    assert info.losses.dtype == info.gradient_norms.dtype == np.float32


def test_norms_of_half_precision_are_summed_in_float32():
    """|(300, 300, ...)| overflows in float16 (wrong before 0.2)."""
    steep = lambda params, key, batch: (300.0 * params["w"].sum().astype(jnp.float32), {})
    _, info = descend(steep, {"w": jnp.zeros(4, jnp.float16)}, jnp.ones((4, 1)), everything, optax.sgd(1e-3), 1)
    np.testing.assert_allclose(info.gradient_norms, 600.0)


@pytest.mark.parametrize(("num_steps", "chunk"), [(5, 200), (7, 3)])
def test_nothing_that_is_not_a_number_is_made(num_steps, chunk):
    """A debugger of NaN finds none in a healthy fit, of whatever length (wrong before 0.2)."""
    jax.config.update("jax_debug_nans", True)
    try:
        _, info = straight(num_steps, chunk=chunk)
    finally:
        jax.config.update("jax_debug_nans", False)
    assert np.isfinite(info.losses).all()
    assert len(info.losses) == num_steps


def test_infos_keep_their_shape_and_counts_their_dtype():
    told = lambda params, key, batch: (params["w"].sum() ** 2, {"each": params["w"], "rows": jnp.int32(len(batch))})
    _, info = descend(told, {"w": jnp.ones(2)}, jnp.ones((4, 1)), everything, optax.sgd(0.1), 3, chunk=2)
    np.testing.assert_allclose(info.terms["each"], np.array([[1, 1], [0.6, 0.6], [0.36, 0.36]]), rtol=1e-6)
    assert info.terms["rows"].tolist() == [4, 4, 4]
    assert info.terms["rows"].dtype == np.int32


# --- meshes -----------------------------------------------------------------------------------------------------------


def explicit_mesh():
    return jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))


def test_a_mesh_of_explicit_axes():
    """As `jax.make_mesh` makes it; data and parameters may live on it, with and without `mesh` (wrong before 0.2)."""
    mesh = explicit_mesh()
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    data, start = jax.device_put(DATA, over), jax.device_put(zeros(), whole)
    want = jax.device_get(straight()[1].last)
    there = lambda **choices: descend(loss, start, data, sample, OPTIMIZER, 60, chunk=20, **choices)
    for _, info in (straight(mesh=mesh), there(mesh=mesh), there()):
        chex.assert_trees_all_close(jax.device_get(info.last), want, rtol=1e-4, atol=1e-5)


def test_resumed_on_a_mesh(tmp_path):
    mesh = explicit_mesh()
    whole = straight(mesh=mesh, folder=tmp_path)
    again = straight(mesh=mesh, folder=tmp_path)
    same_fit(again, whole)
    assert len(again[1].last["w"].sharding.device_set) == 2


def test_a_batch_that_devices_do_not_divide():
    """(wrong before 0.2)"""
    odd = lambda key, data: data[:33]
    with pytest.raises(ValueError, match=r"mesh: its 2 devices must divide .* got batch \(33, 3\)"):
        descend(loss, zeros(), jnp.asarray(DATA), odd, OPTIMIZER, 5, mesh=explicit_mesh())


# --- what comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 2.5}, r"num_steps: expected a whole number of at least 1, got 2\.5"),
        ({"num_steps": True}, "num_steps: expected a whole number"),
        ({"chunk": 0}, "chunk: expected a whole number of at least 1, got 0"),
        ({"ema_decay": float("nan")}, r"ema_decay: expected a decay in \[0, 1\), got nan"),
        ({"ema_decay": "0.9"}, "ema_decay: expected a decay"),
        ({"optimizer": optax.adam}, "optimizer: expected an optax transformation with init and update"),
        ({"optimizer": None}, "optimizer: expected .* the learner has no default, got None"),
        ({"num_steps": None}, "num_steps: expected .* the learner has no default, got None"),
        ({"learning_rate": 0.1}, r"learning_rate: expected none beside an optimizer, .* got 0\.1"),
        ({"loss": None}, "loss: expected a function, got NoneType"),
        ({"sample": 3}, "sample: expected a function, got int"),
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
        "loss": loss, "params": zeros(), "data": jnp.asarray(DATA), "sample": sample, "optimizer": OPTIMIZER, "num_steps": 5,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        descend(**(arguments | change))


def test_a_loss_that_diverges_names_the_data():
    """(wrong before 0.2)"""
    data = {"x": jnp.asarray(DATA), "y": jnp.ones(3).at[1].set(jnp.nan)}
    with pytest.raises(
        FloatingPointError, match=r"loss: nan after 2 steps; not finite before the first step: data\['y'\]"
    ):
        descend(
            lambda params, key, batch: (params["w"].sum() * batch[1], {}), {"w": jnp.ones(3)}, data,
            lambda key, data: data["y"], OPTIMIZER, 2,
        )  # fmt: skip


def test_bad_input():
    with pytest.raises(ValueError, match="num_steps"):
        straight(0)
    with pytest.raises(ValueError, match="ema_decay"):
        straight(5, ema_decay=1.0)
    nan = lambda params, key, batch: (params["w"].sum() * jnp.nan, {})
    with pytest.raises(FloatingPointError, match="loss: nan"):
        descend(nan, {"w": jnp.zeros(3)}, jnp.asarray(DATA), sample, OPTIMIZER, 5)


# --- learners, and what has one ---------------------------------------------------------------------------------------


def test_a_procedure_takes_no_choices_of_an_optimizer():
    method = gfm.pca(1)
    params, info = fit(jax.random.key(0), method, DATA)
    assert info is None
    chex.assert_trees_all_equal(params, fit(jax.random.key(0), method.learner, DATA)[0])
    with pytest.raises(ValueError, match="num_steps, optimizer: expected None for a method that is not fitted by one"):
        fit(jax.random.key(0), Procedure(lambda *_, **__: 1 / 0), DATA, num_steps=3, optimizer=OPTIMIZER)


def test_what_is_no_method_is_refused():
    with pytest.raises(ValueError, match="method: expected a Learner, or what has one, got function"):
        fit(jax.random.key(0), loss, DATA)


def test_frozen_fields_stay_bit_for_bit():
    """Under weight decay too; fields of the same name further down move."""
    start = {"w": jnp.ones(2), "scale": {"of": jnp.full(2, 0.1)}, "inner": {"scale": jnp.ones(2)}}
    of_all = lambda params, key, batch: (sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), {})
    learner = Learner(lambda key, data: start, everything, of_all, frozen=("scale",))
    options = {"optimizer": optax.adamw(0.1, weight_decay=0.5), "num_steps": 3}
    params, info = fit(jax.random.key(0), learner, jnp.ones((4, 1)), **options)
    for found in (params, info.last):
        chex.assert_trees_all_equal(found["scale"], start["scale"])
        assert (found["inner"]["scale"] < 1).all()
        assert (found["w"] < 1).all()
    np.testing.assert_allclose(info.gradient_norms[0], 4.0)  # that of what moves
    np.testing.assert_allclose(info.losses[0], 4.02)
    with pytest.raises(ValueError, match="params: expected a pytree with at least one array"):
        fit(jax.random.key(0), learner._replace(frozen=tuple(start)), jnp.ones((4, 1)), **options)


@pytest.mark.parametrize(
    ("method", "names"),
    [(gfm.flow_matching(NET), ["std_0"]), (gfm.flow_map(NET), ["std_0"]), (gfm.autoencoder(1), ["mean", "scale"])],
)
def test_what_methods_measure_stays(method, names):
    init = method.learner.init(jax.random.key(0), method.learner.prepare(jax.random.key(0), jnp.asarray(DATA)))
    options = {"optimizer": optax.adamw(0.1, weight_decay=0.5), "num_steps": 2}
    params, _ = fit(jax.random.key(1), method, jnp.asarray(DATA), **options)
    for name in names:
        np.testing.assert_array_equal(getattr(params, name), getattr(init, name))


def test_defaults_of_a_learner():
    """Steps, rate and decay are those of the learner where `fit` is told nothing, and `with_defaults` changes them."""
    learner = Learner(
        lambda key, data: {"w": jnp.zeros(2)}, everything, quadratic,
        defaults=Defaults(4, 0.5, lambda rate, num_steps: optax.sgd(rate / num_steps), ema_decay=0.0),
    )  # fmt: skip
    data = jnp.full((4, 2), 2.0)
    left = lambda learner, **choices: 2 - fit(jax.random.key(0), learner, data, **choices)[0]["w"]
    np.testing.assert_allclose(left(learner), 2 * 0.875**4, rtol=1e-6)
    np.testing.assert_allclose(left(learner, learning_rate=0.2, num_steps=2), 2 * 0.9**2, rtol=1e-6)
    other = fitting.with_defaults(learner, num_steps=2, learning_rate=0.2)
    np.testing.assert_array_equal(left(other), left(learner, learning_rate=0.2, num_steps=2))
    assert fitting.with_defaults(gfm.autoencoder(1), num_steps=7).learner.defaults.num_steps == 7
    for method in (gfm.pca(1), learner._replace(defaults=None)):
        with pytest.raises(ValueError, match="method: expected one with defaults of an optimizer"):
            fitting.with_defaults(method, num_steps=2)
    with pytest.raises(ValueError, match=r"learning_rate: expected a positive number, got 0\.0"):
        fit(jax.random.key(0), learner, data, learning_rate=0.0)


def test_a_learner_prepares_its_data_and_resumes():
    learner = Learner(
        lambda key, data: {"w": data[0]}, everything, quadratic,
        prepare=lambda key, data: jnp.asarray(data, jnp.float32) + 1, resume=lambda start, data: {"w": start},
    )  # fmt: skip
    options = {"optimizer": optax.sgd(0.0), "num_steps": 1}
    np.testing.assert_array_equal(fit(jax.random.key(0), learner, [[1, 2]], **options)[0]["w"], [2, 3])
    found, _ = fit(jax.random.key(0), learner, [[1, 2]], start=jnp.full(2, 7.0), **options)
    np.testing.assert_array_equal(found["w"], [7, 7])
