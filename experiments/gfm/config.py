"""What the forecasting experiment can be told, and its presets."""

import dataclasses

__all__ = ["PRESETS", "Config"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Forecast where unseen training runs end."""

    preset: str = "laptop"
    seed: int = 0
    dataset: str = "digits"
    sizes: tuple[int, int] = (1152, 320)
    """Images for training and for validation; the others are the test set."""
    networks: tuple[str, ...] = ("mlp", "cnn")
    """Networks of the runs to learn from."""
    unseen_network: str = "mlp3"
    """The network that is held out."""
    optimizers: tuple[str, ...] = ("sgd", "momentum", "adam", "adamw")
    """Optimizers of the runs to learn from; RMSprop is held out."""
    more_networks: tuple[str, ...] = ("deep",)
    """Networks only to learn from, with these optimizers."""
    more_optimizers: tuple[str, ...] = ("sign_sgd", "adam_95", "adam_short")
    """Optimizers only to learn from, with these networks: their steps stay long while the gradient becomes small."""
    num_steps: int = 800
    num_saves: int = 80
    batch_size: int = 64
    train_seeds: tuple[int, int, int] = (2, 4, 9)
    """Training runs of every network, optimizer and schedule, at the low, the middle and the high learning rate: the higher
    the rate, the less one run is like another."""
    more_network_seeds: tuple[int, int, int] = (1, 3, 5)
    more_optimizer_seeds: tuple[int, int, int] = (5, 5, 5)
    """The same of the networks and of the optimizers only to learn from."""
    prefixes: tuple[float, ...] = (0.2, 0.5)
    """Fractions of a run that are observed."""
    histories: tuple[str, ...] = ("lfd2", "introspection", "wnn", "lstm", "transformer")
    """Learned predictors to compare with, beside the simple ones."""
    fit_seeds: int = 3
    """Fits of every learned predictor."""
    field_steps: int = 4000
    function_steps: int = 400
    coverage: float = 0.9
    """Of the intervals: the probability that a weight of a new run lies inside. For .9 it takes 9 validation runs."""
    coordinates: int | None = None
    """Of a run to learn from, how many weights are kept to fit fields to in weight space; all by default."""
    whole_runs: int = 8
    """Where only some are kept, runs of each network and optimizer that are kept whole, for the fit in function space."""
    train_images: int = 1152
    """Training images on which the fields see the loss: its curvature, and that of the fit in function space."""
    nowcast_steps: int = 400
    synthetic: tuple[str, ...] = ("gd", "momentum", "rmsprop", "adam")
    """Optimizers of the linear regressions."""
    synthetic_steps: int = 500
    """Steps of the fits to linear regressions."""
    batch_rows: int = 2048
    distributed: bool = False
    """Whether several hosts share the work: each of them gives the same command."""


PRESETS = {
    "smoke": Config(
        preset="smoke",
        sizes=(512, 256),
        num_steps=40,
        num_saves=20,
        train_seeds=(1, 1, 1),
        networks=("mlp",),
        optimizers=("sgd",),
        more_networks=(),
        more_optimizers=(),
        prefixes=(0.5,),
        histories=("lfd2",),
        fit_seeds=1,
        field_steps=60,
        function_steps=20,
        coverage=0.8,
        train_images=128,
        nowcast_steps=20,
        synthetic=(),
        batch_rows=512,
    ),
    "laptop": Config(),
    "paper": Config(
        preset="paper",
        dataset="cifar10",
        sizes=(45_000, 5_000),
        networks=("cnn3", "cnn3_narrow"),
        more_networks=("cnn4",),
        unseen_network="cnn3_gelu",
        num_steps=5000,
        num_saves=100,
        batch_size=128,
        train_seeds=(16, 32, 72),
        more_network_seeds=(8, 20, 32),
        more_optimizer_seeds=(40, 40, 40),
        field_steps=20_000,
        function_steps=2000,
        coordinates=1024,
        train_images=2048,
        nowcast_steps=5000,
        synthetic_steps=2000,
        batch_rows=16_384,
    ),
}
