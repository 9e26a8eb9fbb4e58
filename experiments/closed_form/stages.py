"""The stages of the experiment: the closed form by itself, then what is learned beside it, then the report."""

import pathlib

import jax
import numpy as np
from tqdm.auto import tqdm

from experiments.closed_form.config import check
from experiments.closed_form.exact import alignment, collapse, collapse_formula, estimators
from experiments.closed_form.figures import FIGURES
from experiments.closed_form.learned import OT, TIMES, by_companions, by_size, hybrids, seconds_per_step
from experiments.images import check_images, load_images, trivial, worth
from experiments.run_folder import RunFolder
from gfm_jax.datasets import two_moons

__all__ = ["compare_with_closed_form"]

WORTH = ("frechet_train", "frechet_test", "nearest", "nearest_of_test", "copies")


def compare_with_closed_form(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage, each with its progress on the screen, and leaves the run folder."""
    check(config)
    check_images(config.dataset, config.num_train)
    folder = RunFolder(out, config)
    images = load_images(config.dataset, config.num_train, config.seed, config.classifier_steps)
    folder.add("classifier", config.dataset, accuracy=images.accuracy)
    checkpoints = folder.path / "checkpoints"
    arrays = _collapse(folder, config) | _alignment(config, images)
    _estimators(folder, config, images)
    arrays |= _sizes_and_hybrids(folder, config, images, checkpoints)
    arrays |= _companions(folder, config, images, checkpoints)
    folder.finish("What flow matching learns, beside its closed form", command, arrays, FIGURES)


def _collapse(folder, config):
    arrays = {"collapse/dims": np.array(config.collapse_dims)}
    for dim in config.collapse_dims:
        found = collapse(jax.random.key(config.seed), dim, config.collapse_points, config.num_pairs)
        formula = collapse_formula(dim, config.collapse_points)
        folder.add(f"collapse_time/{dim}", "measured", time=found["measured"])
        folder.add(f"collapse_time/{dim}", "formula", time=formula)
        arrays |= {f"collapse/{dim}/{name}": found[name] for name in ("times", "weight")}
        arrays[f"collapse/{dim}/formula"] = np.array(formula)
    return arrays


def _alignment(config, images):
    """In two dimensions and on images: as many points of each."""
    times = np.arange(0, 1, 0.04)
    key_moons, key_pairs = jax.random.split(jax.random.key(config.seed))
    moons = two_moons(key_moons, len(images.train))
    arrays = {"alignment/times": times}
    for name, data in (("two moons", (moons - moons.mean(0)) / moons.std()), (config.dataset, images.train)):
        found = alignment(key_pairs, data, config.num_pairs, times)
        arrays |= {f"alignment/{name}/{part}": values for part, values in found.items()}
    return arrays


def _estimators(folder, config, images):
    key = jax.random.key(config.seed)
    for num in tqdm(config.companions, desc="estimators", leave=False):
        found = estimators(key, images.train, config.estimator_time, num, config.estimator_paths)
        for name, (bias, variance) in found.items():
            folder.add(f"estimator/{num}", name, bias_in_standard_errors=bias, variance=variance)


def _sizes_and_hybrids(folder, config, images, checkpoints):
    found = by_size(config, images, checkpoints)
    arrays = {"sizes": np.array(config.sizes), "times": TIMES}
    for size, fits in found.items():
        scores = {name: [fit[name] for fit in fits] for name in WORTH}
        for name in ("train", "test"):
            errors = np.array([fit["errors"][name] for fit in fits])
            arrays[f"size/{size}/error_{name}"] = errors
            scores |= {f"error_{name}/{t:g}": errors[:, i] for i, t in enumerate(TIMES)}
        folder.add(f"dataset_size/{size}", "flow_matching", **scores)
        arrays |= {f"size/{size}/{name}": np.array(scores[name]) for name in WORTH}
    for row, samples in trivial(images, config.num_samples, config.seed).items():
        folder.add(f"dataset_size/{config.sizes[-1]}", row, **worth(images, images.train, samples))

    taken_over = hybrids(config, images, found[config.sizes[-1]])
    arrays |= {"taus": np.array(config.taus), "shape": np.array(images.shape)}
    for tau, fits in taken_over.items():
        scores = {name: [fit[name] for fit in fits] for name in (*WORTH, "farthest", "same_as_learned")}
        folder.add(f"hybrid/{tau:g}", "hybrid", **scores)
        arrays |= {f"hybrid/{tau:g}/{name}": np.array(values) for name, values in scores.items()}
        arrays[f"hybrid/{tau:g}/samples"] = fits[0]["samples"]
    return arrays


def _companions(folder, config, images, checkpoints):
    found, seconds = by_companions(config, images, checkpoints), seconds_per_step(config, images)
    ways = (*config.efm_companions, OT)
    arrays = {"efm/companions": np.array(ways), "efm/steps": np.array(config.efm_steps)}
    for num in ways:
        for steps in config.efm_steps:
            fits = found[num, steps]
            scores = {name: [fit[name] for fit in fits] for name in (*WORTH, "error") if name in fits[0]}
            folder.add(f"efm/{num}", f"{steps * config.batch_size / len(images.train):.0f} epochs", **scores)
            arrays |= {f"efm/{num}/{steps}/{name}": np.array(values) for name, values in scores.items()}
    for num, of_step in seconds.items():
        against = np.array(of_step) / np.array(seconds[config.efm_companions[0]])
        folder.add(f"efm/{num}", "cost", seconds_per_step=of_step, over_M_1=against)
    return arrays
