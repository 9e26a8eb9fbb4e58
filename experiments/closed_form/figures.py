"""Figures of the closed form experiment: each a pure function of the saved arrays, named for the paper's."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import LEARNED, SIMPLE, TRUTH, framed

__all__ = ["FIGURES"]


def figure_1a(arrays):
    """How well the velocity of one path agrees with the exact field, by time; and how many points share the weight."""
    times = arrays["alignment/times"]
    names = sorted({name.split("/")[1] for name in arrays if name.startswith("alignment/") and name.count("/") == 2})
    figure, axes = plt.subplots(2, len(names), figsize=(3.6 * len(names), 4.6), sharex=True)
    for j, name in enumerate(names):
        cosine, size = arrays[f"alignment/{name}/cosine"], arrays[f"alignment/{name}/effective_size"]
        bins = np.linspace(-1, 1, 41)
        shares = np.stack([np.histogram(row, bins)[0] / len(row) for row in cosine], axis=1)
        axes[0, j].imshow(np.sqrt(shares), origin="lower", aspect="auto", extent=(0, times[-1], -1, 1), cmap="magma")
        axes[0, j].set(title=name, ylabel="cos(u*, $x_1 - x_0$)" if not j else None)
        axes[1, j].fill_between(times, *np.quantile(size, (0.1, 0.9), axis=1), color=LEARNED, alpha=0.2, lw=0)
        axes[1, j].plot(times, np.median(size, axis=1), color=LEARNED)
        axes[1, j].set(yscale="log", xlabel="t", ylabel="points that share the weight" if not j else None)
    figure.suptitle("paper: on images one point decides before t = .2, on two moons only late", fontsize=8)
    return figure


def figure_1c(arrays):
    """The weight of a path's own end over time, by dimension."""
    figure, axis = plt.subplots(figsize=(4.6, 3.2))
    dims = arrays["collapse/dims"]
    for dim, color in zip(dims, plt.cm.viridis(np.linspace(0, 0.85, len(dims))), strict=True):
        axis.plot(
            arrays[f"collapse/{dim}/times"],
            arrays[f"collapse/{dim}/weight"],
            "o-",
            ms=2.5,
            color=color,
            label=f"d = {dim}",
        )
        axis.axvline(arrays[f"collapse/{dim}/formula"], color=color, ls=":", lw=1)
    axis.set(xlabel="t", ylabel="weight $\\lambda$ of the path's own end", ylim=(0, 1))
    axis.legend(frameon=False, fontsize=7)
    figure.suptitle("dotted: $t^* = r/(1+r)$; paper: a sharp transition, earlier in higher dimension", fontsize=8)
    return figure


def figure_2(arrays):
    """Error against u* over time, and what samples are worth, by the number of training images."""
    sizes, times = arrays["sizes"], arrays["times"]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2))
    for size, color in zip(sizes, plt.cm.viridis(np.linspace(0, 0.85, len(sizes))), strict=True):
        errors = arrays[f"size/{size}/error_train"]
        axes[0].plot(times, errors.mean(0), color=color, label=f"n = {size}")
        axes[0].fill_between(times, errors.min(0), errors.max(0), color=color, alpha=0.2, lw=0)
    axes[0].set(yscale="log", xlabel="t", ylabel="$E|v - u^*|^2 / d$")
    axes[0].legend(frameon=False, fontsize=7)
    for name, color in (("frechet_train", TRUTH), ("frechet_test", LEARNED)):
        _band(axes[1], sizes, [arrays[f"size/{size}/{name}"] for size in sizes], color, name.replace("_", " to "))
    axes[1].set(xscale="log", yscale="log", xlabel="training images", ylabel="Frechet distance")
    axes[1].legend(frameon=False, fontsize=7)
    for name, color, label in (("nearest", LEARNED, "samples"), ("nearest_of_test", SIMPLE, "test images")):
        _band(axes[2], sizes, [arrays[f"size/{size}/{name}"] for size in sizes], color, label)
    axes[2].set(xscale="log", xlabel="training images", ylabel="distance to the nearest of them", ylim=(0, None))
    axes[2].legend(frameon=False, fontsize=7)
    figure.suptitle(
        "paper: the error peaks at t ~ .15 and near 1; in between sizes good test scores go with copies", fontsize=8
    )
    return figure


def figure_3(arrays):
    """Follow u* until tau and what was learned from there: how near to training images samples end, and what they look like."""
    taus, shape = arrays["taus"], tuple(arrays["shape"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.2))
    _band(left, taus, [arrays[f"hybrid/{tau:g}/nearest"] for tau in taus], LEARNED, "samples")
    left.axhline(arrays[f"hybrid/{taus[0]:g}/nearest_of_test"].mean(), color=SIMPLE, ls="--", lw=1, label="test images")
    left.set(xlabel=r"$\tau$", ylabel="distance to the nearest training image", ylim=(0, None))
    left.legend(frameon=False, fontsize=7)
    rows = [np.concatenate([framed(x, shape) for x in arrays[f"hybrid/{tau:g}/samples"][:10]], axis=1) for tau in taus]
    right.imshow(np.concatenate(rows), cmap="gray", aspect="equal")
    height = shape[0] + 1
    right.set(xticks=[], yticks=(np.arange(len(taus)) + 0.5) * height - 0.5, yticklabels=[f"{tau:g}" for tau in taus])
    right.set_ylabel(r"$\tau$")
    figure.suptitle(r"paper: new images for $\tau \leq .2$, essentially copies from $\tau = .4$", fontsize=8)
    return figure


def figure_4(arrays):
    """Empirical flow matching: Frechet distances by the number of companions and by the length of the fit."""
    companions, lengths = arrays["efm/companions"], arrays["efm/steps"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, name in zip(axes, ("frechet_train", "frechet_test"), strict=True):
        for steps, color in zip(lengths, plt.cm.viridis(np.linspace(0, 0.8, len(lengths))), strict=True):
            *values, of_pairs = [arrays[f"efm/{num}/{steps}/{name}"] for num in companions]
            _band(axis, np.arange(len(values)), values, color, f"{steps} steps")
            axis.plot(np.full(len(of_pairs), len(values)), of_pairs, "o", ms=3, color=color)
        axis.set(xticks=range(len(companions)), xticklabels=companions, xlabel="M", ylabel=name.replace("_", " to "))
        axis.legend(frameon=False, fontsize=7)
    figure.suptitle("paper: no worse than M = 1, a small steady gain", fontsize=8)
    return figure


def _band(axis, x, values, color, label):
    values = [np.atleast_1d(value) for value in values]
    axis.plot(x, [value.mean() for value in values], "o-", ms=3, color=color, label=label)
    axis.fill_between(
        x, [value.min() for value in values], [value.max() for value in values], color=color, alpha=0.2, lw=0
    )


FIGURES = (figure_1a, figure_1c, figure_2, figure_3, figure_4)
