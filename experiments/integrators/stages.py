"""The stages of the experiment: what is declared, what follows the flow, what minibatches leave behind, what trains."""

import pathlib

import jax
import numpy as np
from tqdm.auto import tqdm

from experiments.integrators.config import check
from experiments.integrators.declared import (
    measure_noise,
    measure_order,
    measure_stability,
    orders,
    regions,
    root_test,
)
from experiments.integrators.fidelity import measure_fidelity
from experiments.integrators.figures import FIGURES
from experiments.integrators.methods import ON_THE_FLOW
from experiments.integrators.shuffling import FLOWS, measure_shuffling, order_when_reversed
from experiments.integrators.training import train_or_read
from experiments.integrators.valley import walk
from experiments.precision import double_precision
from experiments.run_folder import RunFolder

__all__ = ["compare_integrators"]


def compare_integrators(config, out: pathlib.Path, command: str) -> None:
    """Every table and figure."""
    check(config)
    folder = RunFolder(out, config)
    key = jax.random.key(config.seed)
    arrays = {f"valley/{name}": path for name, path in walk().items()}
    with double_precision():
        arrays |= _declared(folder, config, jax.random.fold_in(key, 0))
        arrays |= _fidelity(folder, config, jax.random.fold_in(key, 1))
        arrays |= _shuffling(folder, config, jax.random.fold_in(key, 2))
    arrays |= _training(folder, config, jax.random.fold_in(key, 3))
    folder.finish("Gradient descent as a numerical method", command, arrays, FIGURES)


def _declared(folder, config, key):
    key_order, key_noise = jax.random.split(key)
    distances = measure_order(config, key_order)
    for name in config.methods:
        method = ON_THE_FLOW[name]
        folder.add(f"order/{name}", "declared", order=method.order)
        folder.add(f"order/{name}", "fitted", order=orders(config, distances[name]))
    for name in tqdm(config.methods, desc="stability"):
        method, roots = ON_THE_FLOW[name], root_test(name)
        folder.add(f"stability/{name}", "declared", interval=method.stability)
        if roots is not None:
            folder.add(f"stability/{name}", "root test", interval=roots)
        folder.add(f"stability/{name}", "measured", interval=measure_stability(config, name))
    for name in config.methods:
        if (declared := ON_THE_FLOW[name].noise) is not None:
            folder.add(f"noise/{name}", "declared", energy=declared)
            folder.add(f"noise/{name}", "measured", energy=measure_noise(config, key_noise, name))
    real, imaginary = np.linspace(-0.5, 4.5, 201), np.linspace(-2, 2, 161)
    grown = {f"region/{name}": growth for name, growth in regions(config.methods, real, imaginary).items()}
    return grown | {"region_real": real, "region_imaginary": imaginary}


def _fidelity(folder, config, key):
    far, off = measure_fidelity(config, key)
    arrays = {"fidelity_gradients": np.array(config.fidelity_gradients)}
    for num in config.fidelity_gradients:
        for name in config.methods:
            folder.add(f"fidelity/{num}", name, distance=far[name, num], sgd_over_it=far["sgd", num] / far[name, num])
    for name in config.methods:
        errors = {f"{num} gradients": off[name, num] for num in config.fidelity_gradients if (name, num) in off}
        if errors:
            folder.add("field_target", name, **errors)
        arrays[f"fidelity/{name}"] = np.stack([far[name, num] for num in config.fidelity_gradients], axis=1)
    return arrays


def _shuffling(folder, config, key):
    found = measure_shuffling(config, key)
    smallest = min(config.shuffling_rates)
    for name in config.methods:
        cell = found[name, smallest]
        for flow in FLOWS:
            folder.add(f"shuffling/{name}", f"flow of {flow}", distance=cell[flow])
        folder.add(f"shuffling/{name}", "standard error of the mean", distance=cell["standard_error"])
        order = order_when_reversed(config, found, name)
        folder.add(f"shuffling/{name}", "flow of loss, every second epoch reversed", order=order)
    return {}


def _training(folder, config, key):
    arrays = {}
    place = folder.path / "checkpoints"
    place.mkdir(exist_ok=True)
    for k, (task, num_gradients) in enumerate(zip(config.tasks, config.num_gradients, strict=True)):
        for name in tqdm(config.trained, desc=f"train {task}"):
            fit = train_or_read(
                place / f"{task}-{name}.npz", config, task, num_gradients, name, jax.random.fold_in(key, k)
            )
            folder.add(
                f"training/{task}",
                name,
                train_loss=fit.loss[:, -1],
                test_accuracy=fit.accuracy[:, -1],
                rate=fit.rate,
                seconds_per_epoch=fit.seconds,
            )
            arrays |= {f"training/{task}/{name}/{field}": np.asarray(value) for field, value in fit._asdict().items()}
    return arrays
