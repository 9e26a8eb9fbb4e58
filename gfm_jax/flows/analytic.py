"""Laws whose velocity is known exactly, and their flow maps: what learned ones are tested against."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from gfm_jax.base import Interpolant
from gfm_jax.checks import as_float, as_points, check_count, check_source, check_times, is_traced
from gfm_jax.flows.closed_form import velocity_to
from gfm_jax.flows.interpolants import linear
from gfm_jax.flows.mean_velocity import velocity_of
from gfm_jax.solve import solve_flow

__all__ = ["AnalyticFlow", "gaussian", "single_point", "uniform_on_boxes"]


class AnalyticFlow(NamedTuple):
    """`velocity(t, x)` and `flow_map(s, t, x)` of one point, s <= t."""

    velocity: Callable[[Array, Array], Array]
    flow_map: Callable[[Array, Array, Array], Array]


def gaussian(
    mean: Float[Array, "*dim"],
    std: float | Float[Array, ""],
    *,
    interpolant: Interpolant = linear,
    source: tuple[float, float] = (0.0, 1.0),
) -> AnalyticFlow:
    r"""From one Gaussian to another, x_0 ~ N(m_0, s_0^2 I) and x_1 ~ N(m_1, s_1^2 I).

    .. math:: X_{s,t}(x) = \mu_t + \frac{g_t}{g_s} (x - \mu_s), \quad \mu_t = \alpha_t m_0 + \beta_t m_1, \quad
       g_t^2 = \alpha_t^2 s_0^2 + \beta_t^2 s_1^2

    Args:
      mean, std: m_1 and s_1 >= 0 of the target; where s_1 is 0 the map does not begin at s = 1.
      interpolant: the pair (alpha, beta).
      source: m_0 and s_0 > 0.

    Returns:
      The flow, of points of the shape of the mean.

    Raises:
      ValueError: for a negative s_1, another source, or a known start of 1 where s_1 is 0.

    >>> gaussian(jnp.array([3.0]), 0.5).flow_map(0.0, 1.0, jnp.array([2.0])).round().tolist()
    [4.0]
    """
    mean_0, std_0 = check_source(source)
    mean = as_float("mean", mean)
    if not is_traced(std) and not 0 <= std < np.inf:
        raise ValueError(f"std: expected a standard deviation of at least 0, got {std}")
    pointed = not is_traced(std) and std == 0
    centre = lambda t: interpolant.alpha(t) * mean_0 + interpolant.beta(t) * mean
    spread = lambda t: jnp.hypot(interpolant.alpha(t) * std_0, interpolant.beta(t) * std)

    def flow_map(s, t, x):
        if pointed:
            _not_at_the_end("s", s)
        return centre(t) + spread(t) / spread(s) * (x - centre(s))

    return AnalyticFlow(_velocity_of(flow_map, pointed), flow_map)


def _not_at_the_end(name, t):
    """Raises ValueError for a time of 1, where all paths to one point have met."""
    if not is_traced(t) and (np.asarray(t) == 1).any():
        raise ValueError(f"{name}: expected a flow time in [0, 1), got {t}: at 1 it is no longer defined")


def _velocity_of(flow_map, pointed):
    def velocity(t, x):
        if pointed:
            _not_at_the_end("t", t)
        return velocity_of(flow_map, t, x)

    return velocity


def single_point(x_1: Float[Array, "*dim"], *, interpolant: Interpolant = linear) -> AnalyticFlow:
    r"""From any source to one data point; s < 1.

    .. math:: X_{s,t}(x) = \beta_t x_1 + \frac{\alpha_t}{\alpha_s} (x - \beta_s x_1)

    Args:
      x_1: the point.
      interpolant: the pair (alpha, beta).

    Returns:
      The flow, of points of the shape of x_1.

    Raises:
      ValueError: for a start that is known and 1.

    >>> single_point(jnp.array([4.0])).flow_map(0.0, 0.5, jnp.array([2.0])).tolist()
    [3.0]
    """
    x_1 = as_float("x_1", x_1)

    def flow_map(s, t, x):
        _not_at_the_end("s", s)
        return interpolant.beta(t) * x_1 + interpolant.alpha(t) / interpolant.alpha(s) * (x - interpolant.beta(s) * x_1)

    return AnalyticFlow(_velocity_of(flow_map, True), flow_map)


def uniform_on_boxes(
    lower: Float[Array, "boxes dim"],
    upper: Float[Array, "boxes dim"],
    *,
    interpolant: Interpolant = linear,
    std_0: float = 1.0,
    num_steps: int = 128,
) -> AnalyticFlow:
    r"""From N(0, s_0^2 I) to the uniform law on disjoint boxes: a checkerboard, for one.

    .. math:: E[x_1 | x_t = x] \propto \sum_k \int_{\text{box } k} y \, N(x; \beta y, \alpha^2 s_0^2) \, dy

    Each integral is a product over the axes of a box, and each factor that of a Gaussian over an interval. In float32 its mean
    is good to about 1e-6, and the velocity to that over 1 - t.

    Args:
      lower, upper: corners of the boxes.
      interpolant: the pair (alpha, beta).
      std_0: standard deviation of the source, above 0.
      num_steps: steps of a fifth-order solver, for each flow map: it has no closed form.

    Returns:
      The flow, for times below 1: at the end itself the velocity is no longer defined.

    Raises:
      ValueError: for corners that are no boxes, a deviation that is not positive, or times that are known and not below 1.

    >>> flow = uniform_on_boxes(jnp.array([[1.0]]), jnp.array([[3.0]]))
    >>> jax.jit(flow.velocity)(0.0, jnp.zeros(1)).round().tolist()
    [2.0]
    """
    lower, upper = as_points("lower", lower), as_points("upper", upper)
    check_source((0.0, std_0))
    num_steps = check_count("num_steps", num_steps)
    if lower.shape != upper.shape:
        raise ValueError(f"lower, upper: expected two corners of each box, got shapes {lower.shape} and {upper.shape}")
    known = not is_traced(lower, upper)
    if known and not (np.asarray(lower) < np.asarray(upper)).all():
        raise ValueError("lower, upper: expected lower < upper along every axis of every box")

    def velocity(t, x):
        check_times(before_end=True, t=t)
        x = as_float("x", x)
        t = as_float("t", t).astype(x.dtype)
        alpha, beta = interpolant.alpha(t), interpolant.beta(t)
        log_mass, mean = _interval(lower, upper, beta, x[None], alpha * std_0)
        share = jax.nn.softmax(log_mass.sum(-1))
        return velocity_to(interpolant, t, x, jnp.matmul(share, mean, precision="highest"))

    def flow_map(s, t, x):
        import diffrax  # on first use: it takes half a second

        check_times(before_end=True, t=t)
        return solve_flow(velocity, x, s, t, num_steps=num_steps, solver=diffrax.Tsit5())[0]

    return AnalyticFlow(velocity, flow_map)


_GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(8)


def _interval(lower, upper, beta, x, s):
    """log int_lower^upper N(x; beta y, s^2) dy, up to a constant, and the mean of y under that density; elementwise."""
    # Where the Gaussian hardly bends inside the interval the closed form is a difference of like numbers: quadrature.
    nodes, weights = (jnp.asarray(part, x.dtype)[None, None] for part in _GAUSS_LEGENDRE)
    y = (upper + lower)[..., None] / 2 + (upper - lower)[..., None] / 2 * nodes
    log_terms = -(((x[..., None] - beta * y) / s) ** 2) / 2 + jnp.log(weights / 2)
    log_sum = jax.nn.logsumexp(log_terms, axis=-1)
    smooth_log_mass = log_sum + jnp.log(upper - lower)
    smooth_mean = jnp.sum(jnp.exp(log_terms - log_sum[..., None]) * y, axis=-1)

    smooth = beta * (upper - lower) < 2 * s

    # Elsewhere y is normal with mean x / beta and deviation s / beta, cut off at both ends; mirrored into the lower tail,
    # where nothing is lost.
    slope = jnp.where(beta > 0, beta, 1.0)
    low, high = (slope * lower - x) / s, (slope * upper - x) / s
    low, high = jnp.where(smooth, -1.0, low), jnp.where(smooth, 1.0, high)  # finite where it is not used
    mirrored = low + high > 0
    a, b = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)  # a < b, |a| >= |b|
    log_cdf = log_ndtr(b) + jnp.log1p(-jnp.exp(log_ndtr(a) - log_ndtr(b)))
    densities = jnp.exp(-(b**2) / 2 - log_cdf) - jnp.exp(-(a**2) / 2 - log_cdf)
    drift = densities / jnp.sqrt(2 * jnp.pi) * jnp.where(mirrored, -1.0, 1.0)
    sharp_mean = jnp.clip((x - s * drift) / slope, lower, upper)
    sharp_log_mass = log_cdf + jnp.log(s * jnp.sqrt(2 * jnp.pi) / slope)

    return jnp.where(smooth, smooth_log_mass, sharp_log_mass), jnp.where(smooth, smooth_mean, sharp_mean)
