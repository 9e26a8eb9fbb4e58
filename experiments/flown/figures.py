"""The figures, each a pure function of the saved arrays."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import LEARNED, SIMPLE, TRUTH

__all__ = ["audit_chart", "decision_boundaries", "figures_of", "fine_tuning_curves", "latent_space", "sinusoids"]

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


def latent_space(arrays):
    """The codes of the zoo, of samples and of held-out networks in the plane of the zoo's first two principal components."""
    codes = {name.split("/")[1]: arrays[name][0] for name in arrays if name.startswith("latent/")}
    mean = codes["zoo"].mean(0)
    directions = np.linalg.svd(codes["zoo"] - mean, full_matrices=False)[2][:2]
    figure, axes = plt.subplots(1, len(codes), figsize=(3 * len(codes), 3), sharex=True, sharey=True)
    for axis, (who, points), color in zip(axes, codes.items(), (SIMPLE, LEARNED, TRUTH), strict=True):
        axis.scatter(*((codes["zoo"] - mean) @ directions.T).T, s=5, color=SIMPLE, alpha=0.25, lw=0)
        axis.scatter(*((points - mean) @ directions.T).T, s=7, color=color, alpha=0.7, lw=0)
        axis.set(title=who, xlabel="first component")
    axes[0].set_ylabel("second component")
    return figure


def decision_boundaries(arrays):
    """A generated classifier of the plane with the examples that it was generated from, and its nearest network of the zoo."""
    inputs = arrays["moons/inputs"]
    num = min(3, len(inputs))
    figure, axes = plt.subplots(2, num, figsize=(2.6 * num, 5), sharex=True, sharey=True, squeeze=False)
    side = int(np.sqrt(inputs.shape[1]))
    for row, who in enumerate(("generated", "nearest")):
        for fit in range(num):
            axis, x = axes[row, fit], inputs[fit].reshape(side, side, 2)
            logits = arrays[f"moons/{who}"][fit]
            share = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])).reshape(side, side)
            axis.contourf(x[..., 0], x[..., 1], share, levels=np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.6)
            axis.contour(x[..., 0], x[..., 1], share, levels=[0.5], colors="k", linewidths=1)
            support, label = arrays["moons/support"][fit], arrays["moons/targets"][fit].argmax(-1)
            axis.scatter(*support.T, c=np.where(label == 1, LEARNED, TRUTH), s=18, edgecolor="w", lw=0.6)
        axes[row, 0].set_ylabel("generated" if who == "generated" else "nearest of the zoo")
    for fit in range(num):
        axes[0, fit].set_title(f"fit {fit + 1}, of median accuracy")
    return figure


def sinusoids(arrays):
    """A generated regression of a sinusoid with the examples that it was generated from, and the network nearest to it."""
    num = min(3, len(arrays["sinusoid/inputs"]))
    figure, axes = plt.subplots(1, num, figsize=(3 * num, 2.6), sharey=True, squeeze=False)
    for fit, axis in enumerate(axes[0]):
        x = arrays["sinusoid/inputs"][fit, :, 0]
        axis.plot(x, arrays["sinusoid/nearest"][fit, :, 0], color=SIMPLE, lw=1, label="nearest of the zoo")
        axis.plot(x, arrays["sinusoid/generated"][fit, :, 0], color=LEARNED, label="generated")
        axis.scatter(
            arrays["sinusoid/support"][fit],
            arrays["sinusoid/targets"][fit],
            color=TRUTH,
            s=14,
            label="examples",
            zorder=3,
        )
        axis.set(title=f"fit {fit + 1}, of median error", xlabel="x")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return figure


FIGURES = {
    "curve/": fine_tuning_curves, "audit/": audit_chart, "latent/": latent_space, "moons/": decision_boundaries,
    "sinusoid/": sinusoids,
}  # fmt: skip


def figures_of(arrays):
    """Those that there are arrays for."""
    return [draw for prefix, draw in FIGURES.items() if any(name.startswith(prefix) for name in arrays)]
