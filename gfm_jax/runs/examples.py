"""Labelled examples: what they must be, and how they reach a network."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from gfm_jax.checks import is_traced

__all__ = ["as_inputs", "check_labelled", "check_logits", "check_splits"]


def as_inputs(inputs: Array) -> Array:
    """As a network gets them: Booleans and integers of 8 or 16 bits as float32 of the same numbers, others as they are."""
    small = not jnp.issubdtype(inputs.dtype, jnp.inexact) and inputs.dtype.itemsize <= 2
    return inputs.astype(jnp.float32) if small else inputs


def check_splits(data: PyTree, num_classes: int | None) -> int:
    """The number of classes; ValueError for data that are no `{"train": (inputs, labels), ...}`, or as `check_labelled`."""
    if not isinstance(data, dict) or "train" not in data:
        got = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"data: expected a dict of splits, with 'train' among them, got {got}")
    for split, parts in data.items():
        if not isinstance(parts, tuple | list) or len(parts) != 2:
            raise ValueError(f"data[{split!r}]: expected (inputs, labels), got {type(parts).__name__}")
        check_labelled(parts[0], parts[1], num_classes, f"data[{split!r}]")
    if num_classes is None and is_traced(data):
        raise ValueError("num_classes: expected a number where the labels are traced, got None")
    return 1 + max(int(np.max(labels)) for _, labels in data.values()) if num_classes is None else num_classes


def check_labelled(
    inputs: Array | np.ndarray | list, labels: Array | np.ndarray | list, num_classes: int | None, name: str
) -> None:
    """Raises ValueError for inputs that are not finite numbers, or labels that are no integers in 0..num_classes-1, one a row.

    Args:
      inputs: [num, ...].
      labels: [num].
      num_classes: at least 1; None for as many as there are.
      name: of the examples, for the message.
    """
    inputs, labels = (part if isinstance(part, Array | np.ndarray) else np.asarray(part) for part in (inputs, labels))
    of_inputs, of_labels = inputs.dtype, labels.dtype
    is_one = lambda dtype, *kinds: any(jnp.issubdtype(dtype, kind) for kind in kinds)
    if not is_one(of_inputs, jnp.floating, jnp.integer, jnp.bool_):
        raise ValueError(f"{name}: expected inputs of real numbers, got dtype {of_inputs}")
    if not is_one(of_labels, jnp.integer, jnp.bool_):
        raise ValueError(f"{name}: expected labels that are integers, got dtype {of_labels}")
    if jnp.ndim(labels) != 1:
        raise ValueError(f"{name}: expected labels [num], one number for each input, got shape {jnp.shape(labels)}")
    if len(inputs) != len(labels):
        raise ValueError(f"{name}: expected a label for each of {len(inputs)} inputs, got {len(labels)} labels")
    if len(labels) == 0:
        raise ValueError(f"{name}: expected at least one example, got none")
    if is_traced(inputs, labels):
        return  # values are not known
    least, most = int(np.min(labels)), int(np.max(labels))
    if not 0 <= least <= most < (most + 1 if num_classes is None else num_classes):
        wanted = "from 0 on" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(f"{name}: expected labels {wanted}, got {least}..{most}")
    if is_one(of_inputs, jnp.floating):
        known = np.asarray(inputs)
        known = known.astype(np.float32) if known.dtype.itemsize < 4 else known
        bad = np.flatnonzero(~np.isfinite(known).reshape(len(known), -1).all(1))
        if len(bad):
            raise ValueError(
                f"{name}: expected finite inputs, {len(bad)} of {len(known)} are not, such as number {bad[0]}"
            )


def check_logits(logits: Array, num_classes: int) -> None:
    """Raises ValueError for a network with less outputs than there are classes, whose cross-entropy would not be a number."""
    if logits.ndim != 2 or logits.shape[-1] < num_classes:
        raise ValueError(
            f"network: expected outputs [batch, {num_classes}], a logit for each class, got {logits.shape}"
        )
