"""The learned field on coordinates: it chooses among directions that the observed prefix offers."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Context, Horizon

__all__ = ["Coefficients", "FieldParams", "Move", "check_widths", "features", "init_field", "mix", "move"]

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
    """Features to coefficients of the displacement and of `num_directions - 1` directions, a residual, and the logarithm of
    the expected error.

    What the weights of a tensor share goes through the first layer once a tensor: of a whole run that saves a fifth of the
    products. The last layer starts at zero: an untrained field stands still, which is the forecast by persistence. It is
    called with features that are shared, [*parts, shared], with those of each weight, [*n, own], and with `of_weights`,
    which gives each weight the row of its part; by default there are as many parts as weights.

    Attributes:
      num_directions: one more than the context has.
      widths: of the hidden layers, at least one.
    """

    num_directions: int
    widths: Sequence[int] = (96, 96)

    @nn.compact
    def __call__(self, shared, own, of_weights: Callable = lambda x: x):
        first, *rest = self.widths
        x = nn.gelu(_DenseOfTwo(first, name="hidden_0")(shared, own, of_weights))
        for i, width in enumerate(rest, 1):
            x = nn.gelu(nn.Dense(width, name=f"hidden_{i}")(x))
        return nn.Dense(self.num_directions + 2, kernel_init=nn.initializers.zeros, name="output")(x)


class _DenseOfTwo(nn.Module):
    """A dense layer on shared features and own ones, W (x_shared, x_own) + b."""

    width: int

    @nn.compact
    def __call__(self, shared, own, of_weights):
        num_shared, num = shared.shape[-1], shared.shape[-1] + own.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (num, self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        shared = shared @ kernel[:num_shared] + jnp.expand_dims(bias, tuple(range(shared.ndim - 1)))
        return of_weights(shared) + own @ kernel[num_shared:]


def features(head: str, step: Move) -> tuple[Float[Array, "*parts shared"], Float[Array, "*n own"]]:
    """What a head may know: of the tensor, the run and the two moments, and, a "coordinate" head, of the weight too."""
    context = step.context
    num = context.tensor.shape[:-1]
    shared = [context.tensor, context.run, horizon_features(step.now, step.s), horizon_features(step.s, step.t)]
    shared = jnp.concatenate([jnp.broadcast_to(part, (*num, part.shape[-1])) for part in shared], axis=-1)
    if head == "tensor":
        return shared, jnp.zeros((*num, 0), shared.dtype)
    return shared, jnp.concatenate([context.coordinate, jnp.arcsinh(step.x_s)[..., None]], axis=-1)


def horizon_features(now: Horizon, then: Horizon) -> Float[Array, "*n features"]:
    """How far `then` lies ahead of `now`: in steps, in the sum of learning rates, and in the rate itself.

    Ratios to a time or a rate of 0 are cut off: at 1e6 and 1e3.
    """
    steps, time = then.step / now.step, _ratio(then.time, now.time, 1e6)
    mean_rate = (then.time - now.time) / jnp.maximum(then.step - now.step, 1)
    rates = [_ratio(rate, now.learning_rate, 1e3) for rate in (then.learning_rate, mean_rate)]
    return jnp.stack([jnp.log(steps), jnp.log(jnp.maximum(time, 1e-6)), time - 1, *rates], axis=-1)


def _ratio(a, b, most):
    """a / b, at most `most`; 1 where both are 0."""
    floored = jnp.maximum(b, a / most)
    return jnp.where(floored > 0, a / jnp.where(floored > 0, floored, 1), 1)


def mix(
    coefficients: Float[Array, "*parts outputs"], step: Move, of_weights: Callable | None = None
) -> Float[Array, "*n"]:
    r"""The move that coefficients stand for, delta = c_x x_s + sum_k c_k d_k, in units of the context's scale.

    Args:
      coefficients: of the displacement at s and of the directions; what comes after them is not looked at.
      step: the move; its context may lack the last directions, as if they were zero.
      of_weights: from one coefficient a tensor to that of every weight, direction by direction: coefficients of all weights
        at once would be as large as the directions themselves. None where each weight has coefficients of its own.
    """
    directions = step.context.directions
    if of_weights is None:
        c_x, c = coefficients[..., 0], coefficients[..., 1 : 1 + directions.shape[-1]]
        return c_x * step.x_s + jnp.sum(c * directions, axis=-1)
    sides = zip([step.x_s, *jnp.moveaxis(directions, -1, 0)], jnp.moveaxis(coefficients, -1, 0), strict=False)
    return functools.reduce(jnp.add, (of_weights(coefficient) * direction for direction, coefficient in sides))


def move(head: str, widths: Sequence[int], params: FieldParams, step: Move) -> tuple[Array, Array]:
    """The field's move of every coordinate, and the logarithm of its expected error, in units of the context's scale.

    A "coordinate" head has coefficients of its own for every weight, and a residual; a "tensor" head shares them over
    each tensor, so that its cost hardly grows with the network.
    """
    context = step.context
    whole_run = context.tensor.shape[:-1] != context.scale.shape
    of_weights = (lambda part: part[context.segment]) if whole_run else lambda part: part
    shared, own = features(head, step)
    num_shared = shared.shape[-1]
    if num_shared + own.shape[-1] != len(params.shift):
        raise ValueError(
            f"params: expected those of a field of {num_shared + own.shape[-1]} features, as a {head!r} head has them, "
            f"got {len(params.shift)}: the field was fitted with another head"
        )
    shared = _standardised(shared, params.shift[:num_shared], params.spread[:num_shared])
    own = _standardised(own, params.shift[num_shared:], params.spread[num_shared:])
    num_outputs = params.network["params"]["output"]["bias"].shape[-1]
    check_widths(widths, params)
    network = Coefficients(num_outputs - 2, widths)
    if head == "coordinate":
        coefficients = network.apply(params.network, shared, own, of_weights)
        return mix(coefficients, step) + coefficients[..., -2], coefficients[..., -1]
    coefficients = network.apply(params.network, shared, own)
    return mix(coefficients, step, of_weights if whole_run else None), of_weights(coefficients[..., -1])


def check_widths(widths: Sequence[int], params: FieldParams) -> None:
    """Raises ValueError for parameters of a field with other hidden layers than these."""
    layers = params.network["params"]
    found = tuple(layers[f"hidden_{i}"]["bias"].shape[-1] for i in range(len(layers) - 1))
    if found != tuple(widths):
        raise ValueError(f"params: expected a field of widths {tuple(widths)}, got one that was fitted with {found}")


def _standardised(known, shift, spread):
    lead = (None,) * (known.ndim - 1)
    return jnp.clip((known - shift[lead]) / spread[lead], -BOUND, BOUND)


def init_field(key: Array, head: str, widths: Sequence[int], step: Move) -> FieldParams:
    """An untrained field, its features standardised by those of a sample of moves."""
    shared, own = features(head, step)
    network = Coefficients(step.context.directions.shape[-1] + 1, widths)
    known = jnp.concatenate([shared, own], axis=-1)
    spread = known.std(0)
    return FieldParams(network.init(key, shared[:1], own[:1]), known.mean(0), jnp.where(spread > 1e-3, spread, 1.0))
