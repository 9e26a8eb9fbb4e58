"""What the flow map experiment can be told, and its presets."""

import dataclasses

from gfm_jax.datasets import NAMES

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
    widths: tuple[int, ...] = (64,) * 8
    batch_size: int = 256
    diagonal_fraction: float = 0.7
    lsd_steps: int = 72_000
    """Of Lagrangian self-distillation at its full budget."""
    num_steps: int = 6_000
    """Of every method at an equal budget."""
    peak_rate: float = 4e-3
    steep_rate: float = 1e-3
    """The learning rate of those that differentiate the map in space, ESD and Mean Flow: higher ones diverge."""
    optimizer: str = "adam"
    """"adam" on a cosine, or "radam" on the inverse root of the steps after the first 35,000, as published; of all fits."""
    num_jumps: tuple[int, ...] = (1, 2, 4, 8, 16)
    num_samples: int = 64_000
    bins: tuple[int, ...] = (48, 50)
    dataset: str = "digits"
    """Images, for the second half."""
    num_train: int = 1152
    """Images that are learned from; as many as there are besides, up to this number, are the test set."""
    classifier_steps: int = 1000
    """Of the classifier in whose features images are compared."""
    image_methods: tuple[str, ...] = ("lsd", "psd_m")
    image_network: str = "mlp"
    """"mlp" or "unet"."""
    image_widths: tuple[int, ...] = (256,) * 4
    """Of the perceptron's layers, or the U-Net's levels."""
    image_steps: int = 3_500
    """Of Lagrangian self-distillation; all others take as many as cost the same."""
    image_batch: int = 128
    image_share: float = 0.75
    """On the diagonal."""
    image_rate: float = 3e-3
    image_weight: bool = False
    """Whether w(s, t) is learned."""
    image_jumps: tuple[int, ...] = (1, 2, 4, 8)
    image_samples: int = 576


PRESETS = {
    "smoke": Config(
        preset="smoke", methods=("lsd", "psd_m"), num_fits=2, num_points=2048, widths=(32, 32), lsd_steps=30,
        num_steps=30, num_jumps=(1, 4), num_samples=4000, num_train=256,
        classifier_steps=100, image_methods=("lsd",), image_widths=(64,), image_steps=50, image_jumps=(1,), image_samples=64,
    ),
    "laptop": Config(),
    "gpu_short": Config(
        preset="gpu_short", num_points=4_000_000, widths=(512,) * 5, batch_size=4096, diagonal_fraction=0.75,
        lsd_steps=366_000, num_steps=30_000, peak_rate=2e-3, num_samples=64_000,
    ),
    "paper": Config(
        preset="paper", coupling="independent", num_points=10_000_000, widths=(512,) * 5, batch_size=100_000,
        diagonal_fraction=0.75, lsd_steps=150_000, num_steps=150_000, peak_rate=1e-3, steep_rate=1e-3, optimizer="radam",
        dataset="cifar10", num_train=50_000, image_methods=("lsd", "psd_m", "psd_u"), image_network="unet",
        image_widths=(128, 256, 256), image_steps=400_000, image_batch=512, image_rate=1e-2, image_weight=True,
        image_samples=10_000,
    ),
}  # fmt: skip


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run."""
    for field in ("methods", "image_methods"):
        names = getattr(config, field)
        if not set(names) <= set(METHODS) or len(set(names)) < len(names):
            raise ValueError(f"{field}: expected some of {', '.join(METHODS)}, each once, got {', '.join(names)}")
    for field, choices in CHOICES.items():
        if (value := getattr(config, field)) not in choices:
            raise ValueError(f"{field}: expected one of {', '.join(choices)}, got {value!r}")
    for field in COUNTS:
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{field}: expected at least 1, got {value}")
    for field in ("methods", "widths", "num_jumps", "bins", "image_widths", "image_jumps"):
        values = getattr(config, field)
        if not values or any(isinstance(value, int) and value < 1 for value in values):
            raise ValueError(f"{field}: expected one or more, each at least 1, got {values}")
    for field in ("peak_rate", "steep_rate", "image_rate"):
        if not (value := getattr(config, field)) > 0:
            raise ValueError(f"{field}: expected a positive learning rate, got {value}")
    for field in ("diagonal_fraction", "image_share"):
        if not 0 < (value := getattr(config, field)) < 1:
            raise ValueError(f"{field}: expected a fraction in (0, 1), got {value}")


METHODS = ("lsd", "esd", "psd_m", "psd_u", "mean_flow")
CHOICES = {
    "coupling": ("optimal_transport", "independent"),
    "optimizer": ("adam", "radam"),
    "dataset": NAMES,
    "image_network": ("mlp", "unet"),
}
COUNTS = (
    "num_fits", "num_points", "block", "batch_size", "lsd_steps", "num_steps", "num_samples", "num_train",
    "classifier_steps", "image_steps", "image_batch", "image_samples",
)  # fmt: skip
