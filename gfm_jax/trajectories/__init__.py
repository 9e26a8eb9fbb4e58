"""Training runs as data: recorded, cut into windows, kept on disk."""

from gfm_jax.trajectories.context import DIRECTIONS, from_first_motion, line_weights, observe
from gfm_jax.trajectories.evidence import log_of_loss
from gfm_jax.trajectories.landscape import NUM_KRYLOV, landscape, survey
from gfm_jax.trajectories.recorder import PARTS, record, record_many, save_steps
from gfm_jax.trajectories.slots import optimizer_slots, with_slots
from gfm_jax.trajectories.storage import CorruptRecording, open_recording, record_to_disk, verify
from gfm_jax.trajectories.validation import as_run, check_forecast, is_forecastable, sound_runs
from gfm_jax.trajectories.windows import (
    Windows,
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
    "as_run",
    "check_forecast",
    "cut",
    "cut_all",
    "draw_pairs",
    "draw_windows",
    "from_first_motion",
    "horizon_at",
    "is_forecastable",
    "landscape",
    "line_weights",
    "log_of_loss",
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
    "sound_runs",
    "survey",
    "thin",
    "verify",
    "with_slots",
]
