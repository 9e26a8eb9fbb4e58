"""The velocity that flow matching would learn on a finite data set if nothing stood in its way, in closed form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Interpolant
from gfm_jax.checks import check_finite, check_source, check_times
from gfm_jax.paths import linear

__all__ = ["Posterior", "closed_form_velocity", "posterior", "velocity_to"]


class Posterior(NamedTuple):
    """What a point x_t on a path says of the data point that the path leads to.

    Attributes:
      mean: E[x_1 | x_t].
      effective_size: 1 / sum_i lambda_i^2, how many data points share the weight: 1 where the path's end is certain.
      log_density: log p_t(x), that of the paths' points at t.
    """

    mean: Float[Array, " dim"]
    effective_size: Float[Array, ""]
    log_density: Float[Array, ""]


def posterior(
    data: Float[Array, "num dim"],
    t: Float[Array, ""],
    x: Float[Array, " dim"],
    *,
    interpolant: Interpolant = linear,
    source: tuple[float, float] = (0.0, 1.0),
    half_squares: Float[Array, " num"] | None = None,
    chunk: int = 1024,
) -> Posterior:
    r"""The law of a path's end, given where the path is, over the points of a data set.

    .. math:: \lambda_i = \mathrm{softmax}_i \frac{\beta \langle x - \alpha m, x^{(i)} \rangle - \beta^2 |x^{(i)}|^2 / 2}
       {\alpha^2 \sigma^2}, \qquad E[x_1 | x_t = x] = \sum_i \lambda_i x^{(i)}

    The sum runs over the data in chunks, with a running maximum, so that mapped over many points it never holds an array of
    [points, num]. On the closed form of flow matching, arXiv 2506.03719, Proposition 1, for any interpolant and any isotropic
    Gaussian source.

    Args:
      data: the data set.
      t: flow time in [0, 1); at 1 the law is no longer defined.
      x: the point.
      interpolant: the pair (alpha, beta).
      source: mean m and standard deviation sigma > 0 of the Gaussian source.
      half_squares: |x^(i)|^2 / 2, where it is known already.
      chunk: how many data points are looked at together.

    Raises:
      ValueError: for no data, data and a point of different dimensions, or a sigma that is not positive.
    """
    if data.ndim != 2 or not len(data) or data.shape[1:] != x.shape:
        raise ValueError(f"data: expected at least one point of shape {x.shape}, as x has, got {data.shape}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    mean, sigma = check_source(source)
    half_squares = jnp.sum(data**2, axis=1) / 2 if half_squares is None else half_squares
    alpha, beta = interpolant.alpha(t), interpolant.beta(t)
    size = min(chunk, len(data))
    towards = (x - alpha * mean) * beta

    def absorb(i, carry):
        top, total, total_square, weighted = carry
        start = jnp.minimum(i * size, len(data) - size)  # the last chunk goes back over points that were seen
        points = jax.lax.dynamic_slice_in_dim(data, start, size)
        halves = jax.lax.dynamic_slice_in_dim(half_squares, start, size)
        product = jnp.matmul(points, towards, precision=jax.lax.Precision.HIGHEST)
        logits = (product - beta**2 * halves) / (alpha * sigma) ** 2
        logits = jnp.where(start + jnp.arange(size) < i * size, -jnp.inf, logits)
        higher = jnp.maximum(top, logits.max())
        kept, weights = jnp.exp(top - higher), jnp.exp(logits - higher)
        return (
            higher,
            total * kept + weights.sum(),
            total_square * kept**2 + (weights**2).sum(),
            weighted * kept + jnp.matmul(weights, points, precision=jax.lax.Precision.HIGHEST),
        )

    zero = jnp.zeros((), x.dtype)
    start = (zero - jnp.inf, zero, zero, jnp.zeros_like(x))
    top, total, total_square, weighted = jax.lax.fori_loop(0, -(-len(data) // size), absorb, start)
    spread = alpha * sigma
    constant = jnp.sum((x - alpha * mean) ** 2) / (2 * spread**2) + x.size * jnp.log(jnp.sqrt(2 * jnp.pi) * spread)
    log_density = top + jnp.log(total / len(data)) - constant
    return Posterior(weighted / total, total**2 / total_square, log_density)


def velocity_to(
    interpolant: Interpolant, t: Float[Array, ""], x: Float[Array, " dim"], x_1: Float[Array, " dim"]
) -> Float[Array, " dim"]:
    r"""The velocity at x of paths that end, in the mean, at x_1.

    .. math:: u = \dot\alpha \frac{x - \beta x_1}{\alpha} + \dot\beta x_1

    Args:
      interpolant: the pair (alpha, beta).
      t: flow time in [0, 1).
      x, x_1: the point, and E[x_1 | x_t = x].
    """
    one = jnp.ones_like(t)
    (alpha, d_alpha), (beta, d_beta) = (jax.jvp(part, (t,), (one,)) for part in interpolant)
    return d_alpha * (x - beta * x_1) / alpha + d_beta * x_1


def closed_form_velocity(
    data: Float[Array, "num dim"],
    *,
    interpolant: Interpolant = linear,
    source: tuple[float, float] = (0.0, 1.0),
    chunk: int = 1024,
) -> Callable[[Array, Array], Array]:
    r"""u*, the velocity that minimises the flow matching loss on a data set: `(t, x) -> [dim]`, for one point.

    .. math:: u^*(x, t) = \sum_i \lambda_i(x, t) \frac{x^{(i)} - x}{1 - t} \quad \text{(linear paths from } N(0, I))

    arXiv 2506.03719, Proposition 1. Followed to the end it leads to points of the data set; arguments as for `posterior`.
    """
    check_finite("data", data)
    half_squares = jnp.sum(data**2, axis=1) / 2

    def velocity(t, x):
        check_times(t=t)
        options = {"interpolant": interpolant, "source": source, "half_squares": half_squares, "chunk": chunk}
        return velocity_to(interpolant, t, x, posterior(data, t, x, **options).mean)

    return velocity
