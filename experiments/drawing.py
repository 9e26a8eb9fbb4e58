"""How the experiments draw: without a screen, in one style, each figure a pure function of the saved arrays."""

import pathlib
import warnings
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from gfm_jax.files import replacing

__all__ = ["LEARNED", "SIMPLE", "TRUTH", "draw_all", "framed"]

LEARNED, SIMPLE, TRUTH = "#c1440e", "#7a8793", "#1f3b57"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "figure.constrained_layout.use": True}


def draw_all(folder: pathlib.Path, figures: Sequence[Callable], arrays: dict) -> None:
    """Draws `figure(arrays)` for each of the figures, and saves it in the folder under the function's name.

    An axis without one finite positive value, as of fits that diverged, is drawn linear where the figure asks for a logarithm.
    """
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Data has no positive values")
        for draw in figures:
            figure = draw(arrays)
            for axis in figure.axes:
                _without_logs_of_nothing(axis)
            with replacing(folder / f"{draw.__name__}.png") as file:
                figure.savefig(file, dpi=100, format="png")
            plt.close(figure)


def _without_logs_of_nothing(axis):
    for name, set_scale in (("x", axis.set_xscale), ("y", axis.set_yscale)):
        low, high = getattr(axis.dataLim, f"interval{name}")
        shown = np.isfinite(getattr(axis.dataLim, f"minpos{name}")) and np.isfinite(low) and np.isfinite(high)
        if getattr(axis, f"get_{name}scale")() == "log" and not shown:
            set_scale("linear")


def framed(x: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """An image, a point of deviation 1, in grey, with a line of white below and to the right of it."""
    return np.pad(np.clip(x.reshape(shape).mean(-1), -1.5, 3), ((0, 1), (0, 1)), constant_values=3)
