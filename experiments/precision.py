"""Double precision where a figure has more digits than float32: for a while, and never for training."""

import contextlib
from collections.abc import Iterator

import jax

__all__ = ["double_precision"]


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Numbers that are made inside are float64; afterwards the default is what it was."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
