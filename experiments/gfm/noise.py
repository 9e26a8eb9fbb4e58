"""The noise floor: how far runs part that share their prefix but not their later minibatches."""

import numpy as np
from tqdm.auto import tqdm

from experiments.gfm.zoo import OPTIMIZERS, RATES, record_structure
from gfm_jax.tasks import branched
from gfm_jax.trajectories import save_at

__all__ = ["noise_floor"]


def noise_floor(config, tasks, folder, num_branches: int = 5) -> None:
    r"""Adds a table: for every optimizer the relative squared error below which no forecast can get.

    .. math:: \frac{E\,|w_m - E[w_m \mid \text{prefix}]|^2}{E\,|w_m - w_n|^2}

    Runs of the first network, one a learning rate and branch, at a constant rate.
    """
    network = config.networks[0]
    task = branched(tasks[network])
    for optimizer in tqdm(config.optimizers, desc="noise floor"):
        peaks = np.repeat(RATES[optimizer][0], num_branches)
        rates = np.repeat(peaks[:, None], config.num_steps, axis=1)
        cells = len(RATES[optimizer][0])
        seeds = np.repeat(10**6 + np.arange(cells), num_branches)
        floors = {}
        for prefix in config.prefixes:
            variety = {
                "branch": np.tile(np.arange(num_branches), cells),
                "branch_step": np.full(len(peaks), round(prefix * config.num_steps)),
            }
            runs = record_structure(config, task, network, OPTIMIZERS[optimizer], seeds, rates, variety)
            last = save_at(runs, prefix)
            by_cell = (cells, num_branches, -1)
            start, end = (runs.weights[: len(seeds), save].reshape(by_cell) for save in (last, -1))
            if not np.allclose(start, start[:, :1], rtol=1e-4, atol=1e-5):
                raise RuntimeError("branches of a run differ before they part")
            parted = end.var(axis=1, ddof=1).sum(-1)
            moved = ((end - start) ** 2).sum(-1).mean(-1)
            floors[f"floor/{prefix}"] = float(np.mean(parted / moved))
        folder.add("noise_floor", optimizer, **floors)
