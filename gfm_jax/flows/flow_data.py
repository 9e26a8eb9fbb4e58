"""What flows are fitted to and drawn from: data, sources, and the batches that both come in."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Config, Defaults, Learner
from gfm_jax.checks import as_float, as_points, check_count, check_finite
from gfm_jax.pytrees import map_rows

__all__ = [
    "Conditions",
    "FlowData",
    "FlowParams",
    "adam_on_cosine",
    "check_conditions",
    "check_network",
    "check_start",
    "check_std",
    "conditions_of",
    "draw_ends",
    "draw_sources",
    "flow_data",
    "flow_learner",
    "flow_params",
    "map_points",
    "sources_of",
]

IN_CACHE = 1024  # points side by side, on a CPU


class FlowData(NamedTuple):
    """What a flow is fitted to.

    Attributes:
      x_1: targets.
      cond: what each is conditioned on; None for a flow without conditions.
      x_0: the source that each target is paired with; None to draw sources from N(0, std_0^2 I).
      std_0: that deviation, which the method says or finds.
    """

    x_1: Float[Array, "num ..."]
    cond: Float[Array, "num conditions"] | None = None
    x_0: Float[Array, "num ..."] | None = None
    std_0: Float[Array, ""] | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Conditions:
    """How many numbers a model's condition consists of: 0 for a model without conditions, None where it is not known."""

    columns: int | None = None


class FlowParams(NamedTuple):
    """What a fit finds: parameters of the network, the source's deviation of each coordinate, and the conditions it was fitted
    with."""

    network: PyTree
    std_0: Float[Array, "*event"]
    conditions: Conditions = Conditions()


def flow_data(data, std_0: float | None = None) -> FlowData:
    """Checks data before any long work, and chooses the source: N(0, std_0^2 I), by default as wide as the data.

    Data that are one point, or all the same, have no width: their source is of unit deviation.

    Args:
      data: targets [num, dim], or of any event shape, a pair (targets, conditions), or `FlowData`.
      std_0: deviation of the source, above 0.

    Raises:
      ValueError: for no data, data without an axis of points or not finite, or conditions or sources of another number.
    """
    if not isinstance(data, FlowData):
        is_pair = isinstance(data, tuple) and len(data) == 2 and np.ndim(data[0]) >= 2
        data = FlowData(*data) if is_pair else FlowData(as_points("data", data, any_event=True))
    x_1 = as_points("data", data.x_1, any_event=True).astype(jnp.result_type(float))
    check_finite("data", x_1)
    cond = data.cond
    if cond is not None:
        cond = conditions_of(cond, len(x_1), "points").astype(x_1.dtype)
    x_0 = data.x_0
    if x_0 is not None:
        x_0 = as_float("x_0", x_0).astype(x_1.dtype)
        if x_0.shape != x_1.shape:
            raise ValueError(f"x_0: expected a source for each point, {x_1.shape}, got {x_0.shape}")
        check_finite("x_0", x_0)
    if std_0 is not None:
        return FlowData(x_1, cond, x_0, jnp.asarray(std_0, x_1.dtype))
    spread = (x_1 if x_0 is None else x_0).std()
    return FlowData(x_1, cond, x_0, jnp.where(spread > 0, spread, 1))


def flow_params(network: PyTree, data: FlowData) -> FlowParams:
    """Parameters of a network together with what it is fitted to."""
    columns = 0 if data.cond is None else data.cond.shape[1]
    assert data.std_0 is not None  # since `flow_data`
    return FlowParams(network, jnp.full_like(data.x_1[0], data.std_0), Conditions(columns))


def flow_learner(init_network, sample, loss, config: Config, defaults: Defaults, prepare) -> Learner:
    """The learner of a flow.

    Args:
      init_network: `(key, data) -> network`, parameters of the network.
      sample, loss, config, defaults: as `Learner` has them; `loss(network, key, batch)`.
      prepare: `(data) -> FlowData`.
    """

    def resume(start, data):
        like = jax.eval_shape(init_network, jax.random.key(0), data)
        return flow_params(check_start(start, like, flow_params((), data).conditions), data)

    return Learner(
        init=lambda key, data: flow_params(init_network(key, data), data),
        sample=sample,
        loss=lambda params, key, batch: loss(params.network, key, batch),
        config=config,
        defaults=defaults,
        prepare=lambda key, data: prepare(data),
        resume=resume,
        frozen=("std_0",),
    )


# --- checks that all generators share ---------------------------------------------------------------------------------


def conditions_of(cond, num: int, what: str = "samples") -> Float[Array, "num conditions"]:
    """Conditions in float32 or better, one for each of `num` points.

    Raises:
      ValueError: for conditions of another number or shape, or some that are not finite.
    """
    cond = as_float("cond", cond)
    if cond.ndim != 2 or len(cond) != num or not cond.shape[1]:
        hint = "; labels of classes become vectors by jax.nn.one_hot" if cond.ndim < 2 else ""
        raise ValueError(f"cond: expected a vector for each of {num} {what}, got shape {cond.shape}{hint}")
    check_finite("cond", cond)
    return cond


def check_conditions(cond, num: int, conditions: Conditions) -> Float[Array, "num conditions"] | None:
    """What `generate` is given to condition on, as the fit had it.

    Raises:
      ValueError: for conditions of another number or length, none where the fit had them, or some where it had none.
    """
    columns = conditions.columns
    if cond is None:
        if columns:
            raise ValueError(f"cond: expected {columns} numbers for each of {num} samples, as in the fit, got none")
        return None
    cond = conditions_of(cond, num)
    if columns == 0:
        raise ValueError(f"cond: expected none, as in the fit, got shape {cond.shape}")
    if columns is not None and cond.shape[1] != columns:
        raise ValueError(f"cond: expected {columns} numbers for each sample, as in the fit, got shape {cond.shape}")
    return cond


def sources_of(key: Array | None, params: FlowParams, num: int, x_0=None) -> Float[Array, "num ..."]:
    """Where `num` samples start: at the points that are given, or drawn from the source that a flow was fitted from.

    Raises:
      ValueError: for a number below 1, neither key nor starting points, or starting points of another number or dimension, or
        not finite.
    """
    num = check_count("num", num)
    if x_0 is None:
        if key is None:
            raise ValueError("key: expected one to draw sources with, or x_0, got None")
        return draw_sources(key, params, num)
    x_0 = as_float("x_0", x_0)
    if x_0.shape != (num, *params.std_0.shape):
        raise ValueError(f"x_0: expected a start for each sample, {(num, *params.std_0.shape)}, got shape {x_0.shape}")
    check_finite("x_0", x_0)
    return x_0


def check_network(network) -> None:
    """Raises ValueError for a module that cannot be the name of a compiled program, as one that holds lists."""
    try:
        hash(network)
    except TypeError as error:
        raise ValueError(f"network: expected a module whose fields can be hashed, tuples for lists: {error}") from None


def check_std(name: str, value) -> None:
    """Raises ValueError for what is no positive, finite standard deviation."""
    if not 0 < value < jnp.inf:
        raise ValueError(f"{name}: expected a positive standard deviation, got {value}")


def check_start(start: FlowParams, network: PyTree, conditions: Conditions) -> PyTree:
    """The parameters that a fit begins with, where those of an earlier one are given.

    Args:
      start: of the earlier fit.
      network: parameters of this network, or their shapes.
      conditions: of this fit.

    Raises:
      ValueError: for parameters of another network, or of a fit with other conditions.
    """
    shapes = lambda tree: [
        (jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    known = start.conditions.columns
    if known is not None and known != conditions.columns:
        raise ValueError(f"start: expected a fit with {conditions.columns} numbers as condition, got one with {known}")
    if shapes(start.network) != shapes(network):
        other = sorted(set(shapes(start.network)) ^ set(shapes(network)))
        raise ValueError(f"start: expected parameters of this network, got others: {other[:2]}")
    return start.network


# --- batches and samples ----------------------------------------------------------------------------------------------


def draw_ends(
    key: Array, data: FlowData, num: int
) -> tuple[Float[Array, "num ..."], Float[Array, "num ..."], Float[Array, "num conditions"] | None]:
    """Sources, targets and conditions of `num` paths: pairs where there are pairs, else independent."""
    key_index, key_source = jax.random.split(key)
    index = jax.random.randint(key_index, (num,), 0, len(data.x_1))
    x_1 = data.x_1[index]
    cond = None if data.cond is None else data.cond[index]
    if data.x_0 is not None:
        return data.x_0[index], x_1, cond
    assert data.std_0 is not None  # since `flow_data`
    return data.std_0 * jax.random.normal(key_source, x_1.shape, x_1.dtype), x_1, cond


def draw_sources(key: Array, params: FlowParams, num: int) -> Float[Array, "num ..."]:
    """Points of the source that a flow was fitted from."""
    return params.std_0[None] * jax.random.normal(key, (num, *params.std_0.shape), params.std_0.dtype)


def map_points(function: Callable, points: PyTree) -> PyTree:
    """`jax.vmap`; on a CPU in even batches, whose hidden layers its cache holds: up to half the time of all at once."""
    num = len(jax.tree.leaves(points)[0])
    if num <= IN_CACHE or jax.default_backend() != "cpu":
        return jax.vmap(function)(points)
    return map_rows(function, points, -(-num // -(-num // IN_CACHE)))


def adam_on_cosine(learning_rate: float, num_steps: int, max_grad_norm: float = 10.0) -> optax.GradientTransformation:
    """Adam at b2 = .99, warmed up for a fiftieth of the steps, then on a cosine to a hundredth of its rate; gradients are
    scaled to a norm of at most `max_grad_norm`."""
    warm_up = max(num_steps // 50, 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warm_up, max(num_steps, warm_up + 1), learning_rate / 100
    )
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(rate, b2=0.99))
