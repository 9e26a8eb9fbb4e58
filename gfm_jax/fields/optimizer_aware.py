"""The learned field on coordinates: it chooses among directions that the observed prefix offers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Context, Horizon

__all__ = ["Coefficients", "FieldParams", "Move", "features", "init_field", "mix", "move", "rows"]

BOUND = 8.0  # standardised features are cut off here: what was never seen in training must not run away


class Move(NamedTuple):
    """A move from one moment to another, as the field sees it, of any number of coordinates.

    Attributes:
      context: of the coordinates; `tensor` and `run` either have a row for each of them (a sample of coordinates), or
        are those of one whole run.
      now, s, t: the last observed moment, and the two between which the field moves.
      x_s: displacement at s since `now`, in units of the context's scale.
    """

    context: Context
    now: Horizon
    s: Horizon
    t: Horizon
    x_s: Float[Array, "*n"]


class FieldParams(NamedTuple):
    """Parameters of the network, and the standardisation of its features."""

    network: PyTree
    shift: Float[Array, " features"]
    spread: Float[Array, " features"]


class Coefficients(nn.Module):
    """Features to coefficients of `num_directions` directions, a residual, and the logarithm of the expected error.

    The last layer starts at zero: an untrained field stands still, which is the forecast by persistence.
    """

    num_directions: int
    widths: Sequence[int] = (96, 96)

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            x = nn.gelu(nn.Dense(width, name=f"hidden_{i}")(x))
        return nn.Dense(self.num_directions + 2, kernel_init=nn.initializers.zeros, name="output")(x)


def rows(context: Context) -> Context:
    """The context of one whole run, with the row of its tensor and of its run given to each coordinate."""
    dim = context.scale.shape[0]
    return context._replace(
        tensor=context.tensor[context.segment], run=jnp.broadcast_to(context.run, (dim, *context.run.shape))
    )


def features(head: str, step: Move) -> Float[Array, "*n features"]:
    """What a head may know: a "tensor" head the tensor, the run and the two moments; a "coordinate" head the weight too."""
    context = step.context
    num = context.tensor.shape[:-1]
    known = [context.tensor, context.run, horizon_features(step.now, step.s), horizon_features(step.s, step.t)]
    known = [jnp.broadcast_to(part, (*num, part.shape[-1])) for part in known]
    if head == "coordinate":
        known += [context.coordinate, jnp.arcsinh(step.x_s)[..., None]]
    return jnp.concatenate(known, axis=-1)


def horizon_features(now: Horizon, then: Horizon) -> Float[Array, "*n features"]:
    """How far `then` lies ahead of `now`: in steps, in the sum of learning rates, and in the rate itself."""
    steps, time = then.step / now.step, then.time / now.time
    mean_rate = (then.time - now.time) / jnp.maximum(then.step - now.step, 1)
    rates = [rate / jnp.maximum(now.learning_rate, 1e-12) for rate in (then.learning_rate, mean_rate)]
    return jnp.stack([jnp.log(steps), jnp.log(time), time - 1, *rates], axis=-1)


def mix(
    coefficients: Float[Array, "*parts outputs"], step: Move, of_weights: Callable = lambda c: c
) -> Float[Array, "*n"]:
    r"""The move that coefficients stand for, delta = c_x x_s + sum_k c_k d_k, in units of the context's scale.

    Args:
      coefficients: of the displacement at s and of the directions; what comes after them is not looked at.
      step: the move; its context may lack the last directions, as if they were zero.
      of_weights: from one coefficient to that of every weight. Direction by direction: all of them at once would be as
        large as the directions themselves.
    """
    directions = jnp.moveaxis(step.context.directions, -1, 0)
    sides = zip([step.x_s, *directions], jnp.moveaxis(coefficients, -1, 0), strict=False)
    return sum(of_weights(coefficient) * direction for direction, coefficient in sides)


def move(head: str, widths: Sequence[int], params: FieldParams, step: Move) -> tuple[Array, Array]:
    """The field's move of every coordinate, and the logarithm of its expected error, in units of the context's scale.

    A "coordinate" head has coefficients of its own for every weight, and a residual; a "tensor" head shares them over
    each tensor, so that its cost hardly grows with the network.
    """
    context = step.context
    whole_run = context.tensor.shape[:-1] != context.scale.shape
    if head == "coordinate" and whole_run:
        step = step._replace(context=rows(context))
    known = jnp.clip((features(head, step) - params.shift) / params.spread, -BOUND, BOUND)
    num_outputs = params.network["params"]["output"]["bias"].shape[-1]
    coefficients = Coefficients(num_outputs - 2, widths).apply(params.network, known)
    *_, residual, log_error = jnp.moveaxis(coefficients, -1, 0)
    if head == "coordinate":
        return mix(coefficients, step) + residual, log_error
    of_weights = (lambda c: c[context.segment]) if whole_run else lambda c: c
    return mix(coefficients, step, of_weights), of_weights(log_error)


def init_field(key: Array, head: str, widths: Sequence[int], step: Move) -> FieldParams:
    """An untrained field, its features standardised by those of a sample of moves."""
    known = features(head, step)
    network = Coefficients(step.context.directions.shape[-1] + 1, widths)
    spread = known.std(0)
    return FieldParams(network.init(key, known[:1]), known.mean(0), jnp.where(spread > 1e-3, spread, 1.0))
