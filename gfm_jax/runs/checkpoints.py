"""A run of one's own from its checkpoints: in any common format, tensor by tensor."""

import itertools
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tqdm.auto import tqdm

from gfm_jax.base import Layout, Trajectory
from gfm_jax.layers import output_axis
from gfm_jax.parameters import statistics_among
from gfm_jax.runs.checkpoint_formats import Entry, checkpoints_in, entries_of, format_of

__all__ = ["last_checkpoint", "parameters_in", "read_checkpoints", "transposition"]

# Where parameters lie in a checkpoint that holds more: the first of these that there is, again and again.
PARTS = ("params", "model", "model_state_dict", "state_dict", "module", "weights")
IN_MEMORY = 2**28  # bytes of a run that are kept in memory; of a larger one they lie in a file that goes with the array

Path = str | os.PathLike[str]


def read_checkpoints(
    folder_or_files: Path | Sequence[Path],
    steps: Sequence[int] | None = None,
    learning_rate: Callable | Sequence[float] | float | None = None,
    *,
    part: str | None = None,
    transpose: bool = False,
    dtype: DTypeLike = np.float32,
    progress: bool | None = None,
) -> Trajectory:
    """The run that a folder of checkpoints, or a list of them, was written by, ready to be forecast.

    Reads orbax (folders and those of its managers), flax msgpack, safetensors (single files, and shards with an index), `.npz`
    and, where torch is installed, PyTorch's state dicts (weights alone; no other pickle is opened). Checkpoints are read one
    after the other, and a large run lies in a temporary file that is mapped into memory.

    Only parameters are read: counters, random keys, states of optimizers and statistics of BatchNorm are left out.

    Args:
      folder_or_files: a folder of checkpoints, or the checkpoints, each a file or a folder. Those of a folder are in the
        natural order of their names, "step_5" before "step_10".
      steps: the step of each checkpoint, in that order. None for what each says itself, as "step" among its tensors or in its
        metadata, else for the number in its name: the one after "step", or the only one that differs from name to name.
      learning_rate: a number, a schedule of the step, or the rate of each checkpoint, in that order. None where it is not
        known: the clock of the run is then its number of steps, and a warning says so.
      part: path of the parameters in a checkpoint that holds more, such as "ema/params"; None finds "params", "model",
        "state_dict" and their like.
      transpose: whether kernels of torch are brought into flax's order, [in, out] and HWIO.
      dtype: of the weights, a floating-point type.
      progress: whether a bar shows how far it is; None for one on a terminal.

    Returns:
      A run [saves, ...] whose tensors stand in the order of a pytree, as `gfm.ravel` has it: level by level by name, the
      items of lists by number. `gfm.unravel(like, weights, run.layout)` finds them by name.

    Raises:
      ValueError: for fewer than two checkpoints, a step that is twice there or cannot be told, checkpoints of different
        tensors or shapes, numbers that are not finite, and files that are damaged or of no known format: each by name.

    >>> import gfm_jax as gfm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (100, 200, 300):
    ...         np.savez(f"{folder}/step_{step}.npz", kernel=np.full((2, 3), step / 100), bias=np.zeros(3))
    ...     run = gfm.read_checkpoints(folder, learning_rate=1e-3)
    >>> run.step.tolist(), run.time.round(2).tolist(), run.layout.names, run.weights.shape
    ([100, 200, 300], [0.1, 0.2, 0.3], ('bias', 'kernel'), (3, 9))
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype: expected a floating-point type, got {dtype!r}")
    paths = _paths(folder_or_files)
    _check_steps(steps, len(paths))
    shapes, own = zip(*(_look(path, part) for path in paths), strict=True)
    known = _steps(paths, own) if steps is None else [int(step) for step in steps]
    order = _order(paths, known)
    paths, shapes = [paths[k] for k in order], [shapes[k] for k in order]
    step = np.array([known[k] for k in order])
    time, rates = _clock(learning_rate, step, order)
    layout, axes = _layout(paths, shapes, transpose)
    weights = _read(paths, part, layout, axes, jnp.dtype(dtype), progress)
    run: Any = {"step": step, "time": time, "weights": weights, "learning_rate": rates, "finite": np.array(True)}
    return Trajectory(**run, layout=layout)


def _look(path, part) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """The shapes of a checkpoint's parameters, and its step where it holds one; none of its weights stays in memory."""
    parameters, others = parameters_in(path, part)
    is_step = lambda e: e.path[-1] == "step" and len(e.path) <= 2 and e.shape == () and e.dtype.kind in "iu"
    step = next((int(entry.read()) for entry in others if is_step(entry)), None)
    return {name: entry.shape for name, entry in parameters.items()}, step


def _check_steps(steps, num):
    if steps is None:
        return
    if np.ndim(steps) != 1 or np.asarray(steps).dtype.kind not in "iu":
        raise ValueError(f"steps: expected an integer for each of {num} checkpoints, got {steps!r}")
    if len(steps) != num:
        raise ValueError(f"steps: expected one for each of {num} checkpoints, got {len(steps)}")


def last_checkpoint(
    folder_or_files: Path | Sequence[Path], steps: Sequence[int] | None = None, *, part: str | None = None
) -> pathlib.Path:
    """The checkpoint of the last step, which `write_checkpoint` can write others like.

    Args:
      folder_or_files, steps, part: as `read_checkpoints` takes them.

    Raises:
      ValueError: as `read_checkpoints`, for steps that cannot be told.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (90, 100):
    ...         np.savez(f"{folder}/step_{step}.npz", w=np.ones(2))
    ...     last_checkpoint(folder).name
    'step_100.npz'
    """
    paths = _paths(folder_or_files)
    _check_steps(steps, len(paths))
    known = _steps(paths, [_look(path, part)[1] for path in paths]) if steps is None else list(steps)
    return paths[_order(paths, known)[-1]]


# --- which checkpoints, at which steps --------------------------------------------------------------------------------


def _paths(folder_or_files) -> list[pathlib.Path]:
    if isinstance(folder_or_files, str | os.PathLike):
        folder = pathlib.Path(folder_or_files).expanduser()
        if not folder.exists():
            raise ValueError(f"folder_or_files: expected a folder of checkpoints, got {folder}, which does not exist")
        paths = [folder] if format_of(folder) else checkpoints_in(folder)
    else:
        paths = [pathlib.Path(path).expanduser() for path in folder_or_files]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise ValueError(f"folder_or_files: expected checkpoints, got {missing[0]}, which does not exist")
    if len(paths) < 2:
        raise ValueError(
            f"folder_or_files: expected at least two checkpoints of a run, got {len(paths)}: one has no direction"
        )
    return paths


def _steps(paths, own) -> list[int]:
    """The step of each checkpoint: its own, else the number in its name."""
    if all(step is not None for step in own):
        return list(own)
    names = [_name_of(path) for path in paths]
    by_word = [re.findall(r"step[_=\- ]?(\d+)", name) for name in names]
    if all(len(numbers) == 1 for numbers in by_word):
        return [int(numbers[0]) for numbers in by_word]
    numbers = [re.findall(r"\d+", name) for name in names]
    if none := [path for path, found in zip(paths, numbers, strict=True) if not found]:
        raise ValueError(
            f"steps: expected a number in the name of {none[0]}, got none; hand over a list of files without it, or steps=[...]"
        )
    columns = list(zip(*numbers, strict=True)) if len({len(found) for found in numbers}) == 1 else []
    differ = [column for column in columns if len(set(column)) > 1]
    if len(differ) != 1:
        raise ValueError(
            f"steps: expected one number that differs from name to name, got {names[0]} and {names[-1]}; hand over steps=[...]"
        )
    if any("epoch" in name for name in names):
        warnings.warn("steps: the numbers of epochs in the names are taken for steps", stacklevel=3)
    return [int(number) for number in differ[0]]


def _name_of(path):
    above = path.parent.name  # checkpoint-500/model.safetensors
    is_step = re.fullmatch(r"(.*(step|checkpoint|ckpt|epoch|iter)\D*)?\d+", above)
    name = re.sub(r"-\d+-of-\d+", "", path.name)
    return f"{above}/{name}" if is_step and not re.search(r"\d", name) else name


def _order(paths, steps):
    order = sorted(range(len(steps)), key=steps.__getitem__)
    for before, after in itertools.pairwise(order):
        if steps[before] == steps[after]:
            raise ValueError(
                f"steps: expected each once, got step {steps[after]} of {paths[before]} and of {paths[after]}"
            )
    if steps[order[0]] < 0:
        raise ValueError(f"steps: expected numbers from 0 on, got {steps[order[0]]} of {paths[order[0]]}")
    return order


def _clock(learning_rate, steps, order):
    """The sum of the rates of the steps before each checkpoint, and the rate of the last of them."""
    if learning_rate is None:
        warnings.warn("learning_rate: not given; the clock of the run is its number of steps", stacklevel=3)
        return None, None
    if callable(learning_rate):
        every = np.asarray(jax.vmap(learning_rate)(jnp.arange(max(steps[-1], 1))), np.float64)
        return np.concatenate([[0], np.cumsum(every)])[steps], every[np.maximum(steps - 1, 0)]
    if np.asarray(learning_rate).dtype.kind not in "fiu":
        raise ValueError(
            f"learning_rate: expected a number, a schedule, or one for each checkpoint, got {learning_rate!r}"
        )
    rates = np.asarray(learning_rate, np.float64)
    if rates.shape not in ((), steps.shape):
        raise ValueError(
            f"learning_rate: expected a number, or one for each of {len(steps)} checkpoints, got {rates.shape}"
        )
    rates = np.full(steps.shape, rates) if rates.ndim == 0 else rates[order]
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(f"learning_rate: expected finite numbers from 0 on, got {learning_rate}")
    return np.cumsum(np.diff(steps, prepend=0) * rates), rates


# --- parameters and what is beside them -------------------------------------------------------------------------------


def parameters_in(path, part) -> tuple[dict[str, Entry], list[Entry]]:
    """The parameters of a checkpoint by name, and what else it holds."""
    entries = entries_of(path)
    prefix = tuple(re.split(r"[/.]", part)) if part else ()
    split = {entry: _components(entry) for entry in entries}
    inside = lambda: [entry for entry in entries if split[entry][: len(prefix)] == prefix]
    if part and not inside():
        tops = ", ".join(sorted({parts[0] for parts in split.values()})[:8])
        raise ValueError(f"part: expected a path in {path}, which holds {tops}, got {part!r}")
    while not part:
        below = {split[entry][len(prefix)] for entry in inside() if len(split[entry]) > len(prefix) + 1}
        chosen = next((name for name in PARTS if name in below), None)
        if chosen is None:
            break
        prefix = (*prefix, chosen)
    chosen = inside()
    own = {entry: split[entry][len(prefix) :] for entry in chosen}
    real = [entry for entry in chosen if jnp.issubdtype(entry.dtype, jnp.floating)]
    real = {_name(entry, own[entry]): entry for entry in _sorted(real, own)}
    statistics = set(statistics_among(list(real)))
    parameters = {name: entry for name, entry in real.items() if name not in statistics}
    if not parameters:
        raise ValueError(f"{path}: expected floating-point tensors of a network, got none")
    return parameters, [entry for entry in entries if entry not in set(parameters.values())]


def _components(entry):
    return tuple(piece for name in entry.path for piece in re.split(r"[/.]", name) if piece)


def _name(entry, own):
    """The name of a tensor below its part, with the separators that it has in the checkpoint."""
    own = own[:-1] if own[-1] == "value" and len(own) > 1 else own  # of a variable of NNX
    return ("." if "." in entry.path[-1] and "/" not in entry.path[-1] else "/").join(own)


def _sorted(entries, own):
    """In the order of a pytree: by name, level by level; the items of a list by number."""
    digits: dict[tuple[str, ...], bool] = {}
    for entry in entries:
        for k, name in enumerate(own[entry]):
            level = own[entry][:k]
            digits[level] = digits.get(level, True) and name.isdigit()
    place = lambda entry: [
        (int(name), "") if digits[own[entry][:k]] else (0, name) for k, name in enumerate(own[entry])
    ]
    return sorted(entries, key=place)


# --- one network, and its weights ---------------------------------------------------------------------------------------


def _layout(paths, shapes, transpose):
    """The layout that all checkpoints have, and of each tensor that is transposed the order of its axes."""
    first = shapes[0]
    for path, own in zip(paths[1:], shapes[1:], strict=True):
        if gone := sorted(first.keys() - own.keys()):
            raise ValueError(f"{path}: expected the tensors of {paths[0]}, got none called {gone[0]}")
        if new := sorted(own.keys() - first.keys()):
            raise ValueError(f"{path}: expected the tensors of {paths[0]}, got one more, {new[0]}")
        for name, shape in first.items():
            if own[name] != shape:
                raise ValueError(f"{path}: expected {name} of shape {shape}, as in {paths[0]}, got {own[name]}")
    convention = "torch" if format_of(paths[0]) == "torch" else None
    axes = {name: transposition(name, shape, convention) if transpose else None for name, shape in first.items()}
    turned = [tuple(shape[k] for k in axes[name] or range(len(shape))) for name, shape in first.items()]
    return Layout(tuple(first), tuple(turned), "flax" if transpose else convention), axes


def transposition(name, shape, convention):
    """The axes of a torch kernel [out, in, ...] in flax's order [..., in, out]; None of what stays."""
    if len(shape) < 2 or output_axis(name, shape, convention) != 0:
        return None
    return (*range(2, len(shape)), 1, 0)


def _read(paths, part, layout, axes, dtype, progress):
    weights = _empty((len(paths), layout.dim), dtype)
    hidden = None if progress is None else not progress
    for row, path in zip(weights, tqdm(paths, "checkpoints", disable=hidden, leave=False), strict=True):
        parameters, _ = parameters_in(path, part)
        begin = 0
        for name, size in zip(layout.names, layout.sizes, strict=True):
            array = parameters[name].read()
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{path}: expected finite weights, got NaN or infinity in {name}: the run has diverged"
                )
            array = array if axes[name] is None else array.transpose(axes[name])
            row[begin : begin + size] = array.reshape(-1)
            begin += size
    return weights


def _empty(shape, dtype):
    size = int(np.prod(shape)) * dtype.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # space that is not there is missed now, not in the middle
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise ValueError(
            f"folder_or_files: expected {size / 2**30:.1f} GiB of space in {tempfile.gettempdir()} for the weights of the "
            f"run, got {error.strerror}; set TMPDIR, or dtype=jnp.bfloat16"
        ) from error
