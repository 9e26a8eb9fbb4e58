"""Who is compared: every method by its name, what it costs, and what it declares."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import optax

from gfm_jax.optimizers import (
    chebyshev,
    chebyshev_interval,
    explicit_runge_kutta,
    joint_runge_kutta,
    linear_multistep,
    multistep,
)
from gfm_jax.optimizers.order_conditions import runge_kutta_order
from gfm_jax.optimizers.runge_kutta import num_gradients
from gfm_jax.optimizers.stability import runge_kutta_interval
from gfm_jax.optimizers.tableaus import EXTRAGRADIENT, RK4

__all__ = ["NUM_TRAIN", "ON_THE_FLOW", "TRAINED", "Method"]

NUM_TRAIN = 1152  # digits that are trained on; the test set is the package's own, and the rest is nobody's here


class Method(NamedTuple):
    """A function of the learning rate, the gradients that one update asks for, and what is declared of it (None: nothing).

    Attributes:
      make: `(learning_rate) -> optax transformation`.
      gradients: an update.
      order: of its distance to the gradient flow.
      stability: the largest learning rate of an update times curvature.
      noise: variance of its direction over that of white noise in the gradient.
      coefficients: (mu, b) of a linear multistep rule.
      ours: whether this library brings it.
    """

    make: Callable
    gradients: int = 1
    order: int | None = None
    stability: float | None = None
    noise: float | None = None
    coefficients: tuple | None = None
    ours: bool = True


def _multistep(scheme):
    make = functools.partial(linear_multistep, scheme=scheme)
    return Method(make, 1, scheme.order, scheme.stability, scheme.noise, (scheme.mu, scheme.b))


def _runge_kutta(tableau):
    make = functools.partial(explicit_runge_kutta, tableau=tableau)
    return Method(make, num_gradients(tableau), runge_kutta_order(tableau), runge_kutta_interval(tableau))


STAGES = 5  # of Chebyshev's method
SGD = Method(optax.sgd, 1, 1, 2.0, 1.0, ((), (1.0,)), ours=False)
ON_THE_FLOW = {"sgd": SGD}
ON_THE_FLOW |= {name: _multistep(scheme) for name, scheme in multistep.SCHEMES.items() if name != "adams_bashforth_1"}
ON_THE_FLOW |= {s.__name__.lower(): _runge_kutta(s.tableau) for s in (diffrax.Heun, diffrax.Midpoint, diffrax.Ralston)}
ON_THE_FLOW |= {"rk4": _runge_kutta(RK4), "extragradient": _runge_kutta(EXTRAGRADIENT)}
ON_THE_FLOW["chebyshev"] = Method(
    functools.partial(chebyshev, num_stages=STAGES), 1, 1, chebyshev_interval(STAGES, damping=0.05)
)

TRAINED = {
    "sgd": SGD,
    "heavy_ball": Method(functools.partial(optax.sgd, momentum=0.9), ours=False),
    "nesterov": Method(functools.partial(optax.sgd, momentum=0.9, nesterov=True), ours=False),
    "adam": Method(optax.adam, ours=False),
    "schedule_free": Method(functools.partial(optax.contrib.schedule_free_sgd, weight_decay=0.0), ours=False),
}
TRAINED |= {
    name: method for name, method in ON_THE_FLOW.items() if name not in ("sgd", "midpoint", "ralston", "extragradient")
}
TRAINED["adam_by_heun"] = Method(lambda learning_rate: joint_runge_kutta(optax.adam(learning_rate)), 2)
