"""The zoo: which runs are recorded, and to which split each of them belongs."""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from experiments.side_by_side import side_by_side
from gfm_jax.base import Network, Task, Trajectory
from gfm_jax.datasets import load_dataset
from gfm_jax.networks import CNN, MLP
from gfm_jax.runs import SCHEDULES, classification, record, save_steps

__all__ = [
    "NETWORKS",
    "OPTIMIZERS",
    "RATES",
    "SPLITS",
    "UNSEEN_OPTIMIZER",
    "Batch",
    "RunSpec",
    "make_tasks",
    "record_structure",
    "record_zoo",
    "run_specs",
]

SHAPES = ("constant", "cosine")  # of the learning rate
UNSEEN_OPTIMIZER = "rmsprop"
SPLITS = ("train", "validation", "seed", "learning_rate", "optimizer", "architecture")
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sign_sgd": optax.sign_sgd,
    "adam_95": functools.partial(optax.adam, b2=0.95),
    "adam_short": functools.partial(optax.adam, b1=0.5, b2=0.9),
    "rmsprop": functools.partial(optax.rmsprop, decay=0.9),
}
RATES = {  # optimizer: (grid of the training runs, held out: one between, one above the grid)
    "sgd": ((0.05, 0.2, 0.8), (0.4, 1.6)),
    "momentum": ((0.005, 0.02, 0.08), (0.04, 0.16)),
    "adam": ((0.001, 0.004, 0.016), (0.008, 0.032)),
    "adamw": ((0.001, 0.004, 0.016), (0.008, 0.032)),
    "sign_sgd": ((0.0003, 0.001, 0.003), ()),
    "adam_95": ((0.001, 0.004, 0.016), ()),
    "adam_short": ((0.001, 0.004, 0.016), ()),
    "rmsprop": ((0.001, 0.002, 0.004, 0.008), ()),
}
NETWORKS = {
    "mlp": MLP((32, 10)),
    "cnn": CNN((8, 16)),
    "deep": MLP((24, 24, 10)),
    "mlp3": MLP((32, 16, 10), activation=nn.gelu),
    "cnn3": CNN((8, 16, 16)),
    "cnn3_narrow": CNN((8, 12, 12)),
    "cnn4": CNN((8, 8, 16, 16)),
    "cnn3_gelu": CNN((12, 12, 16), activation=nn.gelu),
}


class RunSpec(NamedTuple):
    """One run: its split, its structure (network, optimizer), and what varies within the structure."""

    split: str
    network: str
    optimizer: str
    peak_rate: float
    schedule: str
    seed: int


class Batch(NamedTuple):
    """Recorded runs of one structure; the trajectory may hold a few more, recorded only to fill up its shape."""

    specs: list[RunSpec]
    task: Task
    trajectory: Trajectory


def run_specs(config) -> list[RunSpec]:
    """The runs of the zoo. Seeds never repeat from split to split, so no two splits share an initialisation."""
    seeds = itertools.count(1000 * config.seed)
    four, two = config.optimizers, config.networks
    grid = lambda seeds: lambda name: np.repeat(RATES[name][0], seeds).tolist()
    held_out = lambda seeds: lambda name: np.repeat(RATES[name][1], seeds).tolist()
    cells = [  # split, networks, optimizers, learning rates of the runs of every network, optimizer and schedule
        ("train", two, four, grid(config.train_seeds)),
        ("validation", two, four, grid(1)),
        ("seed", two, four, grid(2)),
        ("learning_rate", two, four, held_out(2)),
        ("optimizer", two, (UNSEEN_OPTIMIZER,), grid(2)),
        ("architecture", (config.unseen_network,), four, grid(2)),
        # More to learn from, numbered last, so that the runs of the splits above are those of a smaller zoo.
        ("train", config.more_networks, four, grid(config.more_network_seeds)),
        ("train", two, config.more_optimizers, grid(config.more_optimizer_seeds)),
    ]
    return [
        RunSpec(split, network, optimizer, rate, schedule, next(seeds))
        for split, networks, optimizers, rates in cells
        for network, optimizer, schedule in itertools.product(networks, optimizers, SHAPES)
        for rate in rates(optimizer)
    ]


def make_tasks(config) -> dict[str, Task]:
    """One task a network, on the data set shuffled once and split into train, validation and test.

    Raises:
      ValueError: where `config.sizes` leaves nothing to train, to choose or to test on.
    """
    parts = [load_dataset(config.dataset, split) for split in ("train", "test")]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].astype(np.float32), labels[order]
    num_train, num_validation = config.sizes
    stop = num_train + num_validation
    if min(num_train, num_validation) < 1 or stop >= len(images):
        raise ValueError(
            f"sizes: expected images for training and for validation that leave some of the {len(images)} for the test set, "
            f"got {num_train} and {num_validation}"
        )
    cuts = {"train": slice(0, num_train), "validation": slice(num_train, stop), "test": slice(stop, None)}
    images = (images - images[cuts["train"]].mean()) / images[cuts["train"]].std()
    tasks = {}
    for name in (*config.networks, *config.more_networks, config.unseen_network):
        module = NETWORKS[name]
        inputs = images if name.startswith("cnn") else images.reshape(len(images), -1)
        network = Network(functools.partial(_init, module, inputs.shape[1:]), module.apply)
        data = {split: (inputs[cut], labels[cut]) for split, cut in cuts.items()}
        tasks[name] = classification(network, data, config.batch_size)
    return tasks


def _init(module, shape, key):
    return module.init(key, jnp.zeros((1, *shape)))


def record_zoo(config, tasks, specs, progress, keep: Callable[[Batch], Any] = lambda batch: batch) -> list:
    """Records runs, one compiled call a structure, and returns what `keep` makes of each batch of them."""

    def batch(structure):
        network, optimizer = structure
        chosen = [spec for spec in specs if (spec.network, spec.optimizer) == structure]
        rates = [SCHEDULES[spec.schedule](spec.peak_rate, config.num_steps) for spec in chosen]
        rates = np.stack([np.broadcast_to(rate(np.arange(config.num_steps)), config.num_steps) for rate in rates])
        seeds = np.array([spec.seed for spec in chosen])
        runs = record_structure(config, tasks[network], network, OPTIMIZERS[optimizer], seeds, rates)
        return len(chosen), keep(Batch(chosen, tasks[network], runs))

    batches = []
    for num, kept in side_by_side(batch, sorted({(spec.network, spec.optimizer) for spec in specs})):
        progress(num)
        batches.append(kept)
    return batches


def record_structure(config, task, network, optimizer, seeds, rates, variety=None) -> Trajectory:
    """Records runs of one structure, split over all devices there are.

    All calls of a network are of one shape, so that nothing compiles twice: there may be more runs than seeds, which only
    fill that shape up.
    """
    counts = collections.Counter((spec.network, spec.optimizer, spec.split == "train") for spec in run_specs(config))
    num = max(len(seeds), *(count for (of_network, *_), count in counts.items() if of_network == network))
    mesh = jax.make_mesh((jax.device_count(),), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
    num += -num % mesh.devices.size
    fill = lambda array: np.resize(array, (num, *array.shape[1:]))
    variety = None if variety is None else {name: fill(value) for name, value in variety.items()}
    keys, saves = jax.vmap(jax.random.key)(fill(seeds)), save_steps(config.num_steps, config.num_saves)
    runs = record(keys, task, optimizer, fill(rates), saves, chunk=32, mesh=mesh, variety=variety)
    if jax.process_count() > 1:  # every host then goes on with all runs
        return multihost_utils.process_allgather(runs, tiled=True)
    return jax.device_get(runs)
