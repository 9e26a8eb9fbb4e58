"""Fits of every method, side by side, and what their samples are worth."""

import functools
import queue
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.flow_maps.board import LOWER, STD, UPPER, density
from experiments.side_by_side import side_by_side
from gfm_jax.base import Generator
from gfm_jax.methods import self_distilled_flow_map
from gfm_jax.metrics import kl_on_grid, off_support
from gfm_jax.networks import TimeMLP
from gfm_jax.solve import solve_flow

__all__ = ["Fit", "generator_of", "learn_all", "score"]

STEEP = ("esd", "mean_flow")


class Fit(NamedTuple):
    """One fit: its row, its parameters (None where it diverged), the seconds that it took, and the scores of its samples."""

    row: str
    generator: Generator
    params: object
    seconds: float
    scores: dict[str, float]
    samples: dict[str, np.ndarray]


@functools.cache  # so that what one fit compiles serves the others
def generator_of(config, method: str, num_steps: int) -> Generator:
    """A method with the network and the recipe that all share."""
    rate = config.steep_rate if method in STEEP else config.peak_rate
    optimizer = None
    if config.optimizer == "radam":
        schedule = lambda step: rate / jnp.sqrt(jnp.maximum(step / 35_000, 1.0))
        optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.radam(schedule))
    network = TimeMLP(config.widths, scale=STD)
    return self_distilled_flow_map(
        network,
        method,
        std_0=STD,
        num_steps=num_steps,
        batch_size=config.batch_size,
        diagonal_share=config.diagonal_share,
        peak_rate=rate,
        optimizer=optimizer,
    )


def learn_all(config, pool, folder) -> list[Fit]:
    """All fits, the long ones first, two at a time, each on a device of its own; those that were interrupted go on."""
    work = [("lsd", "lsd", config.lsd_steps)] if "lsd" in config.methods else []
    work += [(name if name != "lsd" else "lsd_equal", name, config.num_steps) for name in config.methods]
    free = queue.SimpleQueue()
    for device in jax.devices()[:2] * (2 // min(len(jax.devices()), 2)):
        free.put(device)

    def learn(job):
        device = free.get()
        try:
            with jax.default_device(device):
                return _fit(config, pool, folder, *job)
        finally:
            free.put(device)

    return list(side_by_side(learn, [(*job, k) for job in work for k in range(config.num_fits)]))


def _fit(config, pool, folder, row, method, num_steps, k) -> Fit:
    x_1, x_0 = pool
    generator = generator_of(config, method, num_steps)
    key_fit, key_samples = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1 + k))
    place = folder / f"{row}-{k}"
    begin = time.perf_counter()
    try:
        params = generator.fit(key_fit, x_1, x_0=x_0, folder=place, progress=f"{row} {k}")
    except FloatingPointError:  # a fit that diverged is a result
        return Fit(row, generator, None, time.perf_counter() - begin, {"diverged": 1.0}, {})
    seconds = time.perf_counter() - begin
    scores, samples = score(config, generator, params, key_samples, ode=row == "lsd")
    late = params.history["gradient_norm"][num_steps // 2 :]
    if np.isfinite(late).any():  # not of a fit that was done before
        scores |= {"gradient_norm": float(np.nanmean(late)), "largest_gradient_norm": float(np.nanmax(late))}
    scores |= {"diverged": 0.0, "seconds": seconds}
    return Fit(row, generator, params, seconds, scores, samples)


def score(config, generator: Generator, params, key, ode: bool) -> tuple[dict, dict]:
    """Kullback-Leibler divergence on each grid and mass off the board, by number of jumps, and where asked for those
    of the ODE of the same network; and the samples."""
    scores, samples = {}, {}
    for num_jumps in config.num_jumps:
        drawn = generator.generate(key, params, config.num_samples, num_jumps=num_jumps)
        samples[str(num_jumps)] = np.asarray(drawn)
        scores |= _score_of(config, drawn, str(num_jumps))
    if not ode:
        return scores, samples
    drawn = _heun(
        generator.velocity, params._replace(history={}), STD * jax.random.normal(key, (config.num_samples, 2))
    )
    return scores | _score_of(config, drawn, "ode"), samples | {"ode": np.asarray(drawn)}


def _score_of(config, drawn, name):
    kl = {f"kl/{bins}/{name}": float(kl_on_grid(density(bins), drawn)) for bins in config.bins}
    return kl | {f"off_support/{name}": float(off_support(jnp.asarray(LOWER), jnp.asarray(UPPER), drawn))}


@functools.partial(jax.jit, static_argnums=0)
def _heun(velocity, params, x_0):
    return jax.vmap(lambda x: solve_flow(lambda t, x: velocity(params, t, x), x, num_steps=100)[0])(x_0)
