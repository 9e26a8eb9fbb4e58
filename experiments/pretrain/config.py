"""What the pretraining can be told, and its presets."""

import dataclasses

__all__ = ["PRESETS", "Config"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Fit the forecaster that ships, and judge it on families that its zoo does not hold."""

    preset: str = "laptop"
    seed: int = 0
    problems: tuple[str, ...] = ()
    """Of the zoo, by name; all of them where none is named."""
    num_runs: int = 16
    """Of every problem and optimizer; a quarter as many more, at least 2, for the intervals."""
    scale: float = 1.0
    """On the number of steps of every run."""
    coordinates: int = 400
    """Weights of a run that are learned from in weight space."""
    whole_runs: int = 8
    """Of every problem and optimizer that is learned from in function space."""
    whole_fraction: float = 0.35
    """Of their windows, that are learned from there."""
    head: str = "coordinate"
    widths: tuple[int, ...] = (128, 128)
    batch_size: int = 4096
    field_steps: int = 6000
    function_steps: int = 400
    function_runs: int = 10
    """Whole runs in a batch."""
    weight: float = 0.5
    """Of the error of the weights beside the loss of the forecast networks, in function space."""
    fits: int = 3
    """The first of them ships."""
    coverage: float = 0.9
    held_out: tuple[str, ...] = ("residual_fashion", "mixer_cifar", "characters")
    held_out_runs: int = 6
    observed: tuple[float, ...] = (0.5,)
    simple: tuple[str, ...] = (
        "persistence", "lawa", "lawa_quarter", "lawa_half", "lawa_half_log", "linear", "log_time", "sqrt_time",
        "exponential", "rank1", "dmd",
    )  # fmt: skip
    """Simple ways to forecast, to compare with."""


PRESETS = {
    "smoke": Config(
        preset="smoke",
        problems=("mixture",),
        num_runs=6,
        scale=0.1,
        coordinates=100,
        whole_runs=4,
        head="tensor",
        widths=(16,),
        batch_size=256,
        field_steps=30,
        function_steps=4,
        function_runs=2,
        fits=2,
        coverage=0.5,
        held_out=("teacher",),
        held_out_runs=2,
        simple=("persistence", "lawa"),
    ),
    "laptop": Config(),
    "paper": Config(preset="paper", num_runs=64, coordinates=1024, field_steps=60_000, function_steps=4000),
}
COUNTS = (
    "num_runs", "coordinates", "whole_runs", "batch_size", "field_steps", "function_steps", "function_runs", "fits",
    "held_out_runs",
)  # fmt: skip


def check(config: Config, problems, held_out, simple) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run.

    Args:
      config: as given.
      problems: names of what the zoo can hold.
      held_out: names of what only judges.
      simple: names of simple ways to forecast.
    """
    for field in COUNTS:
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{field}: expected at least 1, got {value}")
    for field, known in (("problems", problems), ("held_out", [*held_out, *problems]), ("simple", simple)):
        if unknown := set(getattr(config, field)) - set(known):
            raise ValueError(f"{field}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if both := set(config.held_out) & set(config.problems or problems):
        raise ValueError(f"held_out: expected families that the zoo does not hold, got {', '.join(sorted(both))}")
    for field in ("whole_fraction", "coverage"):
        if not 0 < getattr(config, field) < 1:
            raise ValueError(f"{field}: expected a fraction in (0, 1), got {getattr(config, field)}")
    if not config.observed or not all(0 < fraction < 1 for fraction in config.observed):
        raise ValueError(f"observed: expected fractions in (0, 1), got {config.observed}")
    if config.head not in ("coordinate", "tensor"):
        raise ValueError(f"head: expected coordinate or tensor, got {config.head!r}")
    if not config.weight >= 0 or not config.scale > 0:
        raise ValueError(f"weight, scale: expected at least 0 and above 0, got {config.weight} and {config.scale}")
