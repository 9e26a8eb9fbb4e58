"""Step-size control by an embedded pair: the learning rate follows the error, not a schedule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gfm_jax.optimizers.runge_kutta import HEUN, Tableau, stage_gradients
from gfm_jax.optimizers.wide import wide

__all__ = ["EmbeddedState", "embedded_runge_kutta"]

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 5.0  # of the change in the learning rate from one update to the next


class EmbeddedState(NamedTuple):
    """The learning rate of the next update, the error of the last in units of the tolerance, updates taken and refused, and the
    sum of learning rates of those taken."""

    learning_rate: Float[Array, ""]
    error: Float[Array, ""]
    accepted: Int[Array, ""]
    refused: Int[Array, ""]
    time: Float[Array, ""]


def embedded_runge_kutta(
    first_rate: float, relative: float = 1e-3, absolute: float = 1e-5, tableau: Tableau = HEUN
) -> optax.GradientTransformationExtraArgs:
    r"""A Runge-Kutta method that chooses its own learning rate.

    .. math:: e = \Big\| \frac{lr \sum_i (b_i - \hat b_i) k_i}{\text{absolute} + \text{relative} |w|} \Big\|_{rms}, \qquad
       lr_+ = lr \cdot \mathrm{clip}\big(0.9\, e^{-1/(\hat p + 1)}, 0.2, 5\big)

    An update with e > 1 moves nothing, and the next tries with a smaller rate. The error is that of the lower rule, of order
    \hat p; the weights follow the higher one. On minibatches the error is what is left of it on one of them.

    Args:
      first_rate: learning rate of the first update, above 0.
      relative, absolute: tolerated error of one update, of each weight.
      tableau: with `b_low`, of one order less.

    Returns:
      A transformation whose `update(grads, state, params, *, grad_fn)` is as that of `scale_by_runge_kutta`.

    Raises:
      ValueError: for a first rate or tolerances that are not positive, or a tableau without a lower rule.
    """
    for name, value in (("first_rate", first_rate), ("relative", relative), ("absolute", absolute)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if tableau.b_low is None:
        raise ValueError(
            "tableau: expected one with b_low, the rule of a lower order that estimates the error, got none"
        )
    difference = [high - low for high, low in zip(tableau.b, tableau.b_low, strict=True)]

    def init(params):
        del params
        zero = jnp.zeros([], jnp.int32)
        return EmbeddedState(jnp.asarray(first_rate, jnp.result_type(float)), jnp.zeros([]), zero, zero, jnp.zeros([]))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        rate = state.learning_rate
        stages = stage_gradients(tableau, rate, updates, params, grad_fn)
        mix = lambda row: jax.tree.map(lambda *k: sum(c * wide(leaf) for c, leaf in zip(row, k, strict=True)), *stages)
        off = jax.tree.map(lambda d, w: rate * d / (absolute + relative * jnp.abs(wide(w))), mix(difference), params)
        error = optax.tree.norm(off) / optax.tree.size(off) ** 0.5
        accepted = error <= 1
        change = jnp.clip(SAFETY * jnp.maximum(error, 1e-12) ** (-1 / tableau.order), SMALLEST, LARGEST)
        moved = jax.tree.map(lambda d, g: jnp.where(accepted, -rate * d, 0).astype(g.dtype), mix(tableau.b), updates)
        new_state = EmbeddedState(
            (rate * jnp.where(jnp.isfinite(change), change, SMALLEST)).astype(rate.dtype),
            error.astype(state.error.dtype),
            state.accepted + accepted,
            state.refused + ~accepted,
            state.time + jnp.where(accepted, rate, 0),
        )
        return moved, new_state

    return optax.GradientTransformationExtraArgs(init, update)
