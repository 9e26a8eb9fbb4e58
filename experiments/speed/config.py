"""What the speed benchmark can be told, and its presets."""

import dataclasses

__all__ = ["PRESETS", "Config"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the recorder, the forecast and flows against their floors and their peers, on one core."""

    preset: str = "laptop"
    apart: bool = True
    """Whether every contestant is timed in a process of its own, on one core."""
    num_runs: int = 256
    num_steps: int = 200
    save_every: int = 10
    chunk: int = 64
    loop_runs: int = 8
    """Networks of the Python loop, whose cost is linear in them by nature."""
    rounds: int = 3
    """Times that every contestant is timed, in turn, so that a busy machine is unfair to none."""
    scaling_runs: tuple[int, ...] = (64, 128, 256, 512)
    scaling_steps: tuple[int, ...] = (100, 200, 400, 800)
    streaming_runs: tuple[int, ...] = (64, 256, 1024)
    width: int = 960
    """Of the hidden layer of the network 784-width-256-10 that is forecast: about a million weights."""
    num_saves: int = 32
    heads: tuple[str, ...] = ("tensor", "coordinate")
    """Of the field that forecasts."""
    flow_rounds: int = 5
    """The same of what is timed on flows; medians are told."""
    losses: tuple[str, ...] = ("lsd", "esd", "esd_joint", "mean_flow", "psd_m")
    flow_width: int = 512
    flow_batch: int = 4096
    """Of a perceptron of four layers whose training steps are timed, by every loss."""
    flow_steps: int = 4
    small_steps: int = 300
    """Steps of a timing, there and of a perceptron 3 x 256 at batches of 256."""
    flow_samples: int = 10_000
    closed_form: tuple[int, int, int] = (50_000, 3072, 256)
    """Data points, dimension and queries."""
    image_side: int = 32
    image_channels: tuple[int, ...] = (16, 32)
    image_batch: int = 16
    companions: tuple[int, ...] = (1, 256, 1024)


PRESETS = {
    "smoke": Config(
        preset="smoke",
        apart=False,
        num_runs=16,
        num_steps=20,
        chunk=8,
        loop_runs=1,
        rounds=1,
        scaling_runs=(16,),
        scaling_steps=(20,),
        streaming_runs=(16,),
        width=16,
        num_saves=8,
        heads=("tensor",),
        flow_rounds=1,
        losses=("lsd",),
        flow_width=16,
        flow_batch=64,
        flow_steps=2,
        small_steps=2,
        flow_samples=100,
        closed_form=(500, 16, 8),
        image_side=8,
        image_channels=(8,),
        image_batch=8,
        companions=(1,),
    ),
    "laptop": Config(),
    "paper": Config(
        preset="paper", num_runs=1024, scaling_runs=(256, 512, 1024, 2048), streaming_runs=(256, 1024, 4096)
    ),
}
