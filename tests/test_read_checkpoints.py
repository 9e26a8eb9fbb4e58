"""Runs of one's own from their checkpoints: every format, what is left out, and what is refused by name."""

import json
import pathlib
import tempfile
import warnings

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
from flax.training.train_state import TrainState

import gfm_jax as gfm
from gfm_jax.runs.checkpoint_formats import entries_of
from gfm_jax.runs.checkpoint_writing import write_checkpoint

STEPS = [0, 50, 100, 1000]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.relu(x))


VARIABLES = Net().init(jax.random.key(0), jnp.ones((1, 3)))


def state_at(step):
    """A training state with an optimizer's state, statistics and a counter beside the parameters."""
    params = jax.tree.map(lambda leaf: leaf + 0.01 * step, VARIABLES["params"])
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    return {"step": step, "params": params, "opt_state": state.opt_state, "batch_stats": VARIABLES["batch_stats"]}


def write(folder: pathlib.Path, kind: str) -> list[pathlib.Path]:
    paths = []
    for step in STEPS:
        state, path = state_at(step), folder / f"run_7_step_{step}"
        flat = flax.traverse_util.flatten_dict(state["params"], sep=".")
        flat |= {
            f"stats.{name}": leaf
            for name, leaf in {"running_mean": jnp.ones(4), "num_batches_tracked": jnp.ones((), int)}.items()
        }
        if kind == "msgpack":
            path = path.with_suffix(".msgpack")
            path.write_bytes(flax.serialization.to_bytes(state))
        elif kind == "npz":
            path = path.with_suffix(".npz")
            np.savez(path, **flat)
        elif kind == "safetensors":
            path = path.with_suffix(".safetensors")
            safetensors.flax.save_file(flat, path)
        elif kind == "shards":
            path.mkdir()
            names = sorted(flat)
            halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
            for file, part in halves.items():
                safetensors.flax.save_file({name: flat[name] for name in part}, path / file)
            where = {name: file for file, part in halves.items() for name in part}
            (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        elif kind == "orbax":
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, state)
        elif kind == "orbax manager":
            with ocp.CheckpointManager(folder) as manager:
                manager.save(step, args=ocp.args.StandardSave(state))
            path = folder / str(step)
        paths.append(path)
    return paths


@pytest.mark.parametrize("kind", ["msgpack", "npz", "safetensors", "shards", "orbax", "orbax manager"])
def test_every_format(tmp_path, kind):
    paths = write(tmp_path, kind)
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1)
    assert run.step.tolist() == STEPS
    np.testing.assert_allclose(run.time, 0.1 * np.array(STEPS))
    for row, step in zip(run.weights, STEPS, strict=True):  # in the order of the pytree, and of a dict of the names
        np.testing.assert_array_equal(row, gfm.ravel(state_at(step)["params"]))
    assert run.layout.shapes == gfm.layout_of(VARIABLES["params"]).shapes
    back = gfm.unravel(VARIABLES["params"], run.weights[1])
    np.testing.assert_array_equal(back["Dense_1"]["kernel"], state_at(50)["params"]["Dense_1"]["kernel"])
    again = gfm.read_checkpoints(paths[::-1], learning_rate=0.1)
    np.testing.assert_array_equal(again.weights, run.weights)
    forecast = gfm.forecast(gfm.forecasting.baselines.log_time(), (), run, until=2000)
    assert np.isfinite(forecast.weights).all()


@pytest.mark.parametrize("kind", ["msgpack", "npz", "safetensors", "shards", "orbax", "orbax manager"])
def test_weights_go_back_into_the_format(tmp_path, kind):
    """The new checkpoint holds the new weights in the old dtypes, and all else as it was."""
    old = write(tmp_path, kind)[-1]
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1)
    new = tmp_path / f"{'2000' if kind == 'orbax manager' else 'step_2000'}{old.suffix}"
    write_checkpoint(new, run.weights[0], run.layout, like=old)
    again = gfm.read_checkpoints([tmp_path / old, new], [1000, 2000], 0.1)
    np.testing.assert_array_equal(again.weights[1], run.weights[0])
    entries = [{entry.path: entry for entry in entries_of(path)} for path in (old, new)]
    assert entries[0].keys() == entries[1].keys()
    for place, entry in entries[0].items():
        assert entry.dtype == entries[1][place].dtype, place
        if not {"params"} & set(place) and "Dense" not in place[0] and "BatchNorm" not in place[0]:
            np.testing.assert_array_equal(entry.read(), entries[1][place].read())
    with pytest.raises(ValueError, match="path: expected a name that is free"):
        write_checkpoint(new, run.weights[0], run.layout, like=old)


def test_weights_that_cannot_go_back(tmp_path):
    save_npz(tmp_path, step_1=W, step_2=W)
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1)
    like, new = tmp_path / "step_2.npz", tmp_path / "new.npz"
    with pytest.raises(ValueError, match=r"weights: expected shape \(9,\), as the layout has it, got \(8,\)"):
        write_checkpoint(new, run.weights[0][1:], run.layout, like)
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        write_checkpoint(new, run.weights[0] * np.nan, run.layout, like)
    save_npz(tmp_path, other={"w": W["w"]})
    with pytest.raises(
        ValueError, match=r"like: expected the tensors of the layout in .*other.npz, which differs in b"
    ):
        write_checkpoint(new, run.weights[0], run.layout, tmp_path / "other.npz")
    assert not new.exists()


def test_depths_and_names_are_those_of_the_pytree(tmp_path):
    write(tmp_path, "msgpack")
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1).layout == gfm.layout_of(VARIABLES["params"])


def save_npz(folder, **steps):
    for name, arrays in steps.items():
        np.savez(folder / f"{name}.npz", **arrays)


W = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}


def test_steps_from_names_and_metadata(tmp_path):
    save_npz(tmp_path, epoch_1_step_20=W, epoch_2_step_100=W)
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1).step.tolist() == [20, 100]
    files = sorted(tmp_path.iterdir())
    assert gfm.read_checkpoints(files, [7, 5], learning_rate=0.1).step.tolist() == [5, 7]
    for k, path in enumerate(files):
        tensors = {"w": jnp.full(2, k + 1.0)}
        safetensors.flax.save_file(tensors, path.with_name(f"{'ab'[k]}.safetensors"), metadata={"step": str(30 - k)})
    run = gfm.read_checkpoints(sorted(tmp_path.glob("*.safetensors")), learning_rate=0.1)
    assert run.step.tolist() == [29, 30]
    assert run.weights[:, 0].tolist() == [2.0, 1.0]


def test_a_folder_goes_by_the_natural_order_of_its_names(tmp_path):
    for k in (5, 10, 20):
        np.savez(tmp_path / f"step_{k}.npz", w=np.full(2, k, np.float32))
    run = gfm.read_checkpoints(tmp_path, [50, 100, 200], [0.5, 0.1, 0.2])
    assert run.weights[:, 0].tolist() == [5, 10, 20]
    assert run.learning_rate.tolist() == [0.5, 0.1, 0.2]


def test_the_number_that_differs_is_the_step(tmp_path):
    save_npz(tmp_path, ckpt_5_of_1000_seed0=W, ckpt_10_of_1000_seed0=W)
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1).step.tolist() == [5, 10]
    other = tmp_path / "by_epoch"
    other.mkdir()
    save_npz(other, epoch_1=W, epoch_2=W)
    with pytest.warns(UserWarning, match="steps: the numbers of epochs in the names are taken for steps"):
        assert gfm.read_checkpoints(other, learning_rate=0.1).step.tolist() == [1, 2]


def test_many_numbered_layers_under_flat_names(tmp_path):
    """Eleven layers and more: "layers/10" comes after "layers/2", and tensors are found by their names."""
    for step in (1, 2):
        np.savez(tmp_path / f"step_{step}.npz", **{f"layers/{k}/w": np.full((2, 2), k, np.float32) for k in range(12)})
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1)
    nested = {"layers": [{"w": jnp.zeros((2, 2))}] * 12}
    for weights in (gfm.unravel(nested, run.weights[1]), gfm.unravel(nested, run.weights[1], run.layout)):
        assert [float(layer["w"][0, 0]) for layer in weights["layers"]] == list(range(12))
    flat = {f"layers.{k}.w": jnp.zeros((2, 2)) for k in range(12)}
    weights = gfm.unravel(flat, run.weights, run.layout)
    assert all((weights[f"layers.{k}.w"] == k).all() for k in range(12))
    assert weights["layers.3.w"].shape == (2, 2, 2)
    with pytest.raises(ValueError, match="layout: expected the names of `like`, got no 'v' among layers/0/w"):
        gfm.unravel({"v": jnp.zeros((2, 2))}, run.weights[1], run.layout)
    with pytest.raises(
        ValueError, match=r"layout: expected 'layers/0/w' of shape \(4,\), as `like` has it, got \(2, 2\)"
    ):
        gfm.unravel({"layers": [{"w": jnp.zeros(4)}]}, run.weights[1], run.layout)
    with pytest.raises(ValueError, match="layout: expected the 1 tensors of `like`, got 12"):
        gfm.unravel({"layers": [{"w": jnp.zeros((2, 2))}]}, run.weights[1], run.layout)


def test_one_file_in_a_folder_each(tmp_path):
    for step in (500, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        safetensors.flax.save_file({"w": jnp.ones(2)}, folder / "model.safetensors")
        safetensors.flax.save_file({"mu": jnp.ones(2)}, folder / "optimizer.safetensors")
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1).step.tolist() == [500, 1000]


def test_rates(tmp_path):
    save_npz(tmp_path, step_2=W, step_4=W, step_8=W)
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    run = gfm.read_checkpoints(tmp_path, learning_rate=schedule)
    rates = np.array([schedule(i) for i in range(8)])
    np.testing.assert_allclose(run.time, [rates[:n].sum() for n in (2, 4, 8)], rtol=1e-6)
    np.testing.assert_allclose(run.learning_rate, rates[[1, 3, 7]], rtol=1e-6)
    files = [tmp_path / f"step_{n}.npz" for n in (8, 2, 4)]
    assert gfm.read_checkpoints(files, learning_rate=[0.3, 0.1, 0.2]).learning_rate.tolist() == [0.1, 0.2, 0.3]
    with pytest.warns(UserWarning, match="learning_rate: not given; the clock of the run is its number of steps"):
        assert gfm.read_checkpoints(tmp_path).time is None


def test_items_of_lists_go_by_number(tmp_path):
    """Twelve layers in a list: msgpack calls them "0" to "11", and a pytree has the eleventh after the tenth."""
    params = [jnp.full(2, float(k)) for k in range(12)]
    for step in (1, 2):
        (tmp_path / f"step_{step}.msgpack").write_bytes(flax.serialization.to_bytes({"params": params}))
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1)
    np.testing.assert_array_equal(run.weights[0], gfm.ravel(params))


def test_a_part_of_a_checkpoint(tmp_path):
    for step in (1, 2):
        tree = {"model": {"w": jnp.ones(2)}, "ema": {"params": {"w": jnp.full(2, 3.0)}}}
        (tmp_path / f"step_{step}.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1).weights[0].tolist() == [1.0, 1.0]
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1, part="ema/params").weights[0].tolist() == [3.0, 3.0]
    with pytest.raises(
        ValueError, match=r"part: expected a path in .*step_1.msgpack, which holds ema, model, got 'emma'"
    ):
        gfm.read_checkpoints(tmp_path, learning_rate=0.1, part="emma")


def test_kernels_of_torch_in_the_order_of_flax(tmp_path):
    arrays = {
        "fc.weight": np.arange(6.0).reshape(2, 3),
        "conv.weight": np.arange(48.0).reshape(2, 3, 4, 2),
        "emb.weight": np.ones((5, 2)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    save_npz(tmp_path, step_1=arrays, step_2=arrays)
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1, transpose=True)
    assert dict(zip(run.layout.names, run.layout.shapes, strict=True)) == {
        "conv.weight": (4, 2, 3, 2), "emb.weight": (5, 2), "fc.weight": (3, 2),
    }  # fmt: skip
    write_checkpoint(tmp_path / "new.npz", run.weights[0], run.layout, tmp_path / "step_1.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "new.npz")["conv.weight"], arrays["conv.weight"])
    np.testing.assert_array_equal(run.weights[0, -6:], arrays["fc.weight"].T.ravel())
    np.testing.assert_array_equal(run.weights[0, :48], arrays["conv.weight"].transpose(2, 3, 1, 0).ravel())


def test_a_large_run_lies_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("gfm_jax.runs.checkpoints.IN_MEMORY", 8)
    save_npz(tmp_path, step_1=W, step_2=W)
    run = gfm.read_checkpoints(tmp_path, learning_rate=0.1)
    assert isinstance(run.weights, np.memmap)
    assert run.weights.sum() == 12
    assert gfm.read_checkpoints(tmp_path, learning_rate=0.1, dtype=jnp.bfloat16).weights.dtype == jnp.bfloat16


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad(name, folder):
    """What is wrong with a folder or with the arguments, and what is said of it."""
    other = W | {"w": np.ones((2, 4), np.float32)}
    if name == "a shape":
        save_npz(folder, step_1=W, step_2=other)
        return {}, r"step_2.npz: expected w of shape \(2, 3\), as in .*step_1.npz, got \(2, 4\)"
    if name == "a tensor is missing":
        save_npz(folder, step_1=W, step_2={"w": W["w"]})
        return {}, r"step_2.npz: expected the tensors of .*step_1.npz, got none called b"
    if name == "a tensor more":
        save_npz(folder, step_1=W, step_2=W | {"v": W["b"]})
        return {}, r"step_2.npz: expected the tensors of .*, got one more, v"
    if name == "NaN":
        save_npz(folder, step_1=W, step_2=W | {"b": np.full(3, np.nan, np.float32)})
        return {}, r"step_2.npz: expected finite weights, got NaN or infinity in b"
    if name == "a step twice":
        save_npz(folder, a_step_2=W, b_step_2=W)
        return {}, r"steps: expected each once, got step 2 of .*a_step_2.npz and of .*b_step_2.npz"
    if name == "no step":
        save_npz(folder, first=W, second=W)
        return (
            {},
            r"steps: expected a number in the name of .*first.npz, got none; hand over a list of files without it",
        )
    if name == "two numbers":
        save_npz(folder, epoch_1_acc_91=W, epoch_2_acc_93=W)
        return (
            {},
            r"steps: expected one number that differs from name to name, got epoch_1_acc_91.npz and epoch_2_acc_93",
        )
    if name == "one":
        save_npz(folder, step_1=W)
        return {}, r"folder_or_files: expected at least two checkpoints of a run, got 1"
    if name == "none":
        (folder / "notes.txt").write_text("")
        return {}, r"folder_or_files: expected checkpoints in .*, got none of orbax"
    if name == "two formats":
        save_npz(folder, step_1=W)
        safetensors.flax.save_file({"w": jnp.ones(2)}, folder / "step_2.safetensors")
        return (
            {},
            r"expected checkpoints of one format.*npz \(step_1.npz\), safetensors \(step_2.safetensors\)",
        )
    if name.startswith("a truncated"):
        kind = name.split()[-1]
        paths = write(folder, kind)
        cut_short(paths[1])
        return {}, rf"{paths[1].name}: expected a whole checkpoint in the format {kind}, but it cannot be read"
    if name == "a pickle in npz":
        save_npz(folder, step_1=W)
        np.savez(folder / "step_2.npz", w=np.array([{"a": 1}], object), b=W["b"])
        return {}, r"step_2.npz: expected the tensors of .*, got none called w"
    if name == "integers":
        save_npz(folder, step_1={"n": np.arange(3)}, step_2={"n": np.arange(3)})
        return {}, r"step_1.npz: expected floating-point tensors of a network, got none"
    save_npz(folder, step_1=W, step_2=W)
    cases = {
        "steps": ({"steps": [1, 2, 3]}, "steps: expected one for each of 2 checkpoints, got 3"),
        "a negative step": ({"steps": [-1, 2]}, "steps: expected numbers from 0 on, got -1 of"),
        "a step of 1.5": ({"steps": [1.5, 2]}, r"steps: expected an integer for each of 2 checkpoints, got \[1.5, 2\]"),
        "a rate for steps": ({"steps": 0.1}, "steps: expected an integer for each of 2 checkpoints, got 0.1"),
        "a rate as text": ({"learning_rate": "0.1"}, "learning_rate: expected a number, a schedule, or one for each"),
        "rates": ({"learning_rate": [0.1, 0.2, 0.3]}, r"learning_rate: expected a number, or one for each of 2"),
        "a negative rate": ({"learning_rate": -0.1}, "learning_rate: expected finite numbers from 0 on, got -0.1"),
        "a dtype": ({"dtype": np.int32}, "dtype: expected a floating-point type"),
    }
    return cases[name]


BAD = [
    "a shape",
    "a tensor is missing",
    "a tensor more",
    "NaN",
    "a step twice",
    "no step",
    "one",
    "none",
    "two formats",
]
BAD += ["a truncated npz", "a truncated safetensors", "a truncated msgpack", "a pickle in npz", "integers", "steps"]
BAD += ["a step of 1.5", "a rate for steps", "a rate as text", "a negative step", "rates", "a negative rate", "a dtype"]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_by_name(tmp_path, name):
    arguments, message = bad(name, tmp_path)
    with pytest.raises(ValueError, match=message):
        gfm.read_checkpoints(tmp_path, **{"learning_rate": 0.1} | arguments)


def test_paths_that_there_are_not(tmp_path):
    with pytest.raises(
        ValueError, match=r"folder_or_files: expected a folder of checkpoints, got .*nowhere, which does not exist"
    ):
        gfm.read_checkpoints(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"folder_or_files: expected checkpoints, got .*a.npz, which does not exist"):
        gfm.read_checkpoints([tmp_path / "a.npz", tmp_path / "b.npz"])


def test_torch():
    torch = pytest.importorskip("torch")

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="error"):
        for step in (10, 20):
            torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, f"{folder}/step_{step}.pt")
        run = gfm.read_checkpoints(folder, learning_rate=0.1)
        assert run.layout.convention == "torch"
        state = model.state_dict()
        names = sorted(name for name, tensor in state.items() if "running" not in name and tensor.is_floating_point())
        assert run.layout.names == tuple(names)
        np.testing.assert_array_equal(run.weights[0], np.concatenate([state[name].numpy().ravel() for name in names]))
        write_checkpoint(f"{folder}/new.pt", 2 * run.weights[0], run.layout, f"{folder}/step_20.pt")
        new = torch.load(f"{folder}/new.pt", weights_only=True)
        assert new["epoch"] == 1
        model.load_state_dict(new["model_state_dict"])
        np.testing.assert_array_equal(model.state_dict()["0.weight"].numpy().ravel(), 2 * run.weights[0][4:16])
        torch.save(print, f"{folder}/step_30.pt")
        with pytest.raises(
            ValueError, match=r"step_30.pt: expected a whole checkpoint in the format torch, but it cannot be read"
        ):
            gfm.read_checkpoints([f"{folder}/step_10.pt", f"{folder}/step_30.pt"], learning_rate=0.1)
