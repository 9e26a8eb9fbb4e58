"""Figures of the integrators experiment: each a pure function of the saved arrays."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import SIMPLE, TRUTH
from experiments.integrators.methods import TRAINED

__all__ = ["FIGURES"]


def _names(arrays, prefix):
    return list(dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith(prefix + "/")))


def _colors(names):
    """SGD in grey, the others along a colour map."""
    others = [name for name in names if name != "sgd"]
    colors = dict(zip(others, plt.cm.turbo(np.linspace(0.05, 0.95, max(len(others), 1))), strict=True))
    return {"sgd": SIMPLE} | colors


def stability_regions(arrays):
    """Where a mode of complex curvature is damped, by multistep rule."""
    names = _names(arrays, "region")
    figure, axis = plt.subplots(figsize=(5.6, 3.6))
    for name, color in _colors(names).items():
        if name in names:
            axis.contour(
                arrays["region_real"],
                arrays["region_imaginary"],
                arrays[f"region/{name}"],
                [1.0],
                colors=[color],
                linewidths=1.2,
            )
            axis.plot([], [], color=color, label=name)
    axis.axhline(0, color="k", lw=0.5)
    axis.set(
        xlabel="learning rate x curvature, real part", ylabel="imaginary part", ylim=(-1.2, 1.2), title="damped inside"
    )
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def fidelity(arrays):
    """Distance of a run's end to that of the gradient flow, at equal gradients."""
    names, gradients = _names(arrays, "fidelity"), arrays["fidelity_gradients"]
    figure, axis = plt.subplots(figsize=(5.6, 3.6))
    for name, color in _colors(names).items():
        far = arrays[f"fidelity/{name}"]
        far = np.where(far < 1e3, far, np.nan)  # what diverged is not drawn
        axis.plot(gradients, far.mean(0), "o-", ms=3, color=color, label=name, lw=2.5 if name == "sgd" else 1)
        axis.fill_between(gradients, far.min(0), far.max(0), color=color, alpha=0.15, lw=0)
    axis.set(xscale="log", yscale="log", xlabel="gradients", ylabel="distance to the gradient flow")
    axis.set_xticks(gradients, [str(num) for num in gradients])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def valley(arrays):
    """Paths down a curved valley at 64 gradients each, beside the flow."""
    from experiments.integrators.valley import SHOWN, loss

    figure, axis = plt.subplots(figsize=(5.2, 3.6))
    a, b = np.meshgrid(np.linspace(-1.4, 1.0, 120), np.linspace(-0.3, 1.9, 120))
    axis.contour(a, b, np.log(loss(np.stack([a, b]))), 16, colors="0.85", linewidths=0.6)
    axis.plot(*arrays["valley/flow"].T, color=TRUTH, lw=4, alpha=0.35, label="gradient flow")
    for name, color in _colors(SHOWN).items():
        axis.plot(*arrays[f"valley/{name}"].T, "o-", ms=2.5, lw=1, color=color, label=name)
    axis.set(xlabel="a", ylabel="b", xlim=(-1.25, -0.3), ylim=(0.2, 1.7))
    axis.legend(frameon=False, fontsize=7)
    return figure


def learning_curves(arrays):
    """Training loss over gradients, each optimizer at its own best rate, with the middle half of the seeds; dashed what optax
    brings."""
    tasks = _names(arrays, "training")
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.8), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        names = list(dict.fromkeys(name.split("/")[2] for name in arrays if name.startswith(f"training/{task}/")))
        for name, color in _colors(names).items():
            gradients, loss = (arrays[f"training/{task}/{name}/{field}"] for field in ("gradients", "loss"))
            low, middle, high = np.quantile(loss, (0.25, 0.5, 0.75), axis=0)
            line = {"lw": 2.5} if name == "sgd" else {"lw": 1.2, "ls": "-" if TRAINED[name].ours else "--"}
            axis.plot(gradients, middle, color=color, label=name, **line)
            axis.fill_between(gradients, low, high, color=color, alpha=0.12, lw=0)
        axis.set(yscale="log", xlabel="gradients", ylabel="training loss", title=f"digits, {task}")
    axes[0, -1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


FIGURES = (stability_regions, fidelity, valley, learning_curves)
