"""Flow maps of images: a few jumps against the ODE of plain flow matching, for the same cost of training."""

import functools
import time

import diffrax
import jax
import numpy as np

from experiments.flow_maps.learn import radam
from experiments.images import Images, trivial, worth
from experiments.side_by_side import on_own_devices
from gfm_jax.base import Generator
from gfm_jax.methods import empirical_flow_matching, self_distilled_flow_map
from gfm_jax.networks import TimeMLP, UNet

__all__ = ["PASSES", "flow_maps_of_images", "steps_of"]

# What a sample off the diagonal costs, in forward passes: a derivative along a direction makes two of one, a gradient three
# of one, and a stopped teacher stays as it is. On the diagonal all take 3.
PASSES = {"lsd": 7, "esd": 8, "psd_m": 5, "psd_u": 5, "mean_flow": 5, "flow_matching": 3}
ODE = 100  # steps of Heun's method


def steps_of(config, method: str) -> int:
    """Steps that cost as much as `image_steps` of Lagrangian self-distillation."""
    cost = lambda method: 3 * config.image_share + (1 - config.image_share) * PASSES[method]
    return round(config.image_steps * cost("lsd") / cost(method))


@functools.cache
def _generator_of(config, method: str, shape) -> Generator:
    unet = config.image_network == "unet"
    network = UNet(shape, config.image_widths) if unet else TimeMLP(config.image_widths)
    recipe = {
        "std_0": 1.0,
        "num_steps": steps_of(config, method),
        "batch_size": config.image_batch,
        "peak_rate": config.image_rate,
    }
    if method == "flow_matching":
        return empirical_flow_matching(network, **recipe)
    recipe |= {"diagonal_share": config.image_share, "learned_weight": config.image_weight}
    if config.optimizer == "radam":
        recipe["optimizer"] = radam(config.image_rate, clip=1.0)
    return self_distilled_flow_map(network, method, **recipe)


def flow_maps_of_images(folder, config, images: Images) -> dict[str, np.ndarray]:
    """Fits, samples and scores every method; adds the table, and returns what the figure is drawn from."""

    def learn(job):
        method, k = job
        generator = _generator_of(config, method, images.shape)
        key_fit, key_samples = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), k))
        place, name = folder.path / "checkpoints" / f"images-{method}-{k}", f"{method} of images, fit {k}"
        begin = time.perf_counter()
        params = generator.fit(key_fit, images.train, folder=place, progress=name)
        seconds = time.perf_counter() - begin
        return seconds, {
            row: {num: np.asarray(draw(num)) for num in numbers}
            for row, numbers, draw in _ways(config, method, generator, params, key_samples)
        }

    work = [(method, k) for method in ("flow_matching", *config.image_methods) for k in range(config.num_fits)]
    found, table = {}, f"images/{config.dataset}"
    for (method, _), (seconds, samples) in zip(work, on_own_devices(learn, work), strict=True):
        for row, of_row in samples.items():
            scores = {num: worth(images, images.train, drawn) for num, drawn in of_row.items()}
            found.setdefault(row, []).append((method, seconds, of_row, scores))
    arrays = {"images/shape": np.array(images.shape), "images/rows": np.array([*found])}
    for row, fits in found.items():
        method, _, samples, scores = fits[0]
        metrics = {"steps": steps_of(config, method), "seconds": [fit[1] for fit in fits]}
        for name in ("frechet_test", "frechet_train", "nearest"):
            of_fits = {num: np.array([fit[3][num][name] for fit in fits]) for num in scores}
            metrics |= {f"{name}/{num}": values for num, values in of_fits.items()}
            arrays |= {f"images/{row}/{name}/{num}": values for num, values in of_fits.items()}
        folder.add(table, row, **metrics)
        arrays |= {f"images/{row}/samples/{num}": drawn[:8] for num, drawn in samples.items()}
    for row, samples in trivial(images, config.image_samples, config.seed).items():
        scores = worth(images, images.train, samples)
        folder.add(table, row, **{f"{name}/1": scores[name] for name in ("frechet_test", "frechet_train", "nearest")})
    return arrays


def _ways(config, method, generator, params, key):
    """(row, numbers of jumps or steps, how to draw samples by them) of one fit."""
    draw = functools.partial(generator.generate, key, params, config.image_samples)
    if method != "flow_matching":
        return [(method, config.image_jumps, lambda num: draw(num_jumps=num))]
    return [
        ("flow_euler", config.image_jumps, lambda num: draw(num_steps=num, solver=diffrax.Euler())),
        (f"flow_{ODE}_heun", (ODE,), lambda num: draw(num_steps=num)),
    ]
