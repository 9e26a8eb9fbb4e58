"""Figures of the speed benchmark: each a pure function of the saved arrays."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import LEARNED, SIMPLE

__all__ = ["FIGURES"]


def record(arrays):
    """Training steps of a small network per second, contestant by contestant."""
    rows = [name.removeprefix("record/") for name in arrays if name.startswith("record/")]
    figure, axis = plt.subplots(figsize=(6, 0.5 * len(rows) + 1))
    for y, row in enumerate(rows):
        rates = arrays[f"record/{row}"]
        axis.barh(y, rates.mean(), color=LEARNED if row == "gfm_jax" else SIMPLE)
        axis.plot(rates, np.full(len(rates), y), "k.", ms=3)
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlabel="steps of one network per second, on one core")
    axis.invert_yaxis()
    return figure


def linear(arrays):
    """Seconds against the number of runs and of steps, with the line through the mean cost."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8))
    for axis, name in zip(axes, ("num_runs", "num_steps"), strict=True):
        values, seconds = arrays[f"linear/{name}"], arrays[f"linear/{name}/seconds"]
        cost = (seconds / values).mean()
        axis.fill_between([0, values[-1]], [0, 0.9 * cost * values[-1]], [0, 1.1 * cost * values[-1]], color="#dddddd")
        axis.plot(values, seconds, "o", color=LEARNED)
        axis.set(xlabel=name.replace("num_", "number of "), ylabel="seconds", xlim=(0, None), ylim=(0, None))
    figure.suptitle("cost of recording; grey: linear within 10 %", fontsize=9)
    return figure


FIGURES = (record, linear)
