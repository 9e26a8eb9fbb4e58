"""The learned field on coordinates: it chooses among directions that the observed prefix offers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Features, Horizon
from gfm_jax.forecasting.names import DIRECTIONS, HORIZON, OUTPUTS, named, stack

__all__ = ["Coefficients", "FieldKind", "FieldParams", "Move", "init_field", "inputs", "mix", "move", "widths_of"]

BOUND = 8.0  # standardised features are cut off here: what was never seen in training must not run away


class Move(NamedTuple):
    """A move from one moment to another, as the field sees it, of any number of coordinates.

    Attributes:
      features: of the coordinates, `stacked`; `tensor` and `run` either have a row for each of them (a sample of
        coordinates), or are those of one whole run.
      now, s, t: the last observed moment, and the two between which the field moves.
      x_s: displacement at s since `now`, in units of the features' scale.
    """

    features: Features
    now: Horizon
    s: Horizon
    t: Horizon
    x_s: Float[Array, "*n"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FieldKind:
    """What a field is.

    Attributes:
      head: "coordinate" (coefficients of its own for every weight, and a residual) or "tensor" (coefficients that a tensor
        shares, so that its cost hardly grows with the network).
      num_solver_steps: steps of Heun's method that follow a velocity to its horizon; None for a flow map.
    """

    head: Literal["coordinate", "tensor"]
    num_solver_steps: int | None = None


class FieldParams(NamedTuple):
    """Parameters of the network, the standardisation of its features, and what it is."""

    network: PyTree
    shift: Float[Array, " features"]
    spread: Float[Array, " features"]
    kind: FieldKind


class Coefficients(nn.Module):
    """Features to coefficients of the displacement and of every direction, a residual, and the logarithm of the expected
    error, by name.

    What the weights of a tensor share goes through the first layer once a tensor: of a whole run that saves a fifth of the
    products. The last layer starts at zero: an untrained field stands still, which is the forecast by persistence. It is
    called with features that are shared, [*parts, shared], with those of each weight, [*n, own], and with `of_weights`,
    which gives each weight the row of its part; by default there are as many parts as weights.

    Attributes:
      widths: of the hidden layers, at least one.
    """

    widths: Sequence[int] = (96, 96)

    @nn.compact
    def __call__(self, shared, own, of_weights: Callable = lambda x: x):
        first, *rest = self.widths
        x = nn.gelu(_DenseOfTwo(first, name="hidden_0")(shared, own, of_weights))
        for i, width in enumerate(rest, 1):
            x = nn.gelu(nn.Dense(width, name=f"hidden_{i}")(x))
        x = nn.Dense(len(OUTPUTS), kernel_init=nn.initializers.zeros, name="output")(x)
        return named(x, OUTPUTS)


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


def inputs(head: str, step: Move) -> tuple[Float[Array, "*parts shared"], Float[Array, "*n own"]]:
    """What a head may know: of the tensor, the run and the two moments, and, a "coordinate" head, of the weight too."""
    features = step.features
    tensor, run, coordinate = map(jnp.asarray, (features.tensor, features.run, features.coordinate))  # stacked
    num = tensor.shape[:-1]
    moments = (horizon_features(step.now, step.s), horizon_features(step.s, step.t))
    shared = [tensor, run, *(stack(moment, HORIZON) for moment in moments)]
    shared = jnp.concatenate([jnp.broadcast_to(part, (*num, part.shape[-1])) for part in shared], axis=-1)
    if head == "tensor":
        return shared, jnp.zeros((*num, 0), shared.dtype)
    return shared, jnp.concatenate([coordinate, jnp.arcsinh(step.x_s)[..., None]], axis=-1)


def horizon_features(now: Horizon, then: Horizon) -> dict[str, Float[Array, "*n"]]:
    """How far `then` lies ahead of `now`: in steps, in the sum of learning rates, and in the rate itself.

    Ratios to a time or a rate of 0 are cut off: at 1e6 and 1e3.
    """
    steps, time = then.step / now.step, _ratio(then.time, now.time, 1e6)
    mean_rate = (then.time - now.time) / jnp.maximum(then.step - now.step, 1)
    return {
        "log_steps": jnp.log(steps),
        "log_time": jnp.log(jnp.maximum(time, 1e-6)),
        "time": time - 1,
        "rate": _ratio(then.learning_rate, now.learning_rate, 1e3),
        "mean_rate": _ratio(mean_rate, now.learning_rate, 1e3),
    }


def _ratio(a, b, most):
    """a / b, at most `most`; 1 where both are 0."""
    floored = jnp.maximum(b, a / most)
    return jnp.where(floored > 0, a / jnp.where(floored > 0, floored, 1), 1)


def mix(
    coefficients: dict[str, Float[Array, "*parts"]], step: Move, of_weights: Callable[[Array], Array] = lambda x: x
) -> Float[Array, "*n"]:
    r"""The move that coefficients stand for, delta = c_x x_s + sum_k c_k d_k, in units of the features' scale.

    Args:
      coefficients: of the displacement at s, "x_s", and of the directions; others are not looked at.
      step: the move; directions that its features lack are as zero.
      of_weights: from one coefficient a tensor to that of every weight, direction by direction: coefficients of all weights
        at once would be as large as the directions themselves. By default each weight has coefficients of its own.
    """
    assert isinstance(step.features.directions, dict)
    sides = {"x_s": step.x_s, **step.features.directions}
    parts = (of_weights(coefficients[name]) * sides[name] for name in ("x_s", *DIRECTIONS) if name in sides)
    return functools.reduce(jnp.add, parts)


def move(params: FieldParams, step: Move) -> tuple[Array, Array]:
    """The field's move of every coordinate, and the logarithm of its expected error, in units of the features' scale.

    Args:
      params: of the field.
      step: a move of a sample of coordinates, or of a whole run.

    Returns:
      Both, [*n]; zeros of an untrained field.

    >>> features = Features(*(jnp.ones((2, k)) for k in (3, 4, 5)), {"slope": jnp.ones(2)}, *jnp.ones((3, 2)))
    >>> now, then = Horizon(*jnp.ones((3, 2))), Horizon(*jnp.full((3, 2), 2.0))
    >>> step = Move(features, now, now, then, x_s=jnp.zeros(2))
    >>> field = lambda key: init_field(key, FieldKind("tensor"), (8,), step)
    >>> [x.tolist() for x in jax.jit(lambda key: move(field(key), step))(jax.random.key(0))]
    [[0.0, 0.0], [0.0, 0.0]]
    """
    features, head = step.features, params.kind.head
    shared, own = inputs(head, step)
    whole_run = shared.shape[:-1] != features.scale.shape
    of_weights = (lambda part: part[features.segment]) if whole_run else lambda part: part
    num_shared = shared.shape[-1]
    shared = _standardised(shared, params.shift[:num_shared], params.spread[:num_shared])
    own = _standardised(own, params.shift[num_shared:], params.spread[num_shared:])
    network = Coefficients(widths_of(params))
    if head == "coordinate":
        outputs: Any = network.apply(params.network, shared, own, of_weights)
        return mix(outputs, step) + outputs["residual"], outputs["log_error"]
    outputs = network.apply(params.network, shared, own)
    return mix(outputs, step, of_weights), of_weights(outputs["log_error"])


def widths_of(params: FieldParams) -> tuple[int, ...]:
    """The widths of a field's hidden layers."""
    layers = params.network["params"]
    return tuple(layers[f"hidden_{i}"]["bias"].shape[-1] for i in range(len(layers) - 1))


def _standardised(features, shift, spread):
    lead = (None,) * (features.ndim - 1)
    return jnp.clip((features - shift[lead]) / spread[lead], -BOUND, BOUND)


def init_field(key: Array, kind: FieldKind, widths: Sequence[int], step: Move) -> FieldParams:
    """An untrained field, its features standardised by those of a sample of moves.

    Args:
      key: randomness.
      kind: of the field.
      widths: of the hidden layers, at least one.
      step: a sample of moves, of any number of coordinates, each with a row of features of its own.

    >>> features = Features(*(jnp.ones((2, k)) for k in (3, 4, 5)), {"slope": jnp.ones(2)}, *jnp.ones((3, 2)))
    >>> now, then = Horizon(*jnp.ones((3, 2))), Horizon(*jnp.full((3, 2), 2.0))
    >>> step = Move(features, now, now, then, x_s=jnp.zeros(2))
    >>> init = lambda key: init_field(key, FieldKind("tensor"), (8,), step)
    >>> jax.eval_shape(init, jax.random.key(0)).shift.shape  # 4 features of the tensor, 5 of the run, 5 of each moment
    (19,)
    """
    shared, own = inputs(kind.head, step)
    features, network = jnp.concatenate([shared, own], axis=-1), Coefficients(widths)
    spread = features.std(0)
    params = network.init(key, shared[:1], own[:1])
    return FieldParams(params, features.mean(0), jnp.where(spread > 1e-3, spread, 1.0), kind)
