"""Flow maps of images: a few jumps against the ODE of plain flow matching, for the same cost of training."""

import functools
from typing import NamedTuple

import diffrax
import jax
import numpy as np

from experiments.flow_maps.learn import RESIDUALS, STEEP, radam
from experiments.images import Images, trivial, worth
from experiments.side_by_side import on_own_devices
from gfm_jax.base import Flow
from gfm_jax.fitting import fit, seconds_of, with_defaults
from gfm_jax.flows import flow_map, flow_matching, sample
from gfm_jax.networks import TimeMLP, UNet

__all__ = ["PASSES", "flow_maps_of_images", "steps_of"]

# What a sample off the diagonal costs, in forward passes: a derivative along a direction makes two of one, a gradient three
# of one, and a stopped teacher, or a stopped derivative, stays as it is. On the diagonal all take 3.
PASSES = {"lsd": 7, "esd": 8, "psd_m": 5, "psd_u": 5, "mean_flow": 4, "flow_matching": 3}
_radam = functools.partial(radam, max_grad_norm=1.0)
ODE = 100  # steps of Heun's method


def steps_of(config, method: str) -> int:
    """Steps that cost as much as `image_steps` of Lagrangian self-distillation."""
    cost = lambda method: 3 * config.image_share + (1 - config.image_share) * PASSES[method]
    return round(config.image_steps * cost("lsd") / cost(method))


@functools.cache  # so that fits share the programs that draw samples
def _flow_of(config, method: str, shape) -> Flow:
    unet = config.image_network == "unet"
    network = UNet(shape, config.image_widths) if unet else TimeMLP(config.image_widths)
    rate = min(config.image_rate, config.steep_rate) if method in STEEP else config.image_rate
    options = {"std_0": 1.0, "batch_size": config.image_batch}
    if method == "flow_matching":
        flow = flow_matching(network, **options)
    else:
        options |= {"diagonal_fraction": config.image_share, "learned_weight": config.image_weight}
        flow = flow_map(network, RESIDUALS[method], **options)
    optimizer = _radam if config.optimizer == "radam" else None
    return with_defaults(flow, num_steps=steps_of(config, method), learning_rate=rate, optimizer=optimizer)


def flow_maps_of_images(folder, config, images: Images) -> dict[str, np.ndarray]:
    """Fits, samples and scores every method; adds the table, and returns what the figure is drawn from."""

    def learn(job):
        method, k = job
        flow = _flow_of(config, method, images.shape)
        key = jax.random.fold_in(jax.random.key(config.seed), 1000 + k)
        key_fit, key_samples = jax.random.split(key)
        place, name = folder.path / "checkpoints" / f"images-{method}-{k}", f"{method} of images, fit {k}"
        try:
            params, _ = fit(key_fit, flow, images.train, folder=place, progress=name)
        except FloatingPointError:  # a fit that diverged is a result
            return {}
        seconds = seconds_of(place)
        return {
            row: Sampled(method, seconds, {num: draw(num) for num in numbers})
            for row, numbers, draw in _ways(config, method, flow, params, key_samples)
        }

    work = [(method, k) for method in ("flow_matching", *config.image_methods) for k in range(config.num_fits)]
    found, table = {}, f"images/{config.dataset}"
    for one in on_own_devices(learn, work):
        for row, sampled in one.items():
            found.setdefault(row, []).append(sampled)
    arrays = {"images/shape": np.array(images.shape), "images/rows": np.array([*found])}
    for row, fits in found.items():
        metrics = {"steps": steps_of(config, fits[0].method), "fits": len(fits)}
        metrics["seconds"] = [fit.seconds for fit in fits]
        for num in fits[0].samples:
            scores = [worth(images, images.train, fit.samples[num]) for fit in fits]
            values = {f"{name}/{num}": np.array([score[name] for score in scores]) for name in METRICS}
            metrics |= values
            arrays |= {f"images/{row}/{name}": of_fits for name, of_fits in values.items()}
            arrays[f"images/{row}/samples/{num}"] = fits[0].samples[num][:8]
        folder.add(table, row, **{name: metrics[name] for name in sorted(metrics, key=lambda name: name.split("/")[0])})
    for row, samples in trivial(images, config.image_samples, config.seed).items():
        scores = worth(images, images.train, samples)
        folder.add(
            table, row, **{f"{name}/1": scores[name] for name in METRICS}, nearest_of_test=scores["nearest_of_test"]
        )
    return arrays


METRICS = ("frechet_test", "frechet_train", "nearest", "copies")


class Sampled(NamedTuple):
    """Samples of one fit by one way, by the number of jumps or steps, and how long its steps took."""

    method: str
    seconds: float
    samples: dict[int, np.ndarray]


def _ways(config, method, flow, params, key):
    """(row, numbers of jumps or steps, how to draw samples by them) of one fit."""
    x_0 = jax.random.normal(key, (config.image_samples, len(params.std_0)))

    def draw(**options):  # a thousand at a time: a U-Net's activations are large
        parts = [x_0[i : i + 1000] for i in range(0, len(x_0), 1000)]
        return np.concatenate([sample(key, flow, params, x_0=part, **options) for part in parts])

    if method != "flow_matching":
        return [(method, config.image_jumps, lambda num: draw(num_steps=num))]
    return [
        ("flow_euler", config.image_jumps, lambda num: draw(num_steps=num, solver=diffrax.Euler())),
        (f"flow_{ODE}_heun", (ODE,), lambda num: draw(num_steps=num)),
    ]
