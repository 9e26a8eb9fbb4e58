"""What the speed benchmark can be told, and its presets."""

import dataclasses

from experiments.speed.flows import LOSSES, NUM_IMAGES

__all__ = ["PRESETS", "Config", "check"]


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
    convolution_steps: int = 10
    """Steps of convolutional networks, in a loop and one by one."""
    watched_steps: int = 1000
    """Steps of a run that is watched."""


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
        convolution_steps=2,
        watched_steps=2,
    ),
    "laptop": Config(),
    "paper": Config(
        preset="paper", num_runs=1024, scaling_runs=(256, 512, 1024, 2048), streaming_runs=(256, 1024, 4096)
    ),
}


def check(config: Config) -> None:
    """Raises a ValueError that names the field, what was expected and what came, if a config cannot be run."""
    for field in COUNTS:
        if (value := getattr(config, field)) < 1:
            raise ValueError(f"{field}: expected at least 1, got {value}")
    for field in LISTS:
        values = getattr(config, field)
        if not values or len(set(values)) < len(values) or min(values) < 1:
            raise ValueError(f"{field}: expected one or more, each at least 1 and once, got {values}")
    for field, known in (("heads", HEADS), ("losses", tuple(LOSSES))):
        values = getattr(config, field)
        if not values or len(set(values)) < len(values) or not set(values) <= set(known):
            raise ValueError(
                f"{field}: expected some of {', '.join(known)}, each once, got {', '.join(values) or 'none'}"
            )
    if (shortest := min(config.num_steps, *config.scaling_steps)) < config.save_every:
        raise ValueError(
            f"save_every: expected at most the {shortest} steps of the shortest run, got {config.save_every}"
        )
    if config.num_saves < 2:
        raise ValueError(f"num_saves: expected at least 2, to observe one and forecast one, got {config.num_saves}")
    if config.flow_batch < 3:
        raise ValueError(f"flow_batch: expected at least 3, for both shares of 75 and 25 %, got {config.flow_batch}")
    if min(config.closed_form) < 1:
        raise ValueError(f"closed_form: expected points, dimension and queries of at least 1, got {config.closed_form}")
    for num in config.companions:
        if num != 1 and not config.image_batch <= num <= NUM_IMAGES:
            raise ValueError(
                f"companions: expected 1, or image_batch, {config.image_batch}, to {NUM_IMAGES}, got {num}"
            )
    if not config.image_channels or any(channels < 8 or channels % 8 for channels in config.image_channels):
        raise ValueError(
            f"image_channels: expected multiples of 8, whose groups are normalized, got {config.image_channels}"
        )
    if config.image_side % (least := 2 ** (len(config.image_channels) - 1)):
        raise ValueError(
            f"image_side: expected a multiple of {least}, halved from level to level, got {config.image_side}"
        )


HEADS = ("tensor", "coordinate")
COUNTS = (
    "num_runs", "num_steps", "save_every", "chunk", "loop_runs", "rounds", "width", "num_saves", "flow_rounds", "flow_width",
    "flow_batch", "flow_steps", "small_steps", "flow_samples", "image_side", "image_batch", "convolution_steps",
    "watched_steps",
)  # fmt: skip
LISTS = ("scaling_runs", "scaling_steps", "streaming_runs", "companions")
