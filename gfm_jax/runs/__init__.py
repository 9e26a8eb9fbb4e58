"""Training runs as data: the tasks that are trained, recorded by the hundred and kept on disk."""

from gfm_jax.runs.batches import split, take
from gfm_jax.runs.checkpoint_writing import write_checkpoint
from gfm_jax.runs.checkpoints import last_checkpoint, read_checkpoints
from gfm_jax.runs.classification import classification
from gfm_jax.runs.family import SCHEDULES, Structure, TaskFamily, draw_structures
from gfm_jax.runs.few_shot import ByClass, by_class, class_subsets, draw_support, few_shot, labels_among
from gfm_jax.runs.minibatches import branched, minibatch_indices
from gfm_jax.runs.quadratic import quadratic
from gfm_jax.runs.recorder import record, save_steps
from gfm_jax.runs.recording_checks import PARTS
from gfm_jax.runs.regression import (
    gradient_descent_end,
    heavy_ball_end,
    least_squares,
    linear_regression,
    logistic_regression,
)
from gfm_jax.runs.slots import optimizer_slots, with_slots
from gfm_jax.runs.storage import CorruptRecording, open_recording, record_to_disk, verify
from gfm_jax.runs.streamed import streamed
from gfm_jax.runs.trajectory import trajectory
from gfm_jax.runs.watch import watch

__all__ = [
    "ByClass",
    "CorruptRecording",
    "PARTS",
    "SCHEDULES",
    "Structure",
    "TaskFamily",
    "branched",
    "by_class",
    "class_subsets",
    "classification",
    "draw_structures",
    "draw_support",
    "few_shot",
    "gradient_descent_end",
    "heavy_ball_end",
    "labels_among",
    "last_checkpoint",
    "least_squares",
    "linear_regression",
    "logistic_regression",
    "minibatch_indices",
    "open_recording",
    "optimizer_slots",
    "quadratic",
    "read_checkpoints",
    "record",
    "record_to_disk",
    "save_steps",
    "split",
    "streamed",
    "take",
    "trajectory",
    "verify",
    "watch",
    "with_slots",
    "write_checkpoint",
]
