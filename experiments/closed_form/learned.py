"""What networks learn beside the closed form: by size of the data set, by when they take over, by number of companions."""

import functools
import time
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.images import Images, worth
from experiments.side_by_side import side_by_side
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.flows import (
    EmpiricalTargets,
    FlowData,
    closed_form_velocity,
    flow_matching,
    interpolate,
    linear,
    optimal_transport,
    sample,
)
from gfm_jax.flows.flow_data import map_points
from gfm_jax.networks import TimeMLP, UNet
from gfm_jax.solve import solve_hybrid
from gfm_jax.weights import nearest_distance

__all__ = ["OT", "TIMES", "by_companions", "by_size", "error_over_time", "hybrids", "seconds_per_step"]

OT = "OT"  # in the place of a number of companions: one, and sources paired with images by optimal transport
TIMES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98], np.float32)


@functools.cache  # so that what one fit compiles serves the others
def flow_of(config, shape: tuple[int, int, int], num_companions: int, num_steps: int):
    """Flow matching with the network and the recipe that all share."""
    unet = config.network == "unet"
    flow = flow_matching(
        UNet(shape, config.widths) if unet else TimeMLP(config.widths, num_sinusoids=16),
        targets=EmpiricalTargets(num_companions) if num_companions > 1 else None,
        batch_size=config.batch_size,
    )
    return with_defaults(flow, num_steps=num_steps, learning_rate=config.peak_rate)


class Keys(NamedTuple):
    """Of one fit: of its training, of its samples, of the paths that it is examined on, of its pairs."""

    fit: jax.Array
    samples: jax.Array
    paths: jax.Array
    pairs: jax.Array


def _keys(config, k) -> Keys:
    return Keys(*jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1000 + k), len(Keys._fields)))


def by_size(config, images: Images, folder) -> dict[int, list[dict]]:
    """Fits of every number of training images: errors against u* over time, on paths to training images and to test images,
    and what samples are worth. The parameters of the largest go to `hybrids`."""

    def learn(job):
        size, k = job
        keys = _keys(config, k)
        known, flow = images.train[:size], flow_of(config, images.shape, 1, config.num_steps)
        params = _fit(config, folder, images.shape, known, k)
        samples = sample(keys.samples, flow, params, config.num_samples, num_steps=config.solver_steps)
        errors = {
            name: error_over_time(keys.paths, flow, params, known, ends)
            for name, ends in (("train", known), ("test", images.test))
        }
        return {"params": params, "errors": errors, **worth(images, known, samples)}

    work = [(size, k) for size in config.sizes for k in range(config.num_fits)]
    found = {size: [] for size in config.sizes}
    for (size, _), one in zip(work, side_by_side(learn, work), strict=True):
        found[size].append(one)
    return found


def _fit(config, folder, shape, known, k, num_companions=1, num_steps=None):
    """A fit; one that is asked for twice, with all images and M = 1, is found in its folder the second time."""
    num_steps = num_steps or config.num_steps
    name = f"{len(known)} images, M = {num_companions}, {num_steps} steps, fit {k}"
    options = {"folder": folder / f"{len(known)}-{num_companions}-{num_steps}-{k}", "progress": name}
    key, x_0 = _keys(config, k).fit, None
    if num_companions == OT:
        num_companions, (known, x_0) = 1, _pairs(_keys(config, k).pairs, known, config.batch_size)
    flow = flow_of(config, shape, num_companions, num_steps)
    return fit(key, flow, FlowData(known, x_0=x_0), **options)[0]


def _pairs(key, known, block: int, most: int = 50_000):
    """Images, each several times, with sources that optimal transport in blocks pairs them with: drawn once for a fit."""
    key_order, key_source = jax.random.split(key)
    copies = jnp.tile(known, (max(most // len(known), 4), 1))
    x_1 = copies[jax.random.permutation(key_order, len(copies))]
    x_0 = jax.random.normal(key_source, x_1.shape)
    return x_1[optimal_transport(np.asarray(x_0), np.asarray(x_1), block=block)], x_0


def error_over_time(key, flow, params, known, ends, num_paths: int = 256) -> np.ndarray:
    """E|v - u*|^2 / dim at TIMES, u* of the `known` images, on paths from noise to `ends`."""
    key_index, key_source = jax.random.split(key)
    x_1 = ends[jax.random.randint(key_index, (num_paths,), 0, len(ends))]
    x_0 = jax.random.normal(key_source, x_1.shape)
    return np.asarray(_errors(flow.velocity, params, known, x_0, x_1, jnp.asarray(TIMES)))


@functools.partial(jax.jit, static_argnums=0)
def _errors(velocity, params, known, x_0, x_1, times):
    exact = closed_form_velocity(known)

    def at(t):
        x_t = jax.vmap(functools.partial(interpolate, linear, t))(x_0, x_1).x_t
        return jnp.mean(jax.vmap(lambda x: (velocity(params, t, x) - exact(t, x)) ** 2)(x_t))

    return jax.lax.map(at, times)


def hybrids(config, images: Images, fits: list[dict]) -> dict[float, list[dict]]:
    """Samples that follow u* until tau and the learned velocity from there, from the same sources."""
    flow, exact = flow_of(config, images.shape, 1, config.num_steps), closed_form_velocity(images.train)
    found = {}
    for tau in config.taus:
        found[tau] = []
        for k, found_by_fit in enumerate(fits):
            x_0 = jax.random.normal(_keys(config, k).samples, (config.num_samples, images.train.shape[1]))
            params = found_by_fit["params"]
            samples = _hybrid(flow.velocity, exact, config.solver_steps, tau, params, x_0)
            score = worth(images, images.train, samples)
            alone = sample(None, flow, params, x_0=x_0, num_steps=config.solver_steps, solver=diffrax.Euler())
            score["farthest"] = float(nearest_distance(samples, images.train).max())
            score["same_as_learned"] = float(np.array_equal(samples, alone))
            found[tau].append(score | {"samples": np.asarray(samples[:16])})
    return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _hybrid(velocity, exact, num_steps, tau, params, x_0):
    learned = lambda t, x: velocity(params, t, x)
    solve = lambda x: solve_hybrid(exact, learned, x, tau, num_steps=num_steps, solver=diffrax.Euler())[0]
    return map_points(solve, x_0)


def by_companions(config, images: Images, folder) -> dict[tuple[int | str, int], list[dict]]:
    """Fits by the number of companions, and with pairs by optimal transport, and by length: what samples are worth."""

    def learn(job):
        num, steps, k = job
        keys = _keys(config, k)
        flow = flow_of(config, images.shape, 1 if num == OT else num, steps)
        params = _fit(config, folder, images.shape, images.train, k, num, steps)
        samples = sample(keys.samples, flow, params, config.num_samples, num_steps=config.solver_steps)
        found = worth(images, images.train, samples)
        if num == OT:  # u* is the field of independent pairs, and no other
            return found
        error = error_over_time(keys.paths, flow, params, images.train, images.train).mean()
        return found | {"error": error}

    ways = (*config.efm_companions, OT)
    work = [(num, steps, k) for num in ways for steps in config.efm_steps for k in range(config.num_fits)]
    found = {}
    for (num, steps, _), one in zip(work, side_by_side(learn, work), strict=True):
        found.setdefault((num, steps), []).append(one)
    return found


def seconds_per_step(config, images: Images, rounds: int = 5) -> dict[int, list[float]]:
    """Seconds of a training step by the number of companions, in turn, once all are compiled."""
    steps = min(100, config.efm_steps[0])
    flows = {num: flow_of(config, images.shape, num, steps) for num in config.efm_companions}
    starts = {num: fit(jax.random.key(0), flow, images.train)[0] for num, flow in flows.items()}
    found = {num: [] for num in flows}
    for _ in range(rounds):
        for num, flow in flows.items():
            begin = time.perf_counter()
            fit(jax.random.key(0), flow, images.train, start=starts[num])
            found[num].append((time.perf_counter() - begin) / steps)
    return found
