r"""What a rule is worth, worked out from its coefficients by numpy, before any training.

A linear multistep rule has one gradient an update, of directions d and gradients g, both newest first:

    d_k = sum_{j>=1} mu_j d_{k-j} + sum_{j>=0} b_j g_{k-j},          w_{k+1} = w_k - lr d_k

A Runge-Kutta method is a Butcher tableau; for its order see `order_conditions`.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    import diffrax

__all__ = [
    "growth",
    "noise_energy",
    "order_and_error_constant",
    "parasitic_roots",
    "runge_kutta_growth",
    "runge_kutta_interval",
    "stability_interval",
]

Coefficients = Sequence[float]


def order_and_error_constant(mu: Coefficients, b: Coefficients) -> tuple[int, float]:
    r"""The order of a rule and the constant in front of its error.

    .. math:: R_m = u_0 - \sum_j \mu_j u_j - \sum_j b_j \dot w(-j), \quad u_j = w(1 - j) - w(-j), \quad w(t) = t^m / m!

    The rule has order p where R_1 = ... = R_p = 0, and then the error constant R_{p+1} / sum_j b_j.

    Args:
      mu: of the past directions, newest first.
      b: of the present gradient and of past ones, newest first.

    Returns:
      The order, 0 where the rule is not consistent, and the error constant.

    >>> order, _ = order_and_error_constant((), (1.5, -0.5))
    >>> order
    2
    """

    def residual(m):
        w, dw = (lambda t: t**m / math.factorial(m)), (lambda t: t ** (m - 1) / math.factorial(m - 1))
        moved = [w(1 - j) - w(-j) for j in range(len(mu) + 1)]
        return moved[0] - np.dot(mu, moved[1:]) - sum(b_j * dw(-j) for j, b_j in enumerate(b))

    order = 0
    while abs(residual(order + 1)) < 1e-9:
        order += 1
    return order, residual(order + 1) / sum(b)


def parasitic_roots(mu: Coefficients) -> np.ndarray:
    """The roots of z^p = sum_j mu_j z^{p-j}: what the rule adds to the flow. All must be inside the unit circle.

    Args:
      mu: of the past directions, newest first.

    >>> parasitic_roots((0.5,))
    array([0.5])
    """
    return np.roots([1.0, *(-np.asarray(mu, float))]) if len(mu) else np.zeros(0)


def growth(mu: Coefficients, b: Coefficients, q: ArrayLike) -> np.ndarray | np.floating:
    r"""By how much an update multiplies a mode of curvature q / lr, in the long run: below 1 it is damped.

    .. math:: \max |z| : \; (z - 1) \Big(z^p - \sum_j \mu_j z^{p-j}\Big) + q \sum_j b_j z^{p-j} = 0

    Args:
      mu, b: of the rule.
      q: learning rate times curvature, real or complex, any shape.

    Returns:
      The largest modulus of a root, in the shape of q.

    >>> round(float(growth((), (1.0,), 0.25)), 4)  # gradient descent
    0.75
    """
    size = max(len(mu), len(b) - 1)
    of_directions, of_gradients = np.zeros(size + 1), np.zeros(size + 1)
    of_directions[: len(mu) + 1] = [1.0, *(-np.asarray(mu, float))]
    of_gradients[: len(b)] = b
    q = np.asarray(q)
    polynomial = np.convolve([1.0, -1.0], of_directions) + q[..., None] * np.pad(of_gradients, (1, 0))
    companion = np.zeros((*q.shape, size + 1, size + 1), polynomial.dtype)
    companion[..., 0, :] = -polynomial[..., 1:]
    companion[..., range(1, size + 1), range(size)] = 1.0
    return np.abs(np.linalg.eigvals(companion)).max(-1)


def stability_interval(mu: Coefficients, b: Coefficients, highest: float = 200.0) -> float:
    """The largest q, learning rate times curvature, below which every mode is damped: the root test, by bisection.

    Args:
      mu, b: of the rule.
      highest: where the search ends.

    Returns:
      The end of the interval, 0 for a rule that damps nothing.

    >>> round(stability_interval((), (1.0,)), 4)  # gradient descent
    2.0
    """
    return _interval(lambda q: growth(mu, b, q), highest)


def runge_kutta_growth(tableau: "diffrax.ButcherTableau", q: ArrayLike) -> np.ndarray | np.floating:
    r"""By how much an update of a Runge-Kutta method multiplies a mode of curvature q / lr: below 1 it is damped.

    .. math:: |P(-q)|, \qquad P(z) = 1 + z\, b^\top (I - z A)^{-1} \mathbf{1}

    with the stability polynomial P.

    Args:
      tableau: explicit.
      q: learning rate times curvature, real or complex, any shape.

    Returns:
      The factor, in the shape of q.

    >>> import diffrax
    >>> float(runge_kutta_growth(diffrax.Heun.tableau, 1.0))  # 1 - q + q^2 / 2
    0.5
    """
    z, stages = -np.asarray(q), []
    for row in (np.zeros(0), *tableau.a_lower):
        stages.append(1 + z * sum(c * k for c, k in zip(row, stages, strict=True)))
    return np.abs(1 + z * sum(b * k for b, k in zip(tableau.b_sol, stages, strict=True)))


def runge_kutta_interval(tableau: "diffrax.ButcherTableau", highest: float = 200.0) -> float:
    """The largest q, learning rate times curvature, below which a Runge-Kutta method damps every mode, by bisection.

    Args:
      tableau: explicit.
      highest: where the search ends.

    Returns:
      The end of the interval.

    >>> import diffrax
    >>> round(runge_kutta_interval(diffrax.Bosh3.tableau), 4)
    2.5127
    """
    return _interval(lambda q: runge_kutta_growth(tableau, q), highest)


def _interval(grown: Callable, highest: float) -> float:
    q = np.geomspace(1e-3, highest, 4000)
    unstable = grown(q) > 1 + 1e-12
    if not unstable.any():
        return highest
    first = int(np.argmax(unstable))
    if first == 0:
        return 0.0
    low, high = q[first - 1], q[first]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if grown(middle) > 1 + 1e-12 else (middle, high)
    return float(low)


def noise_energy(mu: Coefficients, b: Coefficients, num_steps: int = 10_000) -> float:
    r"""By how much a rule multiplies the variance of white noise in the gradient: sum_k h_k^2 of its impulse response h.

    Args:
      mu, b: of the rule, zero-stable.
      num_steps: of the impulse response, at least 1.

    >>> noise_energy((), (1.5, -0.5))
    2.5
    """
    past, energy = np.zeros(len(mu)), 0.0
    for k in range(num_steps):
        response = np.dot(mu, past) + (b[k] if k < len(b) else 0.0)
        past = np.concatenate([[response], past[:-1]]) if len(past) else past
        energy += response**2
    return float(energy)
