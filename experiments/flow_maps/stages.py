"""The stages of the experiment: pair, learn, sample, score, report."""

import pathlib
import time

import jax
import numpy as np

from experiments.flow_maps.board import density, draw_pool
from experiments.flow_maps.config import check
from experiments.flow_maps.figures import figures_of
from experiments.flow_maps.learn import Fit, learn_all
from experiments.flow_maps.on_images import flow_maps_of_images
from experiments.images import check_images, load_images
from experiments.run_folder import RunFolder
from gfm_jax.datasets import checkerboard
from gfm_jax.flows.metrics import kl_floor

__all__ = ["learn_flow_maps"]


def learn_flow_maps(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage, each with its progress on the screen, and leaves the run folder."""
    check(config)
    check_images(config.dataset, config.num_train)
    folder = RunFolder(out, config)
    images = load_images(config.dataset, config.num_train, config.seed, config.classifier_steps)
    begin = time.perf_counter()
    pool = draw_pool(config)
    folder.add("pool", config.coupling, seconds=time.perf_counter() - begin, points=config.num_points)
    key_floor = jax.random.fold_in(jax.random.key(config.seed), 2000)
    floors = {
        bins: np.asarray(kl_floor(key_floor, density(bins), checkerboard, config.num_samples)) for bins in config.bins
    }
    checkpoints = folder.path / "checkpoints"
    fits = learn_all(config, pool, checkpoints)
    _tabulate(folder, config, fits, floors)
    folder.add("classifier", config.dataset, accuracy=images.accuracy)
    arrays = _arrays(config, fits, floors) | flow_maps_of_images(folder, config, images)
    folder.finish("Flow maps by self-distillation", command, arrays, figures_of(arrays))


def _tabulate(folder, config, fits: list[Fit], floors):
    rows = dict.fromkeys(fit.row for fit in fits)
    of_row = {row: [fit.scores for fit in fits if fit.row == row and fit.params is not None] for row in rows}
    for bins in config.bins:
        table, floor = f"checkerboard/{bins}", floors[bins]
        folder.add(table, "exact_samples", **{f"kl/{jumps}": floor for jumps in config.num_jumps})
        for row, scores in of_row.items():
            if not scores:
                continue
            metrics = {}
            for jumps in config.num_jumps:
                kl = np.array([one[f"kl/{bins}/{jumps}"] for one in scores])
                off = np.array([one[f"off_support/{jumps}"] for one in scores])
                metrics |= {f"kl/{jumps}": kl, f"excess/{jumps}": kl - floor.mean(), f"off_support/{jumps}": off}
            folder.add(
                table, row, **{name: metrics[name] for name in sorted(metrics, key=lambda name: name.split("/")[0])}
            )
            if row == "lsd":  # its ODE does not jump: what that scores stands in every column
                ode = np.array([one[f"kl/{bins}/ode"] for one in scores])
                of_ode = {
                    "kl": ode,
                    "excess": ode - floor.mean(),
                    "off_support": [one["off_support/ode"] for one in scores],
                }
                metrics = {f"{name}/{jumps}": values for name, values in of_ode.items() for jumps in config.num_jumps}
                folder.add(table, "flow_100_heun", **metrics)
    for row in rows:
        metrics = {
            name: [fit.scores[name] for fit in fits if fit.row == row and name in fit.scores] for name in TRAINING
        }
        folder.add("training", row, **{name: values for name, values in metrics.items() if values})


TRAINING = ("seconds", "diverged", "gradient_norm", "largest_gradient_norm")


def _arrays(config, fits: list[Fit], floors) -> dict[str, np.ndarray]:
    """What the figures are drawn from: of every row the first fit's samples and history, and of the first row its map."""
    arrays = {"jumps": np.array(config.num_jumps), "bins": np.array(config.bins)}
    arrays |= {f"floor/{bins}": floor for bins, floor in floors.items()}
    first = {}
    for fit in fits:
        if fit.params is not None:
            first.setdefault(fit.row, fit)
    arrays["rows"] = np.array([*first])
    for row, fit in first.items():
        arrays |= {f"samples/{row}/{name}": points[:4000] for name, points in fit.samples.items()}
        arrays |= {f"history/{row}/{name}": values for name, values in fit.history.items()}
        for bins in config.bins:
            kl = [
                [f.scores[f"kl/{bins}/{jumps}"] for jumps in config.num_jumps]
                for f in fits
                if f.row == row and f.params
            ]
            arrays[f"kl/{bins}/{row}"] = np.array(kl)
    if first:
        arrays |= _map_of(next(iter(first.values())))
    return arrays


def _map_of(fit: Fit) -> dict[str, np.ndarray]:
    """Where one jump takes a polar grid of the source, from s = 0 to several t."""
    radius, angle = np.linspace(0.05, 1.4, 12), np.linspace(0, 2 * np.pi, 240)
    x = np.stack([np.outer(radius, np.cos(angle)), np.outer(radius, np.sin(angle))], -1).astype(np.float32)
    times = np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32)
    params = fit.params
    move = jax.jit(
        jax.vmap(
            lambda t, x: jax.vmap(lambda x: fit.flow.flow_map(params, jax.numpy.zeros_like(t), t, x))(x), (0, None)
        )
    )
    return {"map/times": times, "map/points": np.asarray(move(times, x.reshape(-1, 2))).reshape(len(times), *x.shape)}
