"""Fits of every method, side by side, and what their samples are worth."""

import functools
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.flow_maps.board import LOWER, STD, UPPER, density
from experiments.side_by_side import on_own_devices
from gfm_jax import flows
from gfm_jax.base import Flow
from gfm_jax.fitting import fit, seconds_of, with_defaults
from gfm_jax.flows import flow_map, sample
from gfm_jax.flows.metrics import kl_on_grid, off_support
from gfm_jax.networks import TimeMLP

__all__ = ["RESIDUALS", "Fit", "flow_of", "jobs", "learn_all", "radam", "score"]

STEEP = ("esd", "mean_flow")
RESIDUALS = {  # by the names that rows of the tables bear
    "lsd": flows.lsd,
    "esd": flows.esd,
    "psd_m": flows.psd_midpoint,
    "psd_u": flows.psd_uniform,
    "mean_flow": flows.mean_flow,
    "shortcut": flows.shortcut,
}


class Fit(NamedTuple):
    """One fit: its row, its parameters (None where it diverged), what they and its samples are worth, and how it went."""

    row: str
    flow: Flow
    params: object
    scores: dict[str, float]
    samples: dict[str, np.ndarray]
    history: dict[str, np.ndarray]


@functools.cache  # so that fits share the programs that draw samples
def flow_of(config, method: str, num_steps: int) -> Flow:
    """A method with the network and the recipe that all share."""
    rate = config.steep_rate if method in STEEP else config.peak_rate
    network = TimeMLP(config.widths, scale=STD)
    options = {"std_0": STD, "batch_size": config.batch_size, "diagonal_fraction": config.diagonal_fraction}
    optimizer = radam if config.optimizer == "radam" else None
    flow = flow_map(network, RESIDUALS[method], **options)
    return with_defaults(flow, num_steps=num_steps, learning_rate=rate, optimizer=optimizer)


def radam(rate: float, num_steps: int, max_grad_norm: float = 10.0) -> optax.GradientTransformation:
    """As published: a constant rate for 35,000 steps, then its inverse root."""
    schedule = lambda step: rate / jnp.sqrt(jnp.maximum(step / 35_000, 1.0))
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.radam(schedule))


def learn_all(config, pool, folder) -> list[Fit]:
    """All fits, two at a time, each on a device of its own; those that were interrupted go on."""
    return list(on_own_devices(lambda job: _fit(config, pool, folder, *job), jobs(config)))


def jobs(config) -> list[tuple[str, str, int, int]]:
    """(row, method, steps, number of the fit): the long ones first; then methods in turn, so that no two compile one program
    at one time. Where the budgets are equal `lsd` is not fitted twice."""
    long = [("lsd", "lsd", config.lsd_steps, k) for k in range(config.num_fits) if "lsd" in config.methods]
    rows = {name if name != "lsd" else "lsd_equal": name for name in config.methods}
    if config.lsd_steps == config.num_steps:
        rows.pop("lsd_equal", None)
    short = [(row, name, config.num_steps, k) for k in range(config.num_fits) for row, name in rows.items()]
    return long + short


def _fit(config, pool, folder, row, method, num_steps, k) -> Fit:
    x_1, x_0 = pool
    flow = flow_of(config, method, num_steps)
    key_fit, key_samples = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1 + k))
    place = folder / f"{row}-{k}"
    try:
        data = flows.FlowData(x_1, x_0=x_0)
        params, info = fit(key_fit, flow, data, folder=place, progress=f"{row} {k}")
    except FloatingPointError:  # a fit that diverged is a result
        return Fit(row, flow, None, {"diverged": 1.0}, {}, {})
    scores, samples = score(config, flow, params, key_samples, ode=row == "lsd")
    late = info.gradient_norms[num_steps // 2 :]
    scores |= {"diverged": 0.0, "gradient_norm": late.mean(), "largest_gradient_norm": late.max()}
    scores["seconds"] = seconds_of(place)
    history = {"loss": info.losses, "gradient_norm": info.gradient_norms, **info.terms}
    return Fit(row, flow, params, scores, samples, history)


def score(config, flow: Flow, params, key, ode: bool) -> tuple[dict, dict]:
    """Kullback-Leibler divergence on each grid and mass off the board, by number of jumps, and where asked for those
    of the ODE of the same network; and the samples."""
    x_0 = STD * jax.random.normal(key, (config.num_samples, 2))
    samples = {str(num): np.asarray(sample(None, flow, params, x_0=x_0, num_steps=num)) for num in config.num_jumps}
    samples |= (
        {"ode": np.asarray(sample(None, flow, params, x_0=x_0, num_steps=100, solver=diffrax.Heun()))} if ode else {}
    )
    scores = [_score_of(config, drawn, name) for name, drawn in samples.items()]
    return functools.reduce(dict.__or__, scores), samples


def _score_of(config, drawn, name):
    kl = {f"kl/{bins}/{name}": float(kl_on_grid(density(bins), drawn)) for bins in config.bins}
    return kl | {f"off_support/{name}": float(off_support(jnp.asarray(LOWER), jnp.asarray(UPPER), drawn))}
