"""What the closed form experiment can be told, and its presets."""

import dataclasses

from gfm_jax.datasets import NAMES

__all__ = ["PRESETS", "Config", "check"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Set what flow matching learns beside the closed form of what it is asked for."""

    preset: str = "laptop"
    seed: int = 0
    dataset: str = "digits"
    num_train: int = 1152
    """Images that are learned from; as many as there are besides, up to this number, are the test set."""
    classifier_steps: int = 1000
    """Of the classifier in whose features images are compared."""
    collapse_dims: tuple[int, ...] = (32, 128, 512, 3072)
    collapse_points: int = 20_000
    num_pairs: int = 128
    """Pairs of a source and a data point, in the first figures."""
    companions: tuple[int, ...] = (8, 32, 128)
    """M of the estimators whose bias and variance are measured."""
    estimator_time: float = 0.4
    estimator_paths: int = 20_000
    sizes: tuple[int, ...] = (10, 100, 400, 1152)
    """Numbers of training images."""
    taus: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    efm_companions: tuple[int, ...] = (1, 128, 256, 1024)
    """M of empirical flow matching, the batch among them."""
    efm_steps: tuple[int, ...] = (1500, 6000)
    """Lengths of those fits."""
    num_fits: int = 3
    num_steps: int = 6000
    batch_size: int = 128
    peak_rate: float = 1e-3
    network: str = "mlp"
    """"mlp" or "unet"."""
    widths: tuple[int, ...] = (256, 256, 256)
    """Of the perceptron's layers, or the U-Net's levels."""
    num_samples: int = 576
    solver_steps: int = 100


PRESETS = {
    "smoke": Config(
        preset="smoke", num_train=256, classifier_steps=100, collapse_dims=(32,), collapse_points=500, num_pairs=16,
        companions=(8,), estimator_paths=1000, sizes=(10, 256), taus=(0.0, 1.0), efm_companions=(1, 128),
        efm_steps=(40,), num_fits=2, num_steps=40, widths=(64,), num_samples=64, solver_steps=10,
    ),
    "laptop": Config(),
    "paper": Config(
        preset="paper", dataset="cifar10", num_train=50_000, num_pairs=256, sizes=(10, 100, 1000, 3000, 10_000, 50_000),
        efm_companions=(1, 128, 256, 1024), efm_steps=(50_000, 200_000), num_steps=200_000, peak_rate=2e-4,
        num_samples=10_000, network="unet", widths=(128, 256, 256),
    ),
}  # fmt: skip


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run."""
    if config.dataset not in NAMES:
        raise ValueError(f"dataset: expected one of {', '.join(NAMES)}, got {config.dataset!r}")
    if config.network not in ("mlp", "unet"):
        raise ValueError(f"network: expected 'mlp' or 'unet', got {config.network!r}")
    for field in COUNTS:
        if (value := getattr(config, field)) < 2:
            raise ValueError(f"{field}: expected at least 2, got {value}")
    for field in LISTS:
        values = getattr(config, field)
        if not values or list(values) != sorted(set(values)) or values[0] < 0:
            raise ValueError(f"{field}: expected one or more, in rising order, got {values}")
    if config.num_pairs > config.collapse_points:
        raise ValueError(
            f"num_pairs: expected at most collapse_points, {config.collapse_points}, got {config.num_pairs}"
        )
    if not config.peak_rate > 0:
        raise ValueError(f"peak_rate: expected a positive learning rate, got {config.peak_rate}")
    if not 0 < config.estimator_time < 1:
        raise ValueError(f"estimator_time: expected a time in (0, 1), got {config.estimator_time}")
    for size in config.sizes:
        if not 1 <= size <= config.num_train:
            raise ValueError(f"sizes: expected 1 to {config.num_train} training images, got {size}")
    if config.sizes[-1] != config.num_train:
        raise ValueError(f"sizes: expected all {config.num_train} training images as the last, got {config.sizes[-1]}")
    if config.efm_companions[0] != 1:
        raise ValueError(
            f"efm_companions: expected 1 as the first, which others are set beside, got {config.efm_companions}"
        )
    for num in config.efm_companions:
        if num != 1 and not config.batch_size <= num <= config.num_train:
            raise ValueError(f"efm_companions: expected 1, or {config.batch_size} to {config.num_train}, got {num}")
    for tau in config.taus:
        if abs(round(tau * config.solver_steps) - tau * config.solver_steps) > 1e-6 or not 0 <= tau <= 1:
            raise ValueError(f"taus: expected multiples of 1/{config.solver_steps} in [0, 1], got {tau}")


COUNTS = (
    "num_train", "classifier_steps", "collapse_points", "num_pairs", "estimator_paths", "num_fits", "num_steps", "batch_size",
    "num_samples", "solver_steps",
)  # fmt: skip
LISTS = ("collapse_dims", "companions", "sizes", "taus", "efm_companions", "efm_steps")
