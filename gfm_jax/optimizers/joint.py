"""Any optimizer as a field on weights AND state, integrated by a Runge-Kutta method."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array

from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.optimizers.runge_kutta import check_explicit, check_stages, num_gradients
from gfm_jax.optimizers.whole_gradient import ask

if TYPE_CHECKING:
    import diffrax

__all__ = ["joint_runge_kutta"]


def joint_runge_kutta(
    transform: optax.GradientTransformation,
    tableau: "diffrax.ButcherTableau | None" = None,
    step: float | Array = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the updates of an optimizer as the velocity of its weights and its state, and follows it with a higher order.

    .. math:: \dot w = \mathrm{update}(g, s, w), \qquad \dot s = s_+(g, s, w) - s

    in units of one of its own updates, of which Euler's rule takes one and gives the optimizer back. So Adam by Heun's method
    is `joint_runge_kutta(optax.adam(1e-3))`.

    Args:
      transform: any optax transformation, learning rate and all.
      tableau: of an explicit method, such as `diffrax.Bosh3.tableau`; by default that of Heun's.
      step: how far an update goes, in updates of `transform`, above 0; the field stays what it is.

    Returns:
      A transformation with `transform`'s state, whose `update(grads, state, params, *, grad_fn)` asks for gradients on the
      same minibatch. Counters in the state stay the integers that schedules look up, and count the updates that are over at a
      stage; where `step` is not 1 they pass as time, as floating-point numbers. Flags and keys are what they would be after
      the first stage.

    Raises:
      ValueError: for an implicit tableau or a step that is not positive; in `update` without `grad_fn` or `params`.

    >>> optimizer, w = joint_runge_kutta(optax.sgd(0.1)), jnp.ones(())
    >>> updates, _ = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: w)  # of w^2 / 2
    >>> round(float(w + updates), 5)  # 1 - .1 + .1^2 / 2
    0.905
    """
    import diffrax  # on first use: it takes half a second

    tableau = diffrax.Heun.tableau if tableau is None else tableau
    check_explicit(tableau)
    if not isinstance(step, Tracer) and not step > 0:
        raise ValueError(f"step: expected a positive number, got {step}")
    in_its_steps = not isinstance(step, Tracer) and step == 1
    num = num_gradients(tableau)
    rows = [row.tolist() for row in (*tableau.a_lower[: num - 1], tableau.b_sol[:num])]
    transform = optax.with_extra_args_support(transform)

    def init(params):
        state = transform.init(params)
        return state if in_its_steps else jax.tree.map(_as_time, state)

    def update(updates, state, params=None, *, grad_fn: Any = None, **extra_args):
        check_stages(num, params, grad_fn)
        start = (params, state)
        at, velocities = start, []
        for row in rows:
            gradient = ask(grad_fn, at[0]) if velocities else updates
            moved, new_state = transform.update(gradient, at[1], at[0], **extra_args)
            velocities.append((moved, jax.tree.map(_change, new_state, at[1])))
            at = jax.tree.map(lambda x, *d, row=row: _after(x, [step * c for c in row], d), start, *velocities)
        moved = jax.tree.map(lambda new, old: new - old, at[0], params)
        return moved, at[1]

    return optax.GradientTransformationExtraArgs(init, update)


def _is(leaf, kind):
    return jnp.issubdtype(jnp.asarray(leaf).dtype if not hasattr(leaf, "dtype") else leaf.dtype, kind)


def _as_time(leaf):
    return leaf.astype(jnp.result_type(float)) if _is(leaf, jnp.integer) else leaf


def _change(new, old):
    return new - old if _is(new, jnp.number) else new


def _after(x, row, d):
    """x + sum_i row_i d_i, of counters what is whole of it; of flags and keys what they became first."""
    if not _is(x, jnp.number):
        return d[0]
    far = as_accumulator if _is(x, jnp.floating) else lambda leaf: leaf
    moved = far(x) + sum(c * far(d_i) for c, d_i in zip(row, d, strict=True))
    return (jnp.floor(moved + 1e-3) if _is(x, jnp.integer) else moved).astype(x.dtype)
