"""Step-size control by an embedded pair: the learning rate follows the error, not a schedule."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.optimizers.order_conditions import error_order
from gfm_jax.optimizers.runge_kutta import check_explicit, num_gradients, stage_gradients

if TYPE_CHECKING:
    import diffrax

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
    first_rate: float,
    relative: float = 1e-3,
    absolute: float = 1e-5,
    tableau: "diffrax.ButcherTableau | None" = None,
) -> optax.GradientTransformationExtraArgs:
    r"""A Runge-Kutta method that chooses its own learning rate.

    .. math:: e = \Big\| \frac{lr \sum_i \beta_i k_i}{\text{absolute} + \text{relative} |w|} \Big\|_{rms}, \qquad
       lr_+ = lr \cdot \mathrm{clip}\big(0.9\, e^{-1/(\hat p + 1)}, 0.2, 5\big)

    with `b_error` as beta. An update with e > 1 moves nothing, and the next tries with a smaller rate. The error is that of the
    embedded lower rule, of order \hat p; the weights follow the higher one. On minibatches the error is what is left of it on
    one of them.

    Args:
      first_rate: learning rate of the first update, above 0.
      relative, absolute: tolerated error of one update, of each weight.
      tableau: of an explicit pair, such as `diffrax.Bosh3.tableau`; by default that of Heun's and Euler's methods. An update
        asks for all stages: the last one is not used again as the first of the next update, which has another minibatch.

    Returns:
      A transformation whose `update(grads, state, params, *, grad_fn)` is as that of `scale_by_runge_kutta`.

    Raises:
      ValueError: for a first rate or tolerances that are not positive, or a tableau that is implicit or without a lower rule.

    >>> import diffrax
    >>> optimizer, w = embedded_runge_kutta(0.1, tableau=diffrax.Bosh3.tableau), jnp.ones(())
    >>> updates, state = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)  # of w^2 / 2
    >>> bool(state.learning_rate > 0.1)  # the error was far below the tolerance
    True
    """
    import diffrax  # on first use: it takes half a second

    tableau = diffrax.Heun.tableau if tableau is None else tableau
    check_explicit(tableau)
    for name, value in (("first_rate", first_rate), ("relative", relative), ("absolute", absolute)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if not tableau.b_error.any():
        raise ValueError("tableau: expected one with an embedded rule of a lower order, got a b_error of zeros")
    num, order = num_gradients(tableau, with_error=True), error_order(tableau)
    b, b_error = tableau.b_sol[:num].tolist(), tableau.b_error[:num].tolist()

    def init(params):
        del params
        zero = jnp.zeros([], jnp.int32)
        return EmbeddedState(jnp.asarray(first_rate, jnp.result_type(float)), jnp.zeros([]), zero, zero, jnp.zeros([]))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        rate = state.learning_rate
        stages = stage_gradients(tableau, num, rate, updates, params, grad_fn)
        mix = lambda row: jax.tree.map(
            lambda *k: sum(c * as_accumulator(leaf) for c, leaf in zip(row, k, strict=True)), *stages
        )
        off = jax.tree.map(
            lambda d, w: rate * d / (absolute + relative * jnp.abs(as_accumulator(w))), mix(b_error), params
        )
        error = optax.tree.norm(off) / optax.tree.size(off) ** 0.5
        accepted = error <= 1
        change = jnp.clip(SAFETY * jnp.maximum(error, 1e-12) ** (-1 / order), SMALLEST, LARGEST)
        moved = jax.tree.map(lambda d, g: jnp.where(accepted, -rate * d, 0).astype(g.dtype), mix(b), updates)
        new_state = EmbeddedState(
            (rate * jnp.where(jnp.isfinite(change), change, SMALLEST)).astype(rate.dtype),
            error.astype(state.error.dtype),
            state.accepted + accepted,
            state.refused + ~accepted,
            state.time + jnp.where(accepted, rate, 0),
        )
        return moved, new_state

    return optax.GradientTransformationExtraArgs(init, update)
