"""What the integrators experiment can be told, and its presets."""

import dataclasses

from experiments.integrators.methods import NUM_TRAIN, ON_THE_FLOW, TRAINED

__all__ = ["PRESETS", "Config", "check"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Hold optimizers to what they are as numerical methods, and train with them."""

    preset: str = "laptop"
    seed: int = 0
    methods: tuple[str, ...] = tuple(ON_THE_FLOW)
    """That are compared with the gradient flow."""
    num_starts: int = 3
    """Initial weights that distances to the flow are averaged over."""
    order_updates: tuple[int, ...] = (160, 320, 640)
    stability_updates: int = 4000
    """Updates after which a mode has died out or not."""
    noise_updates: int = 40_000
    fidelity_gradients: tuple[int, ...] = (40, 80, 160, 320, 640)
    fidelity_images: int = 100
    fidelity_time: float = 40.0
    """Sum of the learning rates of a run that is compared with the flow of the digits' loss."""
    shuffles: int = 2000
    """Orders of the minibatches that ends are averaged over."""
    shuffling_rates: tuple[float, ...] = (0.1, 0.05, 0.025)
    shuffling_time: float = 4.0
    trained: tuple[str, ...] = tuple(TRAINED)
    """Optimizers that are compared in training."""
    tasks: tuple[str, ...] = ("mlp", "cnn")
    num_gradients: tuple[int, ...] = (2200, 1100)
    """The budget of a run, by task; a method with several stages takes fewer updates."""
    batch_size: int = 64
    num_saves: int = 20
    tuning_seeds: int = 5
    fresh_seeds: int = 20
    first_rates: int = 8
    """Learning rates of the grid at first; it grows until the best is inside it."""
    rate_factor: float = 2.0
    """From one of them to the next."""


PRESETS = {
    "smoke": Config(
        preset="smoke", methods=("sgd", "adams_bashforth_2", "heun"), num_starts=2, order_updates=(40, 80),
        stability_updates=400, noise_updates=2000, fidelity_gradients=(80, 160), fidelity_images=20, fidelity_time=2.0,
        shuffles=50, shuffling_rates=(0.4, 0.2), shuffling_time=2.0, trained=("sgd", "adams_bashforth_2"), tasks=("mlp",),
        num_gradients=(60,), num_saves=4, tuning_seeds=2, fresh_seeds=4, first_rates=4,
    ),
    "laptop": Config(),
    "paper": Config(preset="paper", num_gradients=(22_000, 22_000), fresh_seeds=40),
}  # fmt: skip


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run."""
    for field, known in (("methods", ON_THE_FLOW), ("trained", TRAINED), ("tasks", ("mlp", "cnn"))):
        values = getattr(config, field)
        if not values or len(set(values)) < len(values) or not set(values) <= set(known):
            raise ValueError(f"{field}: expected one or more of {', '.join(known)}, each once, got {values}")
    for field in ("methods", "trained"):
        if "sgd" not in getattr(config, field):
            raise ValueError(
                f"{field}: expected sgd among them, which others are set beside, got {getattr(config, field)}"
            )
    for field in COUNTS:
        if (value := getattr(config, field)) < 2:
            raise ValueError(f"{field}: expected at least 2, got {value}")
    for field in ("order_updates", "fidelity_gradients"):
        values = getattr(config, field)
        if len(values) < 2 or list(values) != sorted(set(values)) or any(value % 20 for value in values):
            raise ValueError(f"{field}: expected rising multiples of 20, which every method divides, got {values}")
    if len(config.num_gradients) != len(config.tasks) or min(config.num_gradients) < 20:
        raise ValueError(f"num_gradients: expected at least 20 for each of {config.tasks}, got {config.num_gradients}")
    for field in ("fidelity_time", "shuffling_time"):
        if not getattr(config, field) > 0:
            raise ValueError(f"{field}: expected a positive time, got {getattr(config, field)}")
    rates = config.shuffling_rates
    if len(set(rates)) < 2 or not all(rate > 0 for rate in rates):
        raise ValueError(f"shuffling_rates: expected two or more positive learning rates, got {rates}")
    if config.fresh_seeds % config.tuning_seeds:
        raise ValueError(
            f"fresh_seeds: expected a multiple of tuning_seeds, {config.tuning_seeds}, got {config.fresh_seeds}"
        )
    if config.batch_size > NUM_TRAIN:
        raise ValueError(f"batch_size: expected at most {NUM_TRAIN}, the training images, got {config.batch_size}")
    if not config.rate_factor > 1:
        raise ValueError(f"rate_factor: expected more than 1, got {config.rate_factor}")


COUNTS = (
    "num_starts", "stability_updates", "noise_updates", "fidelity_images", "shuffles", "batch_size", "num_saves",
    "tuning_seeds", "fresh_seeds", "first_rates",
)  # fmt: skip
