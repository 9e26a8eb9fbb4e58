"""Tables of what flows cost: medians over rounds, with the lowest and the highest ratio."""

import importlib.util

import numpy as np
from tqdm.auto import tqdm

from experiments.speed.contest import time_contestant

__all__ = ["time_flows"]


def time_flows(folder, config) -> None:
    """Losses against each other, peers, one jump, the exact field, companions, convolutions in loops, and watched runs."""
    rounds = {"rounds": config.flow_rounds}
    large = {"width": config.flow_width, "depth": 4, "batch": config.flow_batch, "num_steps": config.flow_steps}
    small = {"width": min(config.flow_width, 256), "depth": 3}
    batches = {"batch": min(config.flow_batch, 256), "num_steps": config.small_steps}
    samples = small | {"num": config.flow_samples, "num_steps": 100}
    num, dim, num_queries = config.closed_form
    images = {"side": config.image_side, "channels": config.image_channels, "batch": config.image_batch}

    _in_one_process(folder, config, "flow_steps", large | rounds | {"losses": config.losses})
    for label, size in (("small", small | batches), ("large", large)):
        _beside(folder, config, "flow_matching", "torchcfm", label, size)
    _in_one_process(folder, config, "sampling", samples | rounds)
    _beside(folder, config, "euler_steps", "torchdiffeq", "100 steps", samples)
    _in_one_process(folder, config, "closed_form", {"num": num, "dim": dim, "num_queries": num_queries} | rounds)
    _in_one_process(folder, config, "companions", images | {"counts": config.companions} | rounds)
    steps = {"num_steps": config.convolution_steps} | rounds
    _in_one_process(folder, config, "convolutional_runs", {"batch": 64} | steps)
    _in_one_process(folder, config, "unet_steps", images | steps)
    watched = {"width": config.width, "batch": 64, "num_steps": config.watched_steps}
    _in_one_process(folder, config, "watched_steps", watched | {"rounds": config.rounds})


def _in_one_process(folder, config, contestant, size):
    """Rows against the first one of them, which take turns; and what else they tell."""
    found = time_contestant(config, contestant, size)
    first = np.array(next(iter(found["seconds"].values())))
    for row, seconds in found["seconds"].items():
        _add(folder, contestant, row, np.array(seconds) / first, milliseconds=1e3 * np.median(seconds))
    for metric, value in found.items():
        if metric != "seconds":
            folder.add(contestant, metric, value=value)


def _beside(folder, config, ours, peer, label, size):
    """A peer in PyTorch, where it is installed, against us, in turn."""
    if not importlib.util.find_spec(peer):
        print(f"{peer} is not installed: its rows are left out")
        return
    rounds = tqdm(range(config.flow_rounds), desc=f"{peer}, {label}", leave=False)
    pairs = np.array([[time_contestant(config, name, size)["seconds"] for name in (ours, peer)] for _ in rounds])
    for row, seconds in zip(("ours", peer), pairs.T, strict=True):
        _add(folder, peer, f"{label}: {row}", seconds / pairs[:, 0], milliseconds=1e3 * np.median(seconds))


def _add(folder, table, row, ratio, **metrics):
    folder.add(table, row, **metrics, ratio=np.median(ratio), lowest=np.min(ratio), highest=np.max(ratio))
