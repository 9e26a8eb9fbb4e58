"""What the closed form says by itself: when a path's end is decided, and what the estimators of its field are worth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from experiments.side_by_side import side_by_side
from gfm_jax.flows import (
    closed_form_velocity,
    draw_reference_points,
    empirical_path,
    interpolate,
    linear,
    posterior,
    velocity_to,
)

__all__ = ["STD", "alignment", "collapse", "collapse_formula", "estimators"]

STD = 0.5  # of the Gaussian data whose collapse is timed


def collapse_formula(dim: int, num: int, std: float = STD) -> float:
    """t* = r / (1 + r), r = sqrt(2 ln n / (d s^2)): from then on one of n isotropic points takes all the weight."""
    r = np.sqrt(2 * np.log(num) / (dim * std**2))
    return float(r / (1 + r))


def collapse(key, dim: int, num: int, num_pairs: int) -> dict[str, np.ndarray]:
    """The weight lambda of the point that a path leads to, around the time of the formula: [times], in the mean over paths,
    and the time at which it passes one half."""
    key_data, key_source = jax.random.split(key)
    data = STD * jax.random.normal(key_data, (num, dim))
    x_0 = jax.random.normal(key_source, (num_pairs, dim))
    times = np.clip(collapse_formula(dim, num) + np.linspace(-0.16, 0.16, 17), 0.01, 0.98)
    weight = np.array(
        [
            np.asarray(_own_weight(data, jnp.float32(t), x_0)).mean()
            for t in tqdm(times, desc=f"collapse {dim}", leave=False)
        ]
    )
    above = int(np.argmax(weight > 0.5)) or 1
    share = (0.5 - weight[above - 1]) / (weight[above] - weight[above - 1])
    return {"times": times, "weight": weight, "measured": times[above - 1] + share * (times[above] - times[above - 1])}


@jax.jit
def _own_weight(data, t, x_0):
    """lambda of the end of each path: paths lead to the first points of the data."""
    path = jax.vmap(functools.partial(interpolate, linear, t))(x_0, data[: len(x_0)])
    log_density = jax.vmap(lambda x: posterior(data, t, x).log_density)(path.x_t)
    own = jax.scipy.stats.norm.logpdf(path.x_t, t * path.x_1, 1 - t).sum(-1)
    return jnp.exp(own - log_density) / len(data)


def alignment(key, data, num_pairs: int, times) -> dict[str, np.ndarray]:
    """Cosine between u* and the velocity x_1 - x_0 of the path, and how many points share the weight: [times, pairs]."""
    key_index, key_source = jax.random.split(key)
    x_1 = data[jax.random.choice(key_index, len(data), (min(num_pairs, len(data)),), replace=False)]
    x_0 = jax.random.normal(key_source, x_1.shape)

    @jax.jit
    def at(t):
        path = jax.vmap(functools.partial(interpolate, linear, t))(x_0, x_1)
        found = jax.vmap(lambda x: posterior(data, t, x))(path.x_t)
        exact = jax.vmap(lambda x, mean: velocity_to(linear, t, x, mean))(path.x_t, found.mean)
        norms = jnp.linalg.norm(exact, axis=1) * jnp.linalg.norm(path.dx_t, axis=1)
        return jnp.sum(exact * path.dx_t, axis=1) / norms, found.effective_size

    cosine, size = zip(*[at(jnp.float32(t)) for t in times], strict=True)
    return {"cosine": np.array(cosine), "effective_size": np.array(size)}


def estimators(key, data, t: float, num_companions: int, num_paths: int) -> dict[str, tuple[float, float]]:
    """Of each estimator of u*(x_t): its bias in standard errors, and its variance, E|u - u*|^2.

    The bias is that of the error along u* itself, in the mean over paths. "self_normalised" leaves out the path's own point.
    """
    measure = functools.partial(_errors_of, key, data, t, num_companions, num_paths)
    return dict(zip(ESTIMATORS, side_by_side(measure, ESTIMATORS), strict=True))


ESTIMATORS = ("without_replacement", "with_replacement", "self_normalised")


def _errors_of(key, data, t, num_companions, num_paths, name, batch=250) -> tuple[float, float]:
    extra = name == "self_normalised"  # M fresh ones, and its own that is then left out

    def errors(key):
        key_index, key_source = jax.random.split(key)
        replacement = name == "with_replacement"
        own, index = draw_reference_points(
            key_index, len(data), batch, num_companions + extra, "per_sample", replacement
        )
        x_0 = jax.random.normal(key_source, (batch, data.shape[1]))
        path = jax.vmap(functools.partial(interpolate, linear, jnp.float32(t)))(x_0, data[own])
        exact = jax.vmap(closed_form_velocity(data))(path.t, path.x_t)
        error = empirical_path(path, data[index[:, 1:] if extra else index]).dx_t - exact
        along = jnp.sum(error * exact, axis=1) / jnp.linalg.norm(exact, axis=1)
        return along, jnp.sum(error**2, axis=1)

    keys = jax.random.split(key, max(num_paths // batch, 2))
    along, square = (np.asarray(part, float).ravel() for part in jax.jit(lambda keys: jax.lax.map(errors, keys))(keys))
    return abs(along.mean()) / (along.std() / np.sqrt(along.size)), square.mean()
