r"""Linear multistep methods: a higher order along the gradient flow, at one gradient an update.

Each is data, a `Multistep`, and one transformation takes any of them; `stability` works out what a table declares.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from gfm_jax.checks import check_not_negative
from gfm_jax.optimizers.accumulators import as_accumulator, zero_accumulators
from gfm_jax.optimizers.stability import parasitic_roots

__all__ = [
    "ADAMS_BASHFORTH",
    "EXTRAPOLATED_BDF2",
    "SCHEMES",
    "TAYLOR",
    "Multistep",
    "ScaleByLinearMultistepState",
    "adams_bashforth",
    "extrapolated_bdf2",
    "linear_multistep",
    "scale_by_linear_multistep",
    "taylor_sgd",
]


class Multistep(NamedTuple):
    """A rule d_k = sum_j mu_j d_{k-j} + sum_j b_j g_{k-j}, and what it declares of itself.

    Attributes:
      mu: of past directions, newest first.
      b: of the present gradient and of past ones, newest first.
      order: of the distance to the gradient flow, in the learning rate.
      error_constant: of w^(order + 1) lr^(order + 1) in what one update leaves out, over the sum of b.
      stability: the largest learning rate times curvature that is damped.
      noise: variance of the direction over that of white noise in the gradient.
      start: for the first updates, of the gradients so far; by default the past is what the first gradient would have made.
    """

    mu: tuple[float, ...]
    b: tuple[float, ...]
    order: int
    error_constant: float
    stability: float
    noise: float
    start: tuple[tuple[float, ...], ...] = ()


# A start of order 3: w_1 by Euler's rule, w_2 by the midpoint rule over 2 lr, w_3 by Heun's third-order rule over 3 lr.
HEUN_START = ((1.0,), (2.0, -1.0), (9 / 4, -2.0, 3 / 4))

ADAMS_BASHFORTH = {
    1: Multistep((), (1.0,), 1, 1 / 2, 2.0, 1.0),
    2: Multistep((), (3 / 2, -1 / 2), 2, 5 / 12, 1.0, 5 / 2),
    3: Multistep((), (23 / 12, -16 / 12, 5 / 12), 3, 3 / 8, 6 / 11, 810 / 144, HEUN_START),
}
TAYLOR = {
    "taylor4": Multistep((1 / 2, -1 / 2), (1.0,), 2, 2 / 3, 1.0, 3 / 2),
    "taylor4_opt": Multistep((0.0, -1 / 3), (4 / 3,), 2, 5 / 12, 2.0, 2.0),
    "taylor5_opt": Multistep((3 / 5, -1 / 5, -1 / 5), (4 / 5,), 2, 7 / 6, 4.0, 1.0),
}
EXTRAPOLATED_BDF2 = Multistep((1 / 3,), (4 / 3, -2 / 3), 2, 2 / 3, 4 / 3, 11 / 6)
SCHEMES = {f"adams_bashforth_{order}": scheme for order, scheme in ADAMS_BASHFORTH.items()} | TAYLOR
SCHEMES |= {"extrapolated_bdf2": EXTRAPOLATED_BDF2}


class ScaleByLinearMultistepState(NamedTuple):
    """Updates taken, and the last directions and gradients, newest first, in float32 at least."""

    count: Int[Array, ""]
    directions: tuple[PyTree, ...]
    gradients: tuple[PyTree, ...]


def scale_by_linear_multistep(
    mu: Sequence[float], b: Sequence[float], start: Sequence[Sequence[float]] = ()
) -> optax.GradientTransformation:
    r"""Directions by a linear multistep rule.

    .. math:: d_k = \sum_{j \ge 1} \mu_j d_{k-j} + \sum_{j \ge 0} b_j g_{k-j}

    It goes before the learning rate, so that its order survives a schedule.

    Args:
      mu: of past directions, newest first; empty for none.
      b: of the present gradient and of past ones, newest first; consistent, sum b = 1 - sum mu.
      start: a row for each of the first updates, of the gradients so far, newest first and with sum 1. By default the first
        update is Euler's, as if the gradient had always been what it is at first; that is enough for order 2.

    Returns:
      A transformation, to be chained with `optax.scale_by_learning_rate`.

    Raises:
      ValueError: for coefficients that are not consistent, or not strictly zero-stable (the message names the root), or rows
        of `start` that reach further back than there are gradients.

    Gradient descent as a numerical method, arXiv 2409.04707.

    >>> optimizer, w = scale_by_linear_multistep((), (1.5, -0.5)), jnp.ones(())
    >>> _, state = optimizer.update(w, optimizer.init(w))
    >>> round(float(optimizer.update(0.5 * w, state)[0]), 4)
    0.25
    """
    mu, b = _check(mu, b)
    for k, row in enumerate(start):
        if abs(sum(row) - 1) > 1e-6 or not 1 <= len(row) <= min(k + 1, len(b)):
            most = min(k + 1, len(b))
            raise ValueError(
                f"start: expected rows with sum 1, row {k} of at most {most} coefficients, got {tuple(row)}"
            )
    rows = _rows(mu, b, start)

    def init(params):
        zeros = lambda num: tuple(zero_accumulators(params) for _ in range(num))
        return ScaleByLinearMultistepState(jnp.zeros([], jnp.int32), zeros(len(mu)), zeros(len(b) - 1))

    def update(updates, state, params=None):
        del params
        past = (*state.directions, jax.tree.map(as_accumulator, updates), *state.gradients)
        row = jnp.asarray(rows)[jnp.minimum(state.count, len(rows) - 1)]

        def mix(*leaves):
            return sum(row[j].astype(leaf.dtype) * leaf for j, leaf in enumerate(leaves))

        direction = jax.tree.map(mix, *past)
        new_state = ScaleByLinearMultistepState(
            jnp.asarray(optax.safe_increment(state.count)),
            (direction, *state.directions)[: len(mu)],
            past[len(mu) :][: len(b) - 1],
        )
        return jax.tree.map(lambda d, g: d.astype(g.dtype), direction, updates), new_state

    return optax.GradientTransformation(init, update)


def _check(mu, b):
    mu, b = tuple(float(c) for c in mu), tuple(float(c) for c in b)
    if not b:
        raise ValueError("b: expected a coefficient for the present gradient at least, got none")
    if abs(sum(mu) + sum(b) - 1) > 1e-6:
        raise ValueError(
            f"mu, b: expected sum b = 1 - sum mu, or steps have the wrong length; got {sum(b)} and {sum(mu)}"
        )
    roots = parasitic_roots(mu)
    worst = max(roots, key=abs, default=0.0)
    if abs(worst) > 1 - 1e-9:
        said = f"{worst.real:.6g}" if abs(worst.imag) < 1e-12 else f"{worst:.6g}"
        raise ValueError(f"mu: expected a zero-stable rule, every root inside the unit circle, got the root {said}")
    return mu, b


def _rows(mu, b, start):
    """Coefficients of (d_{k-1}, ..., g_k, g_{k-1}, ...) in the first updates and, last, in all the others.

    What lies before the first update is what its gradient would have made: d = g = g_0, which update k has at lag k.
    """
    num = max(len(mu), len(b) - 1, len(start))
    rows = np.zeros((num + 1, len(mu) + len(b)))
    for k, row in enumerate(rows):
        of_directions, of_gradients = row[: len(mu)], row[len(mu) :]
        of_directions[: min(k, len(mu))], of_gradients[: k + 1] = mu[:k], b[: k + 1]
        missing = sum(mu[k:]) + sum(b[k + 1 :])
        if k < len(b):
            of_gradients[k] += missing
        elif k <= len(mu):
            of_directions[k - 1] += missing
    for k, given in enumerate(start):
        rows[k] = 0
        rows[k, len(mu) : len(mu) + len(given)] = given
    return rows


# --- recipes ----------------------------------------------------------------------------------------------------------


def linear_multistep(learning_rate: optax.ScalarOrSchedule, scheme: Multistep) -> optax.GradientTransformation:
    """The optimizer of any table: `scale_by_linear_multistep`, then the learning rate.

    Args:
      learning_rate: a number, not negative, or a schedule.
      scheme: the rule.

    Raises:
      ValueError: for a negative rate, or as `scale_by_linear_multistep`.

    >>> optimizer, w = linear_multistep(0.1, EXTRAPOLATED_BDF2), jnp.ones(())
    >>> _, state = optimizer.update(w, optimizer.init(w))
    >>> round(float(optimizer.update(0.5 * w, state)[0]), 4)  # -.1 (1/3 + 4/3 .5 - 2/3)
    -0.0333
    """
    check_not_negative(learning_rate=learning_rate)
    scale = scale_by_linear_multistep(scheme.mu, scheme.b, scheme.start)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def adams_bashforth(learning_rate: optax.ScalarOrSchedule, order: int = 2) -> optax.GradientTransformation:
    r"""Adams and Bashforth's method: the integral of the polynomial through the last gradients.

    .. math:: w_{k+1} = w_k - lr \Big(\tfrac{3}{2} g_k - \tfrac{1}{2} g_{k-1}\Big)

    at order 2, where it is `optax.optimistic_gradient_descent(learning_rate, 1, 0.5)`; 23, -16 and 5 twelfths at order 3.

    Args:
      learning_rate: a number, not negative, or a schedule.
      order: 1 (gradient descent), 2 or 3: one gradient an update gives nothing higher a start of its order.

    >>> optimizer, w = adams_bashforth(0.1), jnp.ones(())
    >>> _, state = optimizer.update(w, optimizer.init(w))
    >>> round(float(optimizer.update(0.5 * w, state)[0]), 4)  # -.1 (3/2 .5 - 1/2)
    -0.025
    """
    return linear_multistep(learning_rate, _among("order", order, ADAMS_BASHFORTH))


def taylor_sgd(learning_rate: optax.ScalarOrSchedule, kind: str = "taylor4_opt") -> optax.GradientTransformation:
    r"""Taylor's differences of the second order, solved for the next weights.

    .. math:: u_k = \tfrac{1}{2} u_{k-1} - \tfrac{1}{2} u_{k-2} - lr\, g_k, \qquad u_k = w_{k+1} - w_k

    for "taylor4", the likely rule of the paper. "taylor4_opt" has 5/8 of its error and twice its interval of stability;
    "taylor5_opt" four times its interval and no more noise than gradient descent, at 7/4 of its error.

    Args:
      learning_rate: a number, not negative, or a schedule.
      kind: "taylor4", "taylor4_opt" or "taylor5_opt".

    Gradient descent as a numerical method, arXiv 2409.04707.

    >>> optimizer, w = taylor_sgd(0.1), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # the first update is Euler's
    -0.1
    """
    return linear_multistep(learning_rate, _among("kind", kind, TAYLOR))


def extrapolated_bdf2(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    r"""The backward difference of order 2, its gradient extrapolated from the last two.

    .. math:: u_k = \tfrac{1}{3} u_{k-1} - lr \Big(\tfrac{4}{3} g_k - \tfrac{2}{3} g_{k-1}\Big)

    Args:
      learning_rate: a number, not negative, or a schedule.

    >>> optimizer, w = extrapolated_bdf2(0.1), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w))
    >>> round(float(updates), 4)  # the first update is Euler's
    -0.1
    """
    return linear_multistep(learning_rate, EXTRAPOLATED_BDF2)


def _among(name, asked, table):
    if isinstance(asked, jax.Array):
        raise ValueError(f"{name}: expected a choice, got an array: name it in `static_args` of `inject_hyperparams`")
    if asked not in table:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, table))}, got {asked!r}")
    return table[asked]
