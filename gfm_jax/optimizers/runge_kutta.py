r"""Runge-Kutta methods: several gradients an update, all on one minibatch.

Each is data, a `Tableau`; one transformation takes any of them, another one any optax transformation as the field.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from gfm_jax.optimizers.rate import check_not_negative, rate_at
from gfm_jax.optimizers.whole_gradient import ask
from gfm_jax.optimizers.wide import wide

__all__ = [
    "EXTRAGRADIENT",
    "HEUN",
    "MIDPOINT",
    "RALSTON",
    "RK4",
    "TABLEAUS",
    "ScaleByRungeKuttaState",
    "Tableau",
    "check_stages",
    "explicit_runge_kutta",
    "heun",
    "midpoint",
    "ralston",
    "rk4",
    "scale_by_runge_kutta",
    "stage_gradients",
]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: k_i = g(w - lr sum_j a_ij k_j), w_+ = w - lr sum_i b_i k_i.

    Attributes:
      a: a row for each stage after the first, of the gradients before it.
      b: of the gradients of all stages.
      order: of the distance to the gradient flow, in the learning rate.
      stability: the largest learning rate times curvature that is damped.
      b_low: of the rule of a lower order in the same stages, whose distance to b estimates the error; None for none.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    stability: float
    b_low: tuple[float, ...] | None = None


HEUN = Tableau(((1.0,),), (1 / 2, 1 / 2), 2, 2.0, (1.0, 0.0))
MIDPOINT = Tableau(((1 / 2,),), (0.0, 1.0), 2, 2.0, (1.0, 0.0))
RALSTON = Tableau(((2 / 3,),), (1 / 4, 3 / 4), 2, 2.0, (1.0, 0.0))
RK4 = Tableau(((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, 2.785293563405282)
EXTRAGRADIENT = Tableau(((1.0,),), (0.0, 1.0), 1, 1.0)
TABLEAUS = {"heun": HEUN, "midpoint": MIDPOINT, "ralston": RALSTON, "rk4": RK4, "extragradient": EXTRAGRADIENT}


class ScaleByRungeKuttaState(NamedTuple):
    """Updates taken."""

    count: Int[Array, ""]


def scale_by_runge_kutta(
    tableau: Tableau, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Directions by a Runge-Kutta method.

    .. math:: k_1 = g, \qquad k_i = \nabla L\Big(w - lr \sum_{j<i} a_{ij} k_j\Big), \qquad d = \sum_i b_i k_i

    The gradient given is the first stage. `update(grads, state, params, *, grad_fn)` asks for the others: `grad_fn(params)` is
    the gradient of the loss on the minibatch that `grads` came from.

    Args:
      tableau: the method.
      learning_rate: the one that follows, which says how far the stages lie.

    Returns:
      A transformation, to be chained with `optax.scale_by_learning_rate` of the same rate; first in its chain, since its
      stages are plain gradients. Inside `optax.masked`, `optax.partition` and `optax.flatten` hand over
      `grad_fn=WholeGradient(grad_fn, params)`.

    Raises:
      ValueError: for a negative rate; in `update` without `grad_fn` or `params`.
    """
    check_not_negative(learning_rate=learning_rate)

    def init(params):
        del params
        return ScaleByRungeKuttaState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        stages = stage_gradients(tableau, rate_at(learning_rate, state.count), updates, params, grad_fn)
        return _mix(tableau.b, stages), ScaleByRungeKuttaState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def check_stages(tableau: Tableau, params, grad_fn) -> None:
    """Raises ValueError without what the stages after the first are worked out from."""
    for name, value in (("grad_fn", grad_fn), ("params", params)):
        if value is None:
            raise ValueError(
                f"{name}: expected update(grads, state, params, grad_fn=...), with grad_fn(params) the gradient on the same "
                f"minibatch, since the method asks for {len(tableau.b)} of them an update; got none (a wrapper made of a plain "
                "optax.GradientTransformation, such as optax.MultiSteps(...).gradient_transformation(), drops it)"
            )


def stage_gradients(tableau: Tableau, rate, gradient, params, grad_fn) -> list:
    """The gradients of all stages, of which the first is given."""
    check_stages(tableau, params, grad_fn)
    stages = [gradient]
    for row in tableau.a:
        step = lambda w, d: (wide(w) - rate * wide(d)).astype(w.dtype)
        stages.append(ask(grad_fn, jax.tree.map(step, params, _mix(row, stages))))
    return stages


def _mix(row, stages):
    """sum_j row_j k_j, in float32 at least."""

    def of_leaf(*leaves):
        dtype = jnp.promote_types(leaves[0].dtype, jnp.float32)
        return sum(c * leaf.astype(dtype) for c, leaf in zip(row, leaves, strict=True) if c).astype(leaves[0].dtype)

    return jax.tree.map(of_leaf, *stages)


# --- recipes ----------------------------------------------------------------------------------------------------------


def explicit_runge_kutta(
    learning_rate: optax.ScalarOrSchedule, tableau: Tableau
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of any tableau: `scale_by_runge_kutta`, then the learning rate; arguments as there."""
    return optax.chain(scale_by_runge_kutta(tableau, learning_rate), optax.scale_by_learning_rate(learning_rate))


def heun(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Heun's method: the mean of the gradient here and a step ahead; order 2, two gradients."""
    return explicit_runge_kutta(learning_rate, HEUN)


def midpoint(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """The midpoint rule: the gradient half a step ahead; order 2, two gradients."""
    return explicit_runge_kutta(learning_rate, MIDPOINT)


def ralston(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Ralston's method, of the least error bound among two stages; order 2, two gradients."""
    return explicit_runge_kutta(learning_rate, RALSTON)


def rk4(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """The classical Runge-Kutta method; order 4, four gradients."""
    return explicit_runge_kutta(learning_rate, RK4)
