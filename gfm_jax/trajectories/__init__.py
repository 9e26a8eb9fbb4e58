"""Training runs as data: recorded, cut into windows, kept on disk."""

from gfm_jax.trajectories.context import DIRECTIONS, line_weights, observe
from gfm_jax.trajectories.landscape import NUM_KRYLOV, landscape, survey
from gfm_jax.trajectories.recorder import PARTS, optimizer_slots, record, record_many, save_steps
from gfm_jax.trajectories.storage import CorruptRecording, open_recording, record_to_disk, verify
from gfm_jax.trajectories.windows import (
    Windows,
    check_prefix,
    cut,
    cut_all,
    draw_pairs,
    draw_windows,
    horizon_at,
    merge,
    prefix_of,
    save_at,
    thin,
)

__all__ = [
    "DIRECTIONS",
    "NUM_KRYLOV",
    "PARTS",
    "CorruptRecording",
    "Windows",
    "check_prefix",
    "cut",
    "cut_all",
    "draw_pairs",
    "draw_windows",
    "horizon_at",
    "landscape",
    "line_weights",
    "merge",
    "observe",
    "open_recording",
    "optimizer_slots",
    "prefix_of",
    "record",
    "record_many",
    "record_to_disk",
    "save_at",
    "save_steps",
    "survey",
    "thin",
    "verify",
]
