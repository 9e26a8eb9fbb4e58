"""The noise floor: how far runs part that share their prefix but not their later minibatches."""

import numpy as np
from tqdm.auto import tqdm

from experiments.gfm.zoo import OPTIMIZERS, RATES, UNSEEN_OPTIMIZER, record_structure
from gfm_jax.forecasting import save_at
from gfm_jax.runs import branched

__all__ = ["noise_floor"]


def noise_floor(config, tasks, folder, num_branches: int = 5) -> None:
    r"""Adds a table: for every optimizer the relative squared error below which no forecast can get.

    .. math:: \frac{E\,|w_m - E[w_m \mid \text{prefix}]|^2}{E\,|w_m - w_n|^2}

    Runs of the first network, one a learning rate and branch, at a constant rate.
    """
    network = config.networks[0]
    task = branched(tasks[network])
    for optimizer in tqdm((*config.optimizers, UNSEEN_OPTIMIZER), desc="noise floor"):
        peaks = RATES[optimizer][0]
        shape = (len(config.prefixes), len(peaks), num_branches)  # all of them recorded side by side
        prefixes, rates, branches = (
            part.ravel()
            for part in np.broadcast_arrays(
                np.array(config.prefixes)[:, None, None], np.array(peaks)[:, None], np.arange(num_branches)
            )
        )
        seeds = 10**6 + np.broadcast_to(np.arange(len(peaks))[:, None], shape).ravel()
        variety = {"branch": branches, "branch_step": np.round(prefixes * config.num_steps).astype(int)}
        table = np.repeat(rates[:, None], config.num_steps, axis=1)
        runs = record_structure(config, task, network, OPTIMIZERS[optimizer], seeds, table, variety)
        weights = runs.weights[: len(seeds)].reshape(*shape, *runs.weights.shape[1:])
        floors = {}
        for prefix, of_prefix in zip(config.prefixes, weights, strict=True):
            start, end = of_prefix[:, :, save_at(runs, prefix)], of_prefix[:, :, -1]
            if not np.allclose(start, start[:, :1], rtol=1e-4, atol=1e-5):
                raise RuntimeError("branches of a run differ before they part")
            parted = end.var(axis=1, ddof=1).sum(-1)
            moved = ((end - start) ** 2).sum(-1).mean(-1)
            floors[f"floor/{prefix}"] = float(np.mean(parted / moved))
        folder.add("noise_floor", optimizer, **floors)
