"""Figures of the forecasting experiment: each a pure function of the saved arrays."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import LEARNED, SIMPLE, TRUTH

__all__ = ["FIGURES"]


def chart(arrays):
    """Relative error and test loss of every predictor on every split, at the first prefix."""
    prefix = arrays["prefixes"][0]
    rows = [str(row) for row in arrays["rows"] if f"rel_mse/{row}/{prefix}" in arrays]
    splits = [str(split) for split in arrays["splits"]]
    figure, axes = plt.subplots(2, len(splits), figsize=(2.6 * len(splits), 0.36 * len(rows) + 1.6), sharey=True)
    for i, metric in enumerate(("rel_mse", "test_loss")):
        for j, split in enumerate(splits):
            axis, inside = axes[i, j], arrays["split"] == split
            for y, row in enumerate(rows):
                seeds = arrays[f"{metric}/{row}/{prefix}"][:, inside].mean(1)
                color = LEARNED if row.startswith("gfm") else TRUTH if row == "oracle_final" else SIMPLE
                axis.plot(seeds, np.full(len(seeds), y), "o", ms=4, color=color)
                axis.plot([0, seeds.mean()], [y, y], lw=1, color=color, alpha=0.4)
            axis.axvline(arrays[f"{metric}/persistence/{prefix}"][:, inside].mean(), color="k", lw=0.6, ls=":")
            top = 2.0 if metric == "rel_mse" else 2 * arrays[f"{metric}/persistence/{prefix}"][:, inside].mean()
            axis.set(xlim=(0, top), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=rows)
            axis.set_title(split if i == 0 else "")
            axis.set_xlabel({"rel_mse": "relative squared error", "test_loss": "test loss"}[metric])
    figure.suptitle(
        f"{prefix:.0%} of the run observed (dotted: persistence; beyond the right edge: worse than twice that)"
    )
    return figure


def density(arrays):
    """How the weights of a run spread as it trains: the density at several moments, and some weights followed."""
    weights, step = arrays["shown/weights"], arrays["shown/step"]
    moments = np.linspace(0, len(step) - 1, 8).astype(int)
    figure, axis = plt.subplots(figsize=(7, 3.2))
    span = np.quantile(np.abs(weights[-1]), 0.995)
    bins = np.linspace(-span, span, 80)
    width = 0.8 * step[-1] / len(moments)
    for moment in moments:
        height, _ = np.histogram(weights[moment], bins, density=True)
        height = height / max(height.max(), 1e-12) * width
        axis.fill_betweenx(bins[:-1], step[moment], step[moment] + height, color=TRUTH, alpha=0.25, lw=0)
    largest = np.argsort(-np.abs(weights[-1] - weights[0]))[:6]
    for i in largest:
        axis.plot(step, weights[:, i], color=LEARNED, lw=0.8)
        axis.plot(step[moments], weights[moments, i], "o", ms=3, color=LEARNED)
    axis.set(
        xlabel="step",
        ylabel="weight",
        title=f"density of the weights over training, and six of them ({arrays['shown/name']})",
    )
    return figure


def coordinates(arrays):
    """The forecast of a few weights, with its interval, against what came."""
    weights, step, last = arrays["shown/weights"], arrays["shown/step"], int(arrays["shown/last"])
    names, percent = [("gfm_flow_map", LEARNED)], 100 * arrays["shown/coverage"]
    moved = np.abs(weights[-1] - weights[last])
    picked = np.argsort(-moved)[np.linspace(0, len(moved) // 8, 6).astype(int)]
    figure, axes = plt.subplots(2, 3, figsize=(8, 4), sharex=True)
    for axis, i in zip(axes.flat, picked, strict=True):
        axis.plot(step[: last + 1], weights[: last + 1, i], color=TRUTH, lw=1.4, label="observed")
        axis.plot(step[last:], weights[last:, i], color=TRUTH, lw=1, ls=":", label="what came")
        for name, color in names:
            mean, low, high = (arrays[f"shown/{name}/{part}"][i] for part in ("weights", "lower", "upper"))
            spread, label = [[mean - low], [high - mean]], f"forecast, {percent:.0f} %"
            axis.errorbar(step[-1] * 1.03, mean, spread, fmt="o", ms=4, color=color, label=label)
        axis.axhline(weights[last, i], color=SIMPLE, lw=0.6)
        axis.set_title(f"weight {i}", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("step", fontsize=9)
    return figure


def error_by_horizon(arrays):
    """Relative squared error against how far ahead the forecast looks, on unseen seeds of the first network."""
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    step = arrays["horizon/step"]
    observed = arrays["shown/step"][arrays["shown/last"]]
    rows = [name.removeprefix("horizon/") for name in arrays if name.startswith("horizon/") and name != "horizon/step"]
    for row, style in zip(rows, ("-", "--", "-.", ":"), strict=False):
        low, middle, high = np.quantile(arrays[f"horizon/{row}"], [0.25, 0.5, 0.75], axis=1)
        color = LEARNED if row.startswith("gfm") else SIMPLE
        axis.plot(step / observed, middle, "o" + style, ms=3, color=color, label=row)
        axis.fill_between(step / observed, low, high, color=color, alpha=0.15, lw=0)
    axis.axhline(1, color="k", lw=0.6, ls=":")
    axis.set(
        xlabel="horizon, in multiples of the observed prefix",
        ylabel="squared error relative to persistence",
        yscale="log",
        title="unseen seeds: median over runs, and the middle half",
    )
    axis.legend(frameon=False, fontsize=8)
    return figure


def loss_after_jump(arrays):
    """Test loss along the true runs of a split, and where each forecast lands."""
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    inside = arrays["split"] == "seed"
    prefixes = list(arrays["prefixes"])
    ends = arrays[f"test_loss/oracle_final/{prefixes[0]}"][:, inside].mean()
    xs = [*prefixes, 1.0]
    true = [arrays[f"test_loss/persistence/{p}"][:, inside].mean() for p in prefixes] + [ends]
    axis.plot(xs, true, "o-", color=TRUTH, label="the run itself")
    shown = [
        row for row in ("lawa_half_log", "gfm_flow_map", "gfm_function_space", "gfm_gated") if row in arrays["rows"]
    ]
    for k, row in enumerate(shown):
        means = [arrays[f"test_loss/{row}/{p}"][:, inside].mean() for p in prefixes]
        color = SIMPLE if not row.startswith("gfm") else plt.cm.autumn(0.1 + 0.25 * k)
        axis.plot(np.array(prefixes) + 0.012 * (k + 1), means, "D", ms=5, color=color, label=row)
        for p, start, mean in zip(prefixes, true, means, strict=False):
            axis.plot([p, p + 0.012 * (k + 1)], [start, mean], lw=0.6, color=color)
    axis.axhline(ends, color=TRUTH, lw=0.6, ls=":")
    axis.set(
        xlabel="share of the run observed",
        ylabel="test loss",
        yscale="log",
        title="unseen seeds: the loss at the forecast",
    )
    axis.legend(frameon=False, fontsize=8)
    return figure


FIGURES = (chart, density, coordinates, error_by_horizon, loss_after_jump)
