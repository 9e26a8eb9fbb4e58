"""What flows are fitted to and drawn from: data, sources, and the batches that both come in."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.checks import check_finite
from gfm_jax.pytrees import map_rows

__all__ = ["FlowData", "FlowParams", "adam_on_cosine", "draw_ends", "draw_sources", "flow_data", "map_points"]

IN_CACHE = 1024  # points side by side, on a CPU


class FlowData(NamedTuple):
    """Targets, what each is conditioned on, the sources that they are paired with, and the deviation of those that are not."""

    x_1: Float[Array, "num dim"]
    cond: Float[Array, "num conditions"] | None
    x_0: Float[Array, "num dim"] | None
    std_0: Float[Array, ""]


class FlowParams(NamedTuple):
    """What a fit finds: averaged parameters of the network, the source's deviation along each axis, and how the fit went."""

    network: PyTree
    std_0: Float[Array, " dim"]
    history: dict[str, Float[Array, " num_steps"]]


def flow_data(data, cond=None, x_0=None, std_0: float | None = None) -> FlowData:
    """Checks data before any long work, and chooses the source: N(0, std_0^2 I), by default as wide as the data.

    Raises:
      ValueError: for no data, data that are not [num, dim] or not finite, or conditions or sources of another number.
    """
    x_1 = jnp.asarray(data, jnp.result_type(float))
    if x_1.ndim != 2 or not x_1.size:
        raise ValueError(f"data: expected points [num, dim], got shape {x_1.shape}")
    check_finite("data", x_1)
    if cond is not None:
        cond = jnp.asarray(cond, x_1.dtype)
        if cond.ndim != 2 or len(cond) != len(x_1):
            raise ValueError(f"cond: expected a vector for each of {len(x_1)} points, got shape {cond.shape}")
    if x_0 is not None:
        x_0 = jnp.asarray(x_0, x_1.dtype)
        if x_0.shape != x_1.shape:
            raise ValueError(f"x_0: expected a source for each point, {x_1.shape}, got {x_0.shape}")
        check_finite("x_0", x_0)
    spread = (x_1 if x_0 is None else x_0).std() if std_0 is None else jnp.asarray(std_0, x_1.dtype)
    return FlowData(x_1, cond, x_0, spread)


def draw_ends(
    key: Array, data: FlowData, num: int
) -> tuple[Float[Array, "num dim"], Float[Array, "num dim"], Float[Array, "num conditions"] | None]:
    """Sources, targets and conditions of `num` paths: pairs where there are pairs, else independent."""
    key_index, key_source = jax.random.split(key)
    index = jax.random.randint(key_index, (num,), 0, len(data.x_1))
    x_1 = data.x_1[index]
    cond = None if data.cond is None else data.cond[index]
    if data.x_0 is not None:
        return data.x_0[index], x_1, cond
    return data.std_0 * jax.random.normal(key_source, x_1.shape, x_1.dtype), x_1, cond


def draw_sources(key: Array, params: FlowParams, num: int) -> Float[Array, "num dim"]:
    """Points of the source that a flow was fitted from."""
    return params.std_0 * jax.random.normal(key, (num, len(params.std_0)), params.std_0.dtype)


def map_points(function: Callable, points: PyTree) -> PyTree:
    """`jax.vmap`; on a CPU in even batches, whose hidden layers its cache holds: up to half the time of all at once."""
    num = len(jax.tree.leaves(points)[0])
    if num <= IN_CACHE or jax.default_backend() != "cpu":
        return jax.vmap(function)(points)
    return map_rows(function, points, -(-num // -(-num // IN_CACHE)))


def adam_on_cosine(peak_rate: float, num_steps: int, clip: float) -> optax.GradientTransformation:
    """Adam at b2 = .99, warmed up for a fiftieth of the steps, then on a cosine to a hundredth; gradients of at most `clip`."""
    warm_up = max(num_steps // 50, 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, peak_rate, warm_up, max(num_steps, warm_up + 1), peak_rate / 100)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate, b2=0.99))
