"""What the flow map experiment can be told, and its presets."""

import dataclasses

from gfm_jax.methods.self_distilled_flow_map import OBJECTIVES

__all__ = ["PRESETS", "Config", "check"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Learn flow maps on a checkerboard by self-distillation, and count what few jumps cost."""

    preset: str = "laptop"
    seed: int = 0
    methods: tuple[str, ...] = ("lsd", "esd", "psd_m", "psd_u", "mean_flow")
    num_fits: int = 3
    """Fits of every method, each with a seed of its own."""
    coupling: str = "optimal_transport"
    """Which source goes with which data point: "optimal_transport" in minibatches, from data alone, or "independent"."""
    num_points: int = 400_000
    """Points of the board that are learned from."""
    block: int = 256
    """Of the minibatches of the transport."""
    widths: tuple[int, ...] = (160,) * 8
    batch_size: int = 256
    diagonal_share: float = 0.7
    lsd_steps: int = 28_000
    """Of Lagrangian self-distillation at its full budget."""
    num_steps: int = 3_000
    """Of every method at an equal budget."""
    peak_rate: float = 4e-3
    steep_rate: float = 1e-3
    """The learning rate of those that differentiate the map in space, ESD and Mean Flow: higher ones diverge."""
    optimizer: str = "adam"
    """"adam" on a cosine, or "radam" on the inverse root of the steps after the first 35,000, as published."""
    num_jumps: tuple[int, ...] = (1, 2, 4, 8, 16)
    num_samples: int = 64_000
    bins: tuple[int, ...] = (48, 50)


PRESETS = {
    "smoke": Config(
        preset="smoke", methods=("lsd", "psd_m"), num_fits=2, num_points=2048, widths=(32, 32), lsd_steps=60,
        num_steps=30, num_jumps=(1, 4), num_samples=4096,
    ),
    "laptop": Config(),
    "gpu_short": Config(
        preset="gpu_short", num_points=4_000_000, widths=(512,) * 5, batch_size=4096, diagonal_share=0.75,
        lsd_steps=366_000, num_steps=30_000, peak_rate=2e-3, num_samples=64_000,
    ),
    "paper": Config(
        preset="paper", coupling="independent", num_points=10_000_000, widths=(512,) * 5, batch_size=100_000,
        diagonal_share=0.75, lsd_steps=150_000, num_steps=150_000, peak_rate=1e-3, steep_rate=1e-3, optimizer="radam",
    ),
}  # fmt: skip


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run."""
    for name in config.methods:
        if name not in OBJECTIVES:
            raise ValueError(f"methods: expected some of {', '.join(OBJECTIVES)}, got {name!r}")
    for field, choices in (("coupling", ("optimal_transport", "independent")), ("optimizer", ("adam", "radam"))):
        if (value := getattr(config, field)) not in choices:
            raise ValueError(f"{field}: expected one of {', '.join(choices)}, got {value!r}")
    for field in ("num_fits", "num_points", "block", "batch_size", "lsd_steps", "num_steps", "num_samples"):
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{field}: expected at least 1, got {value}")
    for field in ("methods", "widths", "num_jumps", "bins"):
        values = getattr(config, field)
        if not values or any(isinstance(value, int) and value < 1 for value in values):
            raise ValueError(f"{field}: expected one or more, each at least 1, got {values}")
    if not 0 < config.diagonal_share < 1:
        raise ValueError(f"diagonal_share: expected a share in (0, 1), got {config.diagonal_share}")
