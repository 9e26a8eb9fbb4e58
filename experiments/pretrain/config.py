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
    head: str = "coordinate"
    widths: tuple[int, ...] = (128, 128)
    batch_size: int = 4096
    field_steps: int = 10_000
    function_steps: int = 800
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


PRESETS = {
    "smoke": Config(
        preset="smoke",
        problems=("digits_mlp", "teacher"),
        num_runs=4,
        scale=0.1,
        coordinates=100,
        whole_runs=2,
        head="tensor",
        widths=(16,),
        batch_size=256,
        field_steps=30,
        function_steps=4,
        function_runs=2,
        fits=2,
        coverage=0.5,
        held_out=("characters",),
        held_out_runs=2,
    ),
    "laptop": Config(),
    "paper": Config(preset="paper", num_runs=64, coordinates=1024, field_steps=60_000, function_steps=4000),
}
