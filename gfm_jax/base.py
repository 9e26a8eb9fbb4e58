"""The grammar: the records that every floor of the house speaks, on one page.

Records of arrays (`PathSample`, `Trajectory`, `Horizon`, `Features`, `Forecast`) cross `jit`, `vmap` and `scan`.
Records of functions (`Interpolant`, `Network`, `Forecaster`, `Encoder`, `Generator`, `OptimizerField`) are closed over. A
`Task` is both: its `data` cross, its functions are closed over.

A point `x: [dim]` may be a sample, a latent code, a whole weight vector, or one coordinate of it. Functions act on ONE
point or ONE run; the caller maps them with `jax.vmap`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, PyTree

__all__ = [
    "Curvature",
    "Encoder",
    "Features",
    "Forecast",
    "Forecaster",
    "Generator",
    "Horizon",
    "Interpolant",
    "Layout",
    "Network",
    "OptimizerField",
    "PathSample",
    "Task",
    "Trajectory",
]


# --- paths ------------------------------------------------------------------------------------------------------------


class Interpolant(NamedTuple):
    """A path between two points, x_t = alpha(t) x_0 + beta(t) x_1, with t in [0, 1]."""

    alpha: Callable[[Any], Any]
    beta: Callable[[Any], Any]


class PathSample(NamedTuple):
    """A point x_t on a path from x_0 to x_1, and its velocity dx_t = dx/dt at flow time t."""

    t: Float[Array, "*batch"]
    x_t: Float[Array, "*batch dim"]
    dx_t: Float[Array, "*batch dim"]
    x_0: Float[Array, "*batch dim"]
    x_1: Float[Array, "*batch dim"]


# --- training runs ----------------------------------------------------------------------------------------------------


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """How a flat weight vector divides into named tensors, in the order in which they lie in it.

    Attributes:
      names: paths such as "hidden_0/kernel".
      shapes: of the tensors.
      convention: which axis of a matrix runs over output units: "flax" for the last, "torch" for the first, None to go by
        the names; see `pytrees.output_axes`.
      layers: for each tensor the number of its layer in the order in which the network uses them, None to go by the names;
        see `pytrees.depths`.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    convention: str | None = None
    layers: tuple[int, ...] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def dim(self) -> int:
        return sum(self.sizes)


class Network(NamedTuple):
    """A function with weights: `init(key) -> weights`, `apply(weights, inputs) -> outputs`."""

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


class Task(NamedTuple):
    """A loss to be descended: all that a recorder has to know about a training problem.

    Attributes:
      data: arrays that the functions read, by split: `data["train"]`, `data["validation"]`, `data["test"]`.
      init: `(key, variety) -> weights`.
      draws: `(key, num_steps, variety) -> draws`, a pytree led by [num_steps]: what each step draws at random.
      loss: `(weights, data, draw) -> scalar`, the loss of one step.
      evaluate: `(weights, split) -> {"loss": ..., ...}`, over a whole split, such as `data["test"]`.

    `variety` is a dict of scalars that differ from run to run (noise levels, the scale of the initialisation); a task
    reads the names that it knows and has a default for each.
    """

    data: PyTree
    init: Callable[..., PyTree]
    draws: Callable[..., PyTree]
    loss: Callable[..., Float[Array, ""]]
    evaluate: Callable[..., dict[str, Array]]


class Curvature(NamedTuple):
    """The training loss around one point, as `gfm_jax.forecasting.measure_curvature` finds it.

    Attributes:
      has_curvature: 1; 0 stands for a curvature that nobody measured, whose other fields are zero.
      loss, gradient: at the point.
      krylov: directions in which the quadratic model of the loss is known, each made by one more product with the Hessian.
    """

    has_curvature: Float[Array, "*runs"]
    loss: Float[Array, "*runs"]
    gradient: Float[Array, "*runs dim"]
    krylov: Float[Array, "*runs k dim"]


class Trajectory(NamedTuple):
    """One recorded run; a batch of runs has one more leading axis [runs]. What was not recorded is None.

    Attributes:
      step: number of optimizer steps taken at each save; the first is 0.
      time: sum of the learning rates of those steps: the clock of the gradient flow.
      weights: the flat weights at each save.
      mean_weights: their mean over the segment that ends at the save (at save 0 the weights themselves).
      gradient: the mean minibatch gradient of that segment (at save 0 that of the first minibatch).
      state: the optimizer's slots under optax's names, such as `mu`, `nu`, `trace`.
      learning_rate: that of the step that led to the save (at save 0 that of the first step).
      loss: the mean minibatch loss of the segment (at save 0 that of the first minibatch).
      finite: whether every saved weight is finite; a run that diverged is kept, and says so here.
      layout: which stretch of the vector is which tensor.
      curvature: of the training loss at the last save, which no recorder knows: see `forecasting.measure_curvature`.
    """

    step: Int[Array, "*runs saves"]
    time: Float[Array, "*runs saves"]
    weights: Float[Array, "*runs saves dim"] | None = None
    mean_weights: Float[Array, "*runs saves dim"] | None = None
    gradient: Float[Array, "*runs saves dim"] | None = None
    state: dict[str, Float[Array, "*runs saves dim"]] | None = None
    learning_rate: Float[Array, "*runs saves"] | None = None
    loss: Float[Array, "*runs saves"] | None = None
    finite: Bool[Array, "*runs"] | None = None
    layout: Layout | None = None
    curvature: Curvature | None = None


# --- forecasts --------------------------------------------------------------------------------------------------------


class Horizon(NamedTuple):
    """A moment of a run that lies ahead: its step, the sum of learning rates until then, and the rate at that step."""

    step: Float[Array, "*batch"]
    time: Float[Array, "*batch"]
    learning_rate: Float[Array, "*batch"]


class Features(NamedTuple):
    """What an observed prefix says, by name: of every coordinate, of its tensor, of the run.

    What a network reads, and windows of many runs, are stacked: arrays in the order of `gfm_jax.forecasting.names`.

    Attributes:
      coordinate: features of each coordinate, free of units.
      tensor: features of each tensor.
      run: features of the run.
      directions: displacements that a forecast may combine, in units of `scale`.
      scale: the unit of length, one for each coordinate: how far its tensor has lately moved.
      origin: the last observed weights.
      segment: index of the tensor to which each coordinate belongs.
    """

    coordinate: dict[str, Float[Array, "*runs dim"]] | Float[Array, "*runs dim features"]
    tensor: dict[str, Float[Array, "*runs tensors"]] | Float[Array, "*runs tensors features"]
    run: dict[str, Float[Array, "*runs"]] | Float[Array, "*runs features"]
    directions: dict[str, Float[Array, "*runs dim"]] | Float[Array, "*runs dim directions"]
    scale: Float[Array, "*runs dim"]
    origin: Float[Array, "*runs dim"]
    segment: Int[Array, "*runs dim"]


class Forecast(NamedTuple):
    """Forecast weights, and for methods that know their error an interval for each coordinate."""

    weights: Float[Array, "*runs dim"]
    lower: Float[Array, "*runs dim"] | None = None
    upper: Float[Array, "*runs dim"] | None = None


class Forecaster(NamedTuple):
    """`fit(key, runs, losses=None) -> params`, then `forecast(params, prefix, horizon) -> Forecast` of one run.

    `runs` is a sequence of trajectories, each a batch of runs of one layout. `losses`, one for each of them, are
    functions `weights: [dim] -> scalar`, for those that look at the loss too.
    """

    fit: Callable[..., PyTree]
    forecast: Callable[[PyTree, Trajectory, Horizon], Forecast]


# --- encoders ---------------------------------------------------------------------------------------------------------


class Encoder(NamedTuple):
    """A way to write weights as codes, and back.

    Attributes:
      fit: `(key, weights [num, dim], *, folder=None, progress=None) -> params`; what takes long leaves in the folder what a
        second call goes on from, and shows its progress under that name.
      encode: `(params, w [dim]) -> z [codes]`, of one network.
      decode: `(params, z) -> w`.
    """

    fit: Callable[..., PyTree]
    encode: Callable[[PyTree, Array], Array]
    decode: Callable[[PyTree, Array], Array]


# --- generators -------------------------------------------------------------------------------------------------------


class Generator(NamedTuple):
    """A model that draws new points like those it was fitted to.

    Attributes:
      fit: `(key, data, cond=None, ...) -> params`, data [num, dim] and, where there are conditions, cond [num, conditions].
      generate: `(key, params, num, cond=None, ...) -> [num, dim]`.
      velocity: `(params, t, x, cond) -> dx/dt`, of one point; None for those that do not flow.
      flow_map: `(params, s, t, x, cond) -> X_{s,t}(x)`, of one point; None for those that have only a velocity.
    """

    fit: Callable[..., PyTree]
    generate: Callable[..., Array]
    velocity: Callable[..., Array] | None = None
    flow_map: Callable[..., Array] | None = None


# --- optimizers -------------------------------------------------------------------------------------------------------


class OptimizerField(NamedTuple):
    """An optimizer as a vector field on (weights, slots), with the sum of learning rates as its clock.

    Attributes:
      init: `(weights) -> slots`, a dict under optax's names.
      velocity: `(time, weights, slots, gradient, learning_rate) -> (d weights / d time, d slots / d time)`.
    """

    init: Callable[[PyTree], dict[str, PyTree]]
    velocity: Callable[..., tuple[PyTree, dict[str, PyTree]]]
