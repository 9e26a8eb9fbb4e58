"""What the speed benchmark can be told, and its presets."""

import dataclasses

__all__ = ["PRESETS", "Config"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the recorder and the forecast against their floors and their peers, on one core."""

    preset: str = "laptop"
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


PRESETS = {
    "smoke": Config(
        preset="smoke",
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
    ),
    "laptop": Config(),
    "paper": Config(
        preset="paper", num_runs=1024, scaling_runs=(256, 512, 1024, 2048), streaming_runs=(256, 1024, 4096)
    ),
}
