"""What a config cannot ask for, refused before anything is recorded."""

from collections.abc import Iterable

from experiments.gfm.config import Config
from experiments.gfm.histories import HISTORIES
from experiments.gfm.synthetic import SETTINGS
from experiments.gfm.zoo import NETWORKS, OPTIMIZERS, UNSEEN_OPTIMIZER, run_specs
from gfm_jax.base import Trajectory
from gfm_jax.forecasting import save_at
from gfm_jax.forecasting.field_forecaster import FRACTIONS
from gfm_jax.runs import save_steps

__all__ = ["check"]

AT_LEAST = {
    "num_steps": 1,
    "batch_size": 1,
    "fit_seeds": 1,
    "field_steps": 3,  # of which a velocity is fitted in a third
    "function_steps": 1,
    "train_images": 1,
    "nowcast_steps": 1,
    "synthetic_steps": 1,
    "batch_rows": 4,
    "whole_runs": 1,
}


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run.

    How many images there are is known once they are loaded: `make_tasks` looks at `sizes`.
    """
    for field, least in AT_LEAST.items():
        if (value := getattr(config, field)) < least:
            raise ValueError(f"{field}: expected at least {least}, got {value}")
    if config.coordinates is not None and config.coordinates < 1:
        raise ValueError(f"coordinates: expected at least 1, or None for all, got {config.coordinates}")
    if config.train_images > config.sizes[0]:
        raise ValueError(f"train_images: expected at most the {config.sizes[0]} of sizes, got {config.train_images}")
    for field in ("train_seeds", "more_network_seeds", "more_optimizer_seeds"):
        seeds = getattr(config, field)
        if min(seeds) < 0 or max(seeds) < 1:
            raise ValueError(f"{field}: expected three counts of runs, not all of them 0, got {seeds}")

    _names("networks", config.networks, NETWORKS, at_least=1)
    _names("more_networks", config.more_networks, NETWORKS)
    _names("unseen_network", [config.unseen_network], NETWORKS)
    if config.unseen_network in (*config.networks, *config.more_networks):
        raise ValueError(f"unseen_network: expected one that is not learned from, got {config.unseen_network!r}")
    known = [name for name in OPTIMIZERS if name != UNSEEN_OPTIMIZER]
    _names("optimizers", config.optimizers, known, at_least=1)
    _names("more_optimizers", config.more_optimizers, known)
    _names("histories", config.histories, HISTORIES)
    _names("synthetic", config.synthetic, SETTINGS)

    validation = sum(spec.split == "validation" for spec in run_specs(config))
    if not 0 < config.coverage <= validation / (validation + 1) + 1e-9:
        most = f"{validation / (validation + 1):.3f}, for {validation} validation runs"
        raise ValueError(f"coverage: expected a probability above 0 and at most {most}, got {config.coverage}")

    run = Trajectory(save_steps(config.num_steps, config.num_saves), None)
    if not config.prefixes:
        raise ValueError("prefixes: expected at least one fraction of a run to observe, got none")
    for field, fractions in (("prefixes", config.prefixes), ("num_saves", FRACTIONS)):
        for fraction in fractions:
            try:
                save_at(run, fraction)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None


def _names(field: str, names: Iterable[str], known: Iterable[str], at_least: int = 0) -> None:
    names = list(names)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{field}: expected names among {', '.join(known)}; got {', '.join(unknown)}")
    if len(names) < at_least or len(set(names)) < len(names):
        raise ValueError(f"{field}: expected at least {at_least} and no name twice, got {', '.join(names) or 'none'}")
