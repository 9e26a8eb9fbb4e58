"""The velocity that flow matching would learn on a finite data set if nothing stood in its way, in closed form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gfm_jax.base import Interpolant
from gfm_jax.checks import as_float, as_points, check_count, check_finite, check_source, check_times
from gfm_jax.flows.interpolants import linear

__all__ = ["Posterior", "closed_form_velocity", "posterior", "velocity_to"]

HIGHEST = jax.lax.Precision.HIGHEST


class Posterior(NamedTuple):
    """What a point x_t on a path says of the data point that the path leads to.

    Attributes:
      mean: E[x_1 | x_t].
      effective_size: 1 / sum_i lambda_i^2, how many data points share the weight: 1 where the path's end is certain.
      log_density: log p_t(x), that of the paths' points at t.
    """

    mean: Float[Array, "*event"]
    effective_size: Float[Array, ""]
    log_density: Float[Array, ""]


def posterior(
    data: Shaped[Array | np.ndarray, "num ..."],
    t: Shaped[Array | np.ndarray, ""] | float,
    x: Shaped[Array | np.ndarray, "*event"],
    *,
    interpolant: Interpolant = linear,
    source: tuple[float, float] = (0.0, 1.0),
    chunk: int = 1024,
) -> Posterior:
    r"""The law of a path's end, given where the path is, over the points of a data set.

    .. math:: \lambda_i = \mathrm{softmax}_i \frac{\beta \langle x - \alpha m, x^{(i)} \rangle - \beta^2 |x^{(i)}|^2 / 2}
       {\alpha^2 \sigma^2}, \qquad E[x_1 | x_t = x] = \sum_i \lambda_i x^{(i)}

    The sum runs over the data in chunks, with a running maximum, so that mapped over many points it never holds an array of
    [points, num]. Products are taken of the data about their mean c and of x - alpha m - beta c, which leaves the weights as
    they are: data far from zero lose nothing. On the closed form of flow matching, arXiv 2506.03719, Proposition 1, for any
    interpolant and any isotropic Gaussian source.

    Args:
      data: the data set; as t and x, of any real dtype, and computed with in float32 or better.
      t: flow time in [0, 1); at 1 the law is no longer defined.
      x: the point.
      interpolant: the pair (alpha, beta).
      source: mean m and standard deviation sigma > 0 of the Gaussian source.
      chunk: how many data points are looked at together, at least 1.

    Returns:
      Mean, effective size and log-density, in float32 or better whatever came.

    Raises:
      ValueError: for no data, data and a point of different dimensions, a sigma that is not positive, or a time that is known
        and not in [0, 1). A traced time of 1 gives NaN.

    >>> found = jax.jit(posterior)(jnp.array([[1.0], [3.0]]), 0.0, jnp.zeros(1))
    >>> found.mean.round().tolist(), round(float(found.effective_size), 3)
    ([2.0], 2.0)
    """
    check_times(before_end=True, t=t)
    data = as_points("data", data, any_event=True)
    x, known = _of_event(data, x), _centred(data.reshape(len(data), -1))
    found = _posterior(known, t, x.ravel(), interpolant, check_source(source), check_count("chunk", chunk))[0]
    return found._replace(mean=found.mean.reshape(x.shape))


class _Centred(NamedTuple):
    """A data set, its mean, and the largest deviation from it. A centred copy is never made: chunks are centred in passing."""

    data: Array
    centre: Array
    scale: Array


def _of_event(data, x):
    """The point, of the event shape that the data have."""
    x = as_float("x", x)
    if data.shape[1:] != x.shape:
        raise ValueError(f"data: expected at least one point of shape {x.shape}, as x has, got {data.shape}")
    return x


def _centred(data) -> _Centred:
    centre = data.mean(0)
    largest = jnp.maximum(data.max(0) - centre, centre - data.min(0)).max()
    return _Centred(data, centre, jnp.where(largest > 0, largest, 1))


def _posterior(known: _Centred, t, x, interpolant, source, chunk):
    """The posterior, and its mean and the point about the centres that `known` and the source have."""
    data, centre, scale = known
    t = as_float("t", t)
    if t.ndim:
        raise ValueError(f"t: expected one time, got shape {t.shape}; map with jax.vmap")
    dtype = jnp.result_type(data.dtype, x.dtype)
    t = t.astype(dtype)
    mean, sigma = source
    alpha, beta = interpolant.alpha(t), interpolant.beta(t)
    size = min(chunk, len(data))
    moved = _less(x.astype(dtype), beta, centre) - alpha * mean

    # In units of the data's scale and of the larger of both, so that no square is too large for the dtype.
    far = jnp.maximum(scale, jnp.abs(moved).max())
    towards, shrink = (moved / far) * beta, 1 / scale
    sharpness = _bounded(scale / (alpha * sigma)) * _bounded(far / (alpha * sigma))

    def look(start, fresh):
        """Logits over `sharpness`, and the points, of a chunk; weights of those that are not fresh are zero."""
        points = (jax.lax.dynamic_slice_in_dim(data, start, size) - centre[None]) * shrink
        halves = jnp.sum(points**2, axis=1) / 2
        logits = jnp.matmul(points, towards, precision=HIGHEST) - beta**2 * (scale / far) * halves
        # Computed once: a compiler that computed them again, with another rounding, for the sum of the weights than for the
        # weighted sum would be off by the rounding times the sharpness, which near the end is millions.
        logits = jax.lax.optimization_barrier(logits)
        top = logits.max()
        weights = lambda top: jnp.where(fresh, jnp.exp((logits - top) * sharpness), 0)
        return top, weights, lambda weights: jnp.matmul(weights, points, precision=HIGHEST)

    def absorb(i, carry):
        top, total, total_square, weighted = carry
        start = jnp.minimum(i * size, len(data) - size)  # the last chunk goes back over points that were seen
        here, weights_below, mean_of = look(start, start + jnp.arange(size) >= i * size)
        higher = jnp.maximum(top, here)
        kept, weights = jnp.exp((top - higher) * sharpness), weights_below(higher)
        return (
            higher,
            total * kept + weights.sum(),
            total_square * kept**2 + (weights**2).sum(),
            weighted * kept + mean_of(weights),
        )

    # The first chunk is what the loop begins with: no filler, and the same axes of a mesh before and after each turn.
    top, weights_below, mean_of = look(0, jnp.ones(size, bool))
    weights = weights_below(top)
    first = (top, weights.sum(), (weights**2).sum(), mean_of(weights))
    top, total, total_square, weighted = jax.lax.fori_loop(1, -(-len(data) // size), absorb, first)

    deviation = scale * (weighted / total)
    exponent = top * (scale / far) - jnp.sum((moved / far) ** 2) / 2
    log_scale = x.size * jnp.log(jnp.sqrt(2 * jnp.pi) * alpha * sigma)
    log_density = exponent * jnp.minimum(far / (alpha * sigma), 1e19) ** 2 + jnp.log(total / len(data)) - log_scale
    return Posterior(centre + deviation, total**2 / total_square, log_density), deviation, moved


def _bounded(ratio):
    """No larger than what can be squared and summed over dimensions in float32."""
    return jnp.minimum(ratio, 1e15)


def _less(x, factor, point):
    """x - factor * point without the rounding of the product, where x and the product are large and nearly the same."""
    info = jnp.finfo(x.dtype)
    halved = lambda value: jax.lax.reduce_precision(value, info.nexp, info.nmant // 2)  # two of these multiply exactly
    factor_high, point_high = halved(factor), halved(point)
    rest = factor_high * (point - point_high) + (factor - factor_high) * point
    return x - factor_high * point_high - rest


def velocity_to(
    interpolant: Interpolant,
    t: Shaped[Array | np.ndarray, ""] | float,
    x: Shaped[Array | np.ndarray, "*event"],
    x_1: Shaped[Array | np.ndarray, "*event"],
) -> Float[Array, "*event"]:
    r"""The velocity at x of paths that end, in the mean, at x_1.

    .. math:: u = \dot\alpha \frac{x - \beta x_1}{\alpha} + \dot\beta x_1

    Args:
      interpolant: the pair (alpha, beta).
      t: flow time in [0, 1).
      x, x_1: the point, and E[x_1 | x_t = x].

    Returns:
      u, in float32 or better, of the shape of x.

    Raises:
      ValueError: for a time that is known and not in [0, 1), or points of different shapes.

    >>> velocity_to(linear, 0.5, jnp.array([1.0]), jnp.array([3.0])).tolist()
    [4.0]
    """
    check_times(before_end=True, t=t)
    x, x_1 = as_float("x", x), as_float("x_1", x_1)
    if x.shape != x_1.shape:
        raise ValueError(f"x, x_1: expected points of one shape, got {x.shape} and {x_1.shape}")
    (alpha, d_alpha), (beta, d_beta) = _rates(interpolant, t, x.dtype)
    return d_alpha * (x - beta * x_1) / alpha + d_beta * x_1


def _rates(interpolant, t, dtype):
    """alpha and beta, each with its derivative."""
    t = as_float("t", t).astype(dtype)
    return [jax.jvp(part, (t,), (jnp.ones_like(t),)) for part in interpolant]


def closed_form_velocity(
    data: Shaped[Array | np.ndarray, "num ..."],
    *,
    interpolant: Interpolant = linear,
    source: tuple[float, float] = (0.0, 1.0),
    chunk: int = 1024,
) -> Callable[[Array, Array], Array]:
    r"""u*, the velocity that minimises the flow matching loss on a data set: `(t, x) -> dx/dt`, for one point.

    .. math:: u^*(x, t) = \sum_i \lambda_i(x, t) \frac{x^{(i)} - x}{1 - t} \quad \text{(linear paths from } N(0, I))

    arXiv 2506.03719, Proposition 1. It is defined on [0, 1): at t = 1 its limit depends on the path. Followed to the end by a
    solver that does not look there, such as the default of `solve_flow`, it leads to points of the data set.

    Args:
      data, interpolant, source, chunk: as for `posterior`.

    Returns:
      The velocity, in float32 or better. It raises ValueError for a time that is known and not in [0, 1); at a traced time of 1
      it is NaN.

    Raises:
      ValueError: for data that are not points or not finite, or another source or chunk than `posterior` accepts.

    >>> velocity = jax.jit(closed_form_velocity(jnp.array([[1.0], [3.0]])))
    >>> velocity(0.0, jnp.zeros(1)).round().tolist()
    [2.0]
    """
    source, chunk = check_source(source), check_count("chunk", chunk)
    points = as_points("data", data, any_event=True)
    check_finite("data", points)
    known = _centred(points.reshape(len(points), -1))

    def velocity(t, x):
        check_times(before_end=True, t=t)
        x = _of_event(points, x)
        _, deviation, moved = _posterior(known, t, x.ravel(), interpolant, source, chunk)
        (alpha, d_alpha), (beta, d_beta) = _rates(interpolant, t, deviation.dtype)
        # u of `velocity_to`, about the means of both laws, which themselves move by d_alpha m + d_beta c
        about_means = d_alpha * (moved - beta * deviation) / alpha + d_beta * deviation
        return (about_means + d_alpha * source[0] + d_beta * known.centre).reshape(x.shape)

    return velocity
