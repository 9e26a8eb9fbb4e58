r"""Runge-Kutta methods: several gradients an update, all on one minibatch.

Each is data, an explicit `diffrax.ButcherTableau`; one transformation takes any of them, `joint_runge_kutta` any optax
transformation as the field. `order_conditions` and `stability` work out what a tableau is worth.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from gfm_jax.checks import check_not_negative
from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.optimizers.whole_gradient import ask

if TYPE_CHECKING:
    import diffrax  # where it is run it is imported on first use: it takes half a second

__all__ = [
    "ScaleByRungeKuttaState",
    "check_explicit",
    "check_stages",
    "explicit_runge_kutta",
    "heun",
    "midpoint",
    "num_gradients",
    "ralston",
    "rk4",
    "scale_by_runge_kutta",
    "stage_gradients",
]


class ScaleByRungeKuttaState(NamedTuple):
    """Updates taken."""

    count: Int[Array, ""]


def scale_by_runge_kutta(
    tableau: "diffrax.ButcherTableau", learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Directions by a Runge-Kutta method.

    .. math:: k_1 = g, \qquad k_i = \nabla L\Big(w - lr \sum_{j<i} a_{ij} k_j\Big), \qquad d = \sum_i b_i k_i

    The gradient given is the first stage. `update(grads, state, params, *, grad_fn)` asks for the others: `grad_fn(params)` is
    the gradient of the loss on the minibatch that `grads` came from. Last stages of weight b = 0 are not asked for.

    Args:
      tableau: explicit, such as `diffrax.Tsit5.tableau`; those that diffrax lacks are in `gfm_jax.optimizers.tableaus`.
      learning_rate: the one that follows, a number, not negative, or a schedule; it says how far the stages lie.

    Returns:
      A transformation, to be chained with `optax.scale_by_learning_rate` of the same rate; first in its chain, since its
      stages are plain gradients. Inside `optax.masked`, `optax.partition` and `optax.flatten` hand over
      `grad_fn=WholeGradient(grad_fn, params)`.

    Raises:
      ValueError: for an implicit tableau or a negative rate; in `update` without `grad_fn` or `params`.

    >>> import diffrax
    >>> transform, w = scale_by_runge_kutta(diffrax.Midpoint.tableau, 0.5), jnp.ones(())
    >>> direction, _ = transform.update(w, transform.init(w), w, grad_fn=lambda w: w)  # of w^2 / 2
    >>> float(direction)
    0.75
    """
    check_explicit(tableau)
    check_not_negative(learning_rate=learning_rate)
    rate_at = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    num = num_gradients(tableau)
    b = tableau.b_sol[:num].tolist()

    def init(params):
        del params
        return ScaleByRungeKuttaState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        stages = stage_gradients(tableau, num, rate_at(state.count), updates, params, grad_fn)
        return _mix(b, stages), ScaleByRungeKuttaState(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformationExtraArgs(init, update)


def num_gradients(tableau: "diffrax.ButcherTableau", with_error: bool = False) -> int:
    """The gradients that an update asks for: its stages up to the last one with a weight.

    Args:
      tableau: explicit.
      with_error: whether the error estimate is asked for too, for which some methods have one more stage.

    >>> import diffrax
    >>> num_gradients(diffrax.Tsit5.tableau), num_gradients(diffrax.Tsit5.tableau, with_error=True)
    (6, 7)
    """
    weighted = (tableau.b_sol != 0) | (with_error & (tableau.b_error != 0))
    return int(weighted.nonzero()[0][-1]) + 1


def check_explicit(tableau: "diffrax.ButcherTableau") -> None:
    """Raises ValueError for what is no tableau, or an implicit one."""
    if getattr(tableau, "implicit", True):
        found = "an implicit one, with a_diagonal" if hasattr(tableau, "a_diagonal") else type(tableau).__name__
        raise ValueError(
            f"tableau: expected an explicit diffrax.ButcherTableau, such as diffrax.Tsit5.tableau, got {found}"
        )


def check_stages(num: int, params, grad_fn) -> None:
    """Raises ValueError without what the stages after the first are worked out from."""
    for name, value in (("grad_fn", grad_fn), ("params", params)):
        if value is None:
            raise ValueError(
                f"{name}: expected update(grads, state, params, grad_fn=...), with grad_fn(params) the gradient on the same "
                f"minibatch, since the method asks for {num} of them an update; got none (a wrapper made of a plain "
                "optax.GradientTransformation, such as optax.MultiSteps(...).gradient_transformation(), drops it)"
            )


def stage_gradients(tableau: "diffrax.ButcherTableau", num: int, rate, gradient, params, grad_fn) -> list:
    """The gradients of the first `num` stages, of which the first is given."""
    check_stages(num, params, grad_fn)
    stages = [gradient]
    for row in tableau.a_lower[: num - 1]:
        step = lambda w, d: (as_accumulator(w) - rate * as_accumulator(d)).astype(w.dtype)
        stages.append(ask(grad_fn, jax.tree.map(step, params, _mix(row.tolist(), stages))))
    return stages


def _mix(row, stages):
    """sum_j row_j k_j, in float32 at least."""

    def of_leaf(*leaves):
        dtype = jnp.promote_types(leaves[0].dtype, jnp.float32)
        mixed = sum(c * leaf.astype(dtype) for c, leaf in zip(row, leaves, strict=True) if c)
        return jnp.asarray(mixed, leaves[0].dtype)

    return jax.tree.map(of_leaf, *stages)


# --- recipes ----------------------------------------------------------------------------------------------------------


def explicit_runge_kutta(
    learning_rate: optax.ScalarOrSchedule, tableau: "diffrax.ButcherTableau"
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of any explicit tableau: `scale_by_runge_kutta`, then the learning rate; arguments as there.

    >>> import diffrax
    >>> optimizer, w = explicit_runge_kutta(0.1, diffrax.Tsit5.tableau), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)  # of w^2 / 2
    >>> round(float(w + updates), 5)  # exp(-.1)
    0.90484
    """
    return optax.chain(scale_by_runge_kutta(tableau, learning_rate), optax.scale_by_learning_rate(learning_rate))


def heun(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Heun's method: the mean of the gradient here and a step ahead; order 2, two gradients.

    Args:
      learning_rate: a number, not negative, or a schedule.

    >>> optimizer, w = heun(1.0), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)
    >>> round(float(updates), 4)  # of w^2 / 2
    -0.5
    """
    import diffrax

    return explicit_runge_kutta(learning_rate, diffrax.Heun.tableau)


def midpoint(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """The midpoint rule: the gradient half a step ahead; order 2, two gradients.

    Args:
      learning_rate: a number, not negative, or a schedule.

    >>> optimizer, w = midpoint(1.0), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)
    >>> round(float(updates), 4)  # of w^2 / 2
    -0.5
    """
    import diffrax

    return explicit_runge_kutta(learning_rate, diffrax.Midpoint.tableau)


def ralston(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Ralston's method, of the least error bound among two stages; order 2, two gradients.

    Args:
      learning_rate: a number, not negative, or a schedule.

    >>> optimizer, w = ralston(1.0), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)
    >>> round(float(updates), 4)  # of w^2 / 2
    -0.5
    """
    import diffrax

    return explicit_runge_kutta(learning_rate, diffrax.Ralston.tableau)


def rk4(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """The classical Runge-Kutta method; order 4, four gradients.

    Args:
      learning_rate: a number, not negative, or a schedule.

    >>> optimizer, w = rk4(1.0), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)
    >>> round(float(updates), 4)  # of w^2 / 2
    -0.625
    """
    from gfm_jax.optimizers.tableaus import RK4

    return explicit_runge_kutta(learning_rate, RK4)
