"""How the experiments draw: without a screen, in one style, each figure a pure function of the saved arrays."""

import pathlib
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

__all__ = ["LEARNED", "SIMPLE", "TRUTH", "draw_all"]

LEARNED, SIMPLE, TRUTH = "#c1440e", "#7a8793", "#1f3b57"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.constrained_layout.use": True}


def draw_all(folder: pathlib.Path, figures: Sequence[Callable], arrays: dict) -> None:
    """Draws `figure(arrays)` for each of the figures, and saves it in the folder under the function's name."""
    with plt.rc_context(STYLE):
        for draw in figures:
            figure = draw(arrays)
            figure.savefig(folder / f"{draw.__name__}.png", dpi=100)
            plt.close(figure)
