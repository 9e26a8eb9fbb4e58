"""The zoo: runs of every problem, recorded, observed and let go of, one problem and optimizer at a time."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from experiments.gfm.evaluate import loss_on
from experiments.pretrain.problems import OPTIMIZERS, PROBLEMS, Problem
from gfm_jax.base import Features, Horizon, Layout, Task, Trajectory
from gfm_jax.files import replacing
from gfm_jax.forecasting import Windows, cut, merge, thin
from gfm_jax.runs import record, save_steps

__all__ = ["TrainingSet", "WEIGHTS_ALONE", "draw_runs", "learn_from"]

OBSERVED = (0.12, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
REST = ("state", "gradient", "loss", "mean_weights")
WEIGHTS_ALONE = (*REST, "curvature")
# Most of what a field is fitted to is what users have: weights alone; then weights and curvature, then without some slots.
DROPOUT = (WEIGHTS_ALONE,) * len(OBSERVED) + (REST,) * 4 + (("mu", "trace"), ("curvature",))
OWN = ("run", "last", "weights", "distance")  # arrays of windows beside features and clock


class TrainingSet(NamedTuple):
    """What there is to learn from, by problem.

    Attributes:
      windows: of most runs, a few weights of each, to fit to in weight space.
      held: of the other runs, for the intervals.
      whole: of some runs with all weights, to fit to in function space, and the losses of their networks.
    """

    windows: list[Windows]
    held: list[Windows]
    whole: list[Windows]
    losses: list


def learn_from(config, folder: pathlib.Path, names: list[str]) -> TrainingSet:
    """Records what is not yet in `folder`, and reads the rest of it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    training = TrainingSet([], [], [], [])
    work = [(name, optimizer) for name in names for optimizer in PROBLEMS[name].optimizers]
    with tqdm(total=len(work), desc="record the zoo", unit="structure") as bar:
        for name in names:
            problem, parts = PROBLEMS[name], []
            task = problem.make()
            loss = loss_on(task, "train", slice(problem.examples))
            for optimizer in problem.optimizers:
                parts.append(_structure(config, folder, name, optimizer, task, loss))
                bar.update()
            learned, held, whole = (_merged(part) for part in zip(*parts, strict=True))
            training.windows.append(learned)
            training.held.append(held)
            if problem.in_function_space:
                training.whole.append(whole)
                training.losses.append(loss)
    return training


def _merged(parts):
    parts = [part for part in parts if part is not None]
    return merge(parts, [np.arange(len(part.run)) for part in parts]) if parts else None


def _structure(config, folder, name, optimizer, task, loss):
    """Windows of one problem and optimizer: to learn from, for the intervals, and whole ones."""
    path = folder / f"{name}-{optimizer}.npz"
    if not path.exists():
        number = list(PROBLEMS).index(name) * len(OPTIMIZERS) + list(OPTIMIZERS).index(optimizer)
        problem, extra = PROBLEMS[name], max(config.num_runs // 4, 2)
        runs, good = draw_runs(config, problem, optimizer, task, config.num_runs + extra, seed=[config.seed, number])
        if number % 4 == 3:  # as from a user who does not know the learning rates
            runs = runs._replace(time=runs.step.astype(jnp.float32), learning_rate=None)
        few = None if problem.in_function_space else config.coordinates
        windows = cut(
            runs, OBSERVED, feature_dropout=DROPOUT, loss=loss, coordinates=few, chunk=config.num_runs + extra
        )
        of_windows = np.asarray(windows.run)
        early = of_windows < config.num_runs
        learned, held = good[of_windows] & early, good[of_windows] & ~early
        pick = lambda chosen: merge([windows], [np.flatnonzero(chosen)])
        whole = None
        if problem.in_function_space:
            some = learned & (of_windows < config.whole_runs)
            rng = np.random.default_rng(number)
            whole = pick(some & (rng.random(len(some)) < config.whole_fraction))
            windows = thin(windows, config.coordinates)
        _write(path, {"learned": pick(learned), "held": pick(held), "whole": whole})
    return _read(path)


def draw_runs(config, problem: Problem, optimizer: str, task: Task, num: int, seed) -> tuple[Trajectory, np.ndarray]:
    """Runs whose peak rates, schedules and noise are drawn at random, and which of them did not diverge."""
    rng = np.random.default_rng(seed)
    make, (least, most) = OPTIMIZERS[optimizer]
    num_steps = max(int(problem.num_steps * config.scale), 3 * problem.saves[0])
    peaks = np.exp(rng.uniform(np.log(least), np.log(most), num))
    rates = np.stack([peak * schedule(rng, num_steps) for peak in peaks]).astype(np.float32)
    variety = {key: rng.uniform(*bounds, num).astype(np.float32) for key, bounds in problem.variety.items()}
    key = jax.random.key(rng.integers(2**31))
    runs = record(key, task, make, rates, _saves(rng, num_steps, *problem.saves), variety=variety or None, chunk=4)
    if problem.saves[1] == "late":
        runs = jax.tree.map(lambda leaf: leaf[:, 1:], runs._replace(finite=None, layout=None))._replace(
            finite=runs.finite, layout=runs.layout
        )
    good = np.asarray(runs.finite) & (np.asarray(runs.loss)[:, -1] < 1.2 * np.asarray(runs.loss)[:, 0])
    return runs, good


def schedule(rng: np.random.Generator, num_steps: int) -> np.ndarray:
    """Rates over their peak, at every step: one of seven shapes."""
    t = np.arange(num_steps) / num_steps
    shapes = (
        np.ones(num_steps),
        0.5 * (1 + np.cos(np.pi * t)),
        0.1 + 0.45 * (1 + np.cos(np.pi * t)),
        1 - t,
        np.minimum(t / 0.08, 0.5 * (1 + np.cos(np.pi * t))),
        np.where(t < rng.uniform(0.4, 0.8), 1, 0.1),
        1 / np.sqrt(1 + 20 * t),
    )
    return np.maximum(shapes[rng.choice(7, p=(0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1))], 1e-3)


def _saves(rng, num_steps, num, how):
    if how == "late":
        later = np.round(np.linspace(0.1, 1, num) * num_steps).astype(int)
        return np.concatenate([[0], later])
    if how == "random":
        return np.concatenate([[0], np.sort(rng.choice(np.arange(1, num_steps), num - 1, replace=False)), [num_steps]])
    return save_steps(num_steps, num, how)


def _write(path, parts):
    arrays = {}
    for part, windows in parts.items():
        if windows is None:
            continue
        layout = json.dumps([windows.layout.names, windows.layout.shapes])
        for name, value in _by_name(windows).items():
            arrays[f"{part}/{name}"] = np.asarray(value)
        arrays[f"{part}/layout"] = np.array(layout)
    with replacing(path) as file:
        np.savez(file, **arrays)


def _read(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def windows(part):
        if f"{part}/run" not in arrays:
            return None
        of = lambda prefix, names: {name: arrays[f"{part}/{prefix}{name}"] for name in names}
        names, shapes = json.loads(str(arrays[f"{part}/layout"]))
        layout = Layout(tuple(names), tuple(map(tuple, shapes)))
        features, clock = Features(**of("features/", Features._fields)), Horizon(**of("clock/", Horizon._fields))
        return Windows(features=features, clock=clock, layout=layout, **of("", OWN))

    return tuple(windows(part) for part in ("learned", "held", "whole"))


def _by_name(windows):
    parts = {"": windows, "features/": windows.features, "clock/": windows.clock}
    return {
        prefix + name: value
        for prefix, part in parts.items()
        for name, value in part._asdict().items()
        if prefix or name in OWN
    }
