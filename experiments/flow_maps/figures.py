"""Figures of the flow map experiment: each a pure function of the saved arrays."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import LEARNED, SIMPLE, TRUTH, framed

__all__ = ["FIGURES", "PUBLISHED", "figures_of"]

COLORS = {
    "lsd": LEARNED,
    "lsd_equal": "#e59a6f",
    "esd": SIMPLE,
    "psd_m": TRUTH,
    "psd_u": "#5b8db8",
    "mean_flow": "#8a6fb0",
}
PUBLISHED = {  # KL with 50 bins at 1, 2, 4, 8, 16 jumps: arXiv 2505.18825, Table 1
    "lsd": (0.086, 0.077, 0.071, 0.070, 0.071),
    "esd": (0.098, 0.092, 0.083, 0.082, 0.075),
    "psd_m": (0.146, 0.089, 0.081, 0.072, 0.069),
    "psd_u": (0.111, 0.107, 0.075, 0.073, 0.068),
}


def samples(arrays):
    """Samples of every method by number of jumps."""
    rows, jumps = [str(row) for row in arrays["rows"]], arrays["jumps"]
    figure, axes = plt.subplots(len(rows), len(jumps), figsize=(1.5 * len(jumps) + 0.6, 1.5 * len(rows)), squeeze=False)
    for i, row in enumerate(rows):
        for j, num in enumerate(jumps):
            x, axis = arrays[f"samples/{row}/{num}"][:1500], axes[i, j]
            axis.plot(x[:, 0], x[:, 1], ".", ms=0.7, color=COLORS.get(row, "k"), rasterized=True)
            axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[], aspect="equal")
            if not i:
                axis.set_title(f"{num} jump{'s' if num > 1 else ''}", fontsize=9)
            if not j:
                axis.set_ylabel(row)
    return figure


def table_1(arrays):
    """KL against the number of jumps, beside the published numbers, and beside exact samples."""
    bins = arrays["bins"]
    figure, axes = plt.subplots(1, len(bins), figsize=(3.8 * len(bins) + 1.2, 3.4), squeeze=False)
    for axis, size in zip(axes[0], bins, strict=True):
        jumps = arrays["jumps"]
        for row in map(str, arrays["rows"]):
            kl = arrays[f"kl/{size}/{row}"]
            axis.fill_between(jumps, kl.min(0), kl.max(0), color=COLORS.get(row, "k"), alpha=0.15, lw=0)
            axis.plot(jumps, kl.mean(0), "o-", ms=3, lw=1, color=COLORS.get(row, "k"), label=row)
            if size == 50 and row in PUBLISHED:
                axis.plot(
                    (1, 2, 4, 8, 16), PUBLISHED[row], "x:", ms=4, lw=0.8, color=COLORS[row], label=f"{row}, paper"
                )
        axis.axhline(arrays[f"floor/{size}"].mean(), color="k", lw=0.8, ls="--", label="exact samples")
        axis.set(xscale="log", yscale="log", xlabel="jumps", ylabel="KL", title=f"{size} bins", xticks=jumps)
        axis.set_xticklabels(jumps)
        axis.minorticks_off()
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7, frameon=False)
    return figure


def flow_map(arrays):
    """Where one jump takes circles and rays of the source."""
    times, points = arrays["map/times"], arrays["map/points"]
    figure, axes = plt.subplots(1, len(times), figsize=(2.1 * len(times), 2.3))
    for axis, t, x in zip(axes, times, points, strict=True):
        axis.plot(x[..., 0].T, x[..., 1].T, lw=0.6, color=LEARNED)
        axis.plot(x[:, ::10, 0], x[:, ::10, 1], lw=0.3, color=TRUTH)
        axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal", title=f"$X_{{0,{t:g}}}$")
    return figure


def residuals(arrays):
    """Loss on the diagonal, residual off it and norm of the gradient over training, in running means."""
    names = ("diagonal", "residual", "gradient_norm")
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for axis, name in zip(axes, names, strict=True):
        for row in map(str, arrays["rows"]):
            values = arrays[f"history/{row}/{name}"]
            width = max(len(values) // 100, 1)
            means = values[: len(values) // width * width].reshape(-1, width).mean(1)
            axis.plot((np.arange(len(means)) + 0.5) * width, means, lw=0.9, color=COLORS.get(row, "k"), label=row)
        axis.set(xscale="log", yscale="log", xlabel="step", title=name.replace("_", " "))
    axes[0].legend(fontsize=6, frameon=False)
    return figure


def images(arrays):
    """Frechet distance of images to test images by the number of jumps, or of steps, and what they look like."""
    rows = [str(row) for row in arrays["images/rows"]]
    of_row = {
        row: sorted(int(n.split("/")[-1]) for n in arrays if n.startswith(f"images/{row}/samples/")) for row in rows
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=(1, 1.3))
    shape, lines, labels = tuple(arrays["images/shape"]), [], []
    for row, numbers in of_row.items():
        scores = [arrays[f"images/{row}/frechet_test/{num}"] for num in numbers]
        color = COLORS.get(row, "k")
        if len(numbers) == 1:
            left.axhline(scores[0].mean(), color=color, lw=0.8, ls="--", label=row)
        else:
            left.fill_between(
                numbers, [s.min() for s in scores], [s.max() for s in scores], color=color, alpha=0.15, lw=0
            )
            left.plot(numbers, [s.mean() for s in scores], "o-", ms=3, lw=1, color=color, label=row)
        for num in dict.fromkeys((numbers[0], numbers[-1])):
            lines.append(np.concatenate([framed(x, shape) for x in arrays[f"images/{row}/samples/{num}"]], axis=1))
            labels.append(f"{row}, {num}")
    most = max(of_row.values(), key=len)
    left.set(
        xscale="log", yscale="log", xlabel="jumps, or steps", ylabel="Frechet distance to test images", xticks=most
    )
    left.set_xticklabels(most)
    left.minorticks_off()
    left.legend(fontsize=7, frameon=False)
    right.imshow(np.concatenate(lines), cmap="gray", aspect="equal")
    ticks = (np.arange(len(lines)) + 0.5) * (shape[0] + 1) - 0.5
    right.set(xticks=[], yticks=ticks, yticklabels=labels)
    return figure


FIGURES = (samples, table_1, flow_map, residuals, images)


def figures_of(arrays):
    """Those that there are arrays for: of fits that all diverged there are none."""
    there = {"rows": (samples, table_1, flow_map, residuals), "images/rows": (images,)}
    return [draw for rows, figures in there.items() if len(arrays[rows]) for draw in figures]
