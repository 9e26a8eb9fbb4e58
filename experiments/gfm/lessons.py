"""The runs to learn from: recorded, observed, and let go of, one structure at a time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from experiments.gfm.evaluate import MAX_LOSS, rows_of, trained
from experiments.gfm.zoo import Batch, record_zoo
from gfm_jax.forecasting import Windows, cut, merge, thin
from gfm_jax.forecasting.field_forecaster import FEATURE_DROPOUT, FRACTIONS

__all__ = ["Lessons", "learn_from"]


class Lessons(NamedTuple):
    """What there is to learn from, network by network.

    Attributes:
      windows: of all runs, observed at several fractions with the curvature of their loss; of `config.coordinates` weights.
      whole: the same of all weights; where `windows` are not, of a few runs.
      losses: of the networks, as functions of flat weights.
      dropped: how many runs diverged or were never trained, and are left out.
    """

    windows: list[Windows]
    whole: list[Windows]
    losses: list[Callable]
    dropped: int


def learn_from(config, tasks, specs, loss_of: dict[str, Callable]) -> Lessons:
    """Records runs and observes them; of what was recorded nothing else is kept.

    Raises:
      ValueError: where a network has no run to learn from.
    """

    def look(batch: Batch):
        network, kept = batch.specs[0].network, trained(batch)
        cuts = {"feature_dropout": FEATURE_DROPOUT, "loss": loss_of[network]}
        windows = cut(batch.trajectory, FRACTIONS, **cuts)
        part, whole = (windows, rows_of(windows, kept)), None
        if config.coordinates:
            part = (thin(windows, config.coordinates), part[1])
            some = (kept if len(kept) else np.zeros(1, int))[: config.whole_runs]
            whole = cut(jax.tree.map(lambda leaf: leaf[some], batch.trajectory), FRACTIONS, **cuts)
            whole = (whole, np.arange(len(whole.run) if len(kept) else 0))
        return network, part, whole, len(batch.specs) - len(kept)

    with tqdm(total=len(specs), desc="record the runs to learn from", unit="run") as bar:
        found = record_zoo(config, tasks, specs, bar.update, look)
    networks = list(dict.fromkeys(network for network, *_ in found))

    def of_each_network(which):
        parts = [[entry[which] for entry in found if entry[0] == network] for network in networks]
        return [merge(*zip(*part, strict=True)) for part in parts]

    windows = of_each_network(1)
    for network, part in zip(networks, windows, strict=True):
        if not len(part.run):
            raise ValueError(
                f"there is nothing to learn from: every run of {network} diverged or ended above a loss of {MAX_LOSS:g}; "
                "give them more steps (num_steps)"
            )
    whole = of_each_network(2) if config.coordinates else windows
    return Lessons(windows, whole, [loss_of[network] for network in networks], sum(entry[-1] for entry in found))
