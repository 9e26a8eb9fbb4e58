"""How the experiments draw: without a screen, in one style, each figure a pure function of the saved arrays."""

import pathlib
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

__all__ = ["LEARNED", "SIMPLE", "TRUTH", "draw_all", "framed"]

LEARNED, SIMPLE, TRUTH = "#c1440e", "#7a8793", "#1f3b57"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.constrained_layout.use": True}


def draw_all(folder: pathlib.Path, figures: Sequence[Callable], arrays: dict) -> None:
    """Draws `figure(arrays)` for each of the figures, and saves it in the folder under the function's name."""
    with plt.rc_context(STYLE):
        for draw in figures:
            figure = draw(arrays)
            figure.savefig(folder / f"{draw.__name__}.png", dpi=100)
            plt.close(figure)


def framed(x: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """An image, a point of deviation 1, in grey, with a line of white below and to the right of it."""
    return np.pad(np.clip(x.reshape(shape).mean(-1), -1.5, 3), ((0, 1), (0, 1)), constant_values=3)
