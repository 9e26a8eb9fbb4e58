"""Runge, Kutta and Chebyshev's method: momentum with cyclic coefficients, for the longest interval of stability."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree
from numpy.polynomial.chebyshev import Chebyshev

from gfm_jax.checks import check_not_negative
from gfm_jax.optimizers.accumulators import zero_accumulators

__all__ = ["ScaleByChebyshevState", "chebyshev", "chebyshev_growth", "chebyshev_interval", "scale_by_chebyshev"]


class ScaleByChebyshevState(NamedTuple):
    """Updates taken, and the last direction, in float32 at least."""

    count: Int[Array, ""]
    direction: PyTree


def scale_by_chebyshev(num_stages: int = 5, damping: float = 0.05) -> optax.GradientTransformation:
    r"""Directions by the Runge-Kutta-Chebyshev method of order 1, one of its stages an update.

    .. math:: d_1 = s \frac{\omega_1}{\omega_0} g, \qquad
       d_j = \frac{T_{j-2}(\omega_0)}{T_j(\omega_0)} d_{j-1} + 2 s\, \omega_1 \frac{T_{j-1}(\omega_0)}{T_j(\omega_0)} g, \qquad
       \omega_0 = 1 + \epsilon / s^2, \quad \omega_1 = \frac{T_s(\omega_0)}{T_s'(\omega_0)}

    with T_j Chebyshev's polynomials and s stages, after which momentum starts again from nothing. Such a cycle is one step of
    length s lr: only at its end have the weights moved for the time that has passed, within it they lag behind.

    Args:
      num_stages: s, at least 1, where it is gradient descent.
      damping: epsilon, from 0 on; with 0 some curvatures inside the interval are not damped.

    Returns:
      A transformation, to be chained with `optax.scale_by_learning_rate`; the rate should stay what it is within a cycle.

    Raises:
      ValueError: for less than one stage or a negative damping.

    >>> optimizer, w = scale_by_chebyshev(num_stages=1, damping=0.0), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # gradient descent
    1.0
    """
    _check(num_stages, damping)
    of_past, of_gradient = _coefficients(num_stages, damping)

    def init(params):
        return ScaleByChebyshevState(jnp.zeros([], jnp.int32), zero_accumulators(params))

    def update(updates, state, params=None):
        del params
        j = state.count % num_stages
        a, b = jnp.asarray(of_past)[j], jnp.asarray(of_gradient)[j]
        mix = lambda d, g: a.astype(d.dtype) * d + b.astype(d.dtype) * g.astype(d.dtype)
        direction = jax.tree.map(mix, state.direction, updates)
        new_state = ScaleByChebyshevState(jnp.asarray(optax.safe_increment(state.count)), direction)
        return jax.tree.map(lambda d, g: d.astype(g.dtype), direction, updates), new_state

    return optax.GradientTransformation(init, update)


def chebyshev(
    learning_rate: optax.ScalarOrSchedule, num_stages: int = 5, damping: float = 0.05
) -> optax.GradientTransformation:
    """Gradient descent that bears `num_stages` times the curvature: `scale_by_chebyshev`, and the learning rate.

    Args:
      learning_rate: of one update, a number, not negative, or a schedule.
      num_stages, damping: as of `scale_by_chebyshev`.

    >>> optimizer, w = chebyshev(0.1, num_stages=1, damping=0.0), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # gradient descent
    -0.1
    """
    check_not_negative(learning_rate=learning_rate)
    return optax.chain(scale_by_chebyshev(num_stages, damping), optax.scale_by_learning_rate(learning_rate))


def chebyshev_interval(num_stages: int, damping: float) -> float:
    r"""The largest learning rate of one update times curvature that a cycle damps.

    .. math:: q = \frac{2 \omega_0}{s\, \omega_1} \approx (2 - \tfrac{4}{3} \epsilon)\, s

    Args:
      num_stages: s, at least 1.
      damping: epsilon, from 0 on.

    >>> chebyshev_interval(5, 0.0)  # twice the stages
    10.0
    """
    _check(num_stages, damping)
    omega_0, omega_1 = _omegas(num_stages, damping)
    return float(2 * omega_0 / omega_1 / num_stages)


def chebyshev_growth(num_stages: int, damping: float, q: ArrayLike) -> np.ndarray | np.floating:
    r"""By what a cycle multiplies a mode of curvature q / lr: P_s = T_s(omega_0 - omega_1 s q) / T_s(omega_0).

    Args:
      num_stages: s, at least 1.
      damping: epsilon, from 0 on.
      q: learning rate times curvature, any shape.

    >>> float(chebyshev_growth(1, 0.0, 0.25))  # 1 - q
    0.75
    """
    _check(num_stages, damping)
    omega_0, omega_1 = _omegas(num_stages, damping)
    t = Chebyshev.basis(num_stages)
    return t(omega_0 - omega_1 * num_stages * np.asarray(q)) / t(omega_0)


def _check(num_stages, damping):
    if num_stages < 1:
        raise ValueError(f"num_stages: expected at least 1, got {num_stages}")
    if not damping >= 0:
        raise ValueError(f"damping: expected a number from 0 on, got {damping}")


def _omegas(num_stages, damping):
    omega_0, t = 1 + damping / num_stages**2, Chebyshev.basis(num_stages)
    return omega_0, t(omega_0) / t.deriv()(omega_0)


def _coefficients(num_stages, damping):
    """Of the past direction and of the gradient, by stage."""
    omega_0, omega_1 = _omegas(num_stages, damping)
    t = [Chebyshev.basis(j)(omega_0) for j in range(num_stages + 1)]
    stages = range(2, num_stages + 1)
    of_past = np.array([0.0, *(t[j - 2] / t[j] for j in stages)])
    of_gradient = num_stages * np.array([omega_1 / omega_0, *(2 * omega_1 * t[j - 1] / t[j] for j in stages)])
    return of_past, of_gradient
