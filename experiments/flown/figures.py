"""The figures, each a pure function of the saved arrays."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import LEARNED, SIMPLE, TRUTH

__all__ = ["FIGURES", "audit_chart", "fine_tuning_curves"]

COLORS = {"flow": LEARNED, "random initialisation": SIMPLE, "hypernetwork": TRUTH}


def fine_tuning_curves(arrays):
    """Accuracy on held-out tasks by steps downstream, for numbers of examples, a mean over tasks with its spread over fits."""
    shots = list(dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("curve/")))
    figure, axes = plt.subplots(1, len(shots), figsize=(3.4 * len(shots), 3), sharey=True, squeeze=False)
    for axis, shot in zip(axes[0], shots, strict=True):
        rows = [name.split("/")[2] for name in arrays if name.startswith(f"curve/{shot}/")]
        for number, row in enumerate(rows):
            curves = arrays[f"curve/{shot}/{row}"]
            color = COLORS.get(row, plt.cm.Greys(0.3 + 0.6 * number / len(rows)))
            steps, mean, std = np.arange(curves.shape[1]), curves.mean(0), curves.std(0)
            axis.plot(steps, mean, color=color, label=row, lw=1.8 if row in COLORS else 1)
            axis.fill_between(steps, mean - std, mean + std, color=color, alpha=0.2, lw=0)
        axis.axhline(arrays["trained"].mean(), color="k", ls=":", lw=0.8)
        axis.set(title=f"{shot} of each class", xlabel="steps downstream", xscale="symlog", xlim=(0, None))
    axes[0, 0].set_ylabel("accuracy on held-out tasks")
    axes[0, -1].legend(frameon=False, fontsize=7)
    return figure


def audit_chart(arrays):
    """Accuracy of everyone, and novelty of the samples beside held-out networks through the same codec."""
    rows = [name.split("/", 1)[1] for name in arrays if name.startswith("audit/")]
    measures = list(dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("novelty/")))
    figure, axes = plt.subplots(
        1, 1 + len(measures), figsize=(4 + 1.7 * len(measures), 3), width_ratios=[2.4] + [1] * len(measures)
    )
    values = [arrays[f"audit/{row}"].mean(1) for row in rows]
    colors = [LEARNED if row == "samples" else SIMPLE for row in rows]
    axes[0].barh(rows, [v.mean() for v in values], xerr=[v.std() for v in values], color=colors)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="accuracy")
    for axis, measure in zip(axes[1:], measures, strict=True):
        pair = [arrays[f"novelty/{measure}/{row}"].ravel() for row in ("samples", "held_out")]
        box = axis.boxplot(pair, showfliers=False, patch_artist=True, widths=0.6)
        for patch, color in zip(box["boxes"], (LEARNED, TRUTH), strict=True):
            patch.set(facecolor=color, alpha=0.6)
        axis.set(title=measure, xticks=[1, 2])
        axis.set_xticklabels(["samples", "held out"], rotation=30)
    return figure


FIGURES = (fine_tuning_curves, audit_chart)
