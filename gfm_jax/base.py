"""The grammar: the records that every floor of the house speaks, on one page.

Records of arrays (`PathSample`, `Trajectory`, `Horizon`, `Features`, `Forecast`) cross `jit`, `vmap` and `scan`.
Records of functions (`Learner`, `Flow`, `Codec`, `Generator`, `Forecaster`, `Network`, `OptimizerField`) are closed over. A
`Task` is both: its `data` cross, its functions are closed over.

A point `x: [dim]` may be a sample, a latent code, a whole weight vector, or one coordinate of it. Functions act on ONE
point or ONE run; the caller maps them with `jax.vmap`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

__all__ = [
    "Codec",
    "Config",
    "Curvature",
    "Defaults",
    "Features",
    "Flow",
    "Forecast",
    "Forecaster",
    "Generator",
    "Horizon",
    "Interpolant",
    "Layout",
    "Learner",
    "Network",
    "OptimizerField",
    "PathSample",
    "Procedure",
    "Task",
    "Trajectory",
    "config_of",
]


# --- learning ---------------------------------------------------------------------------------------------------------


class Init(Protocol):
    def __call__(self, key: Array, data: Any, /) -> PyTree: ...


class Sample(Protocol):
    def __call__(self, key: Array, data: Any, /) -> PyTree: ...


class Loss(Protocol):
    def __call__(self, params: Any, key: Array, batch: Any, /) -> tuple[Array, dict[str, Array]]: ...


class Defaults(NamedTuple):
    """How a learner is fitted where `fit` is told nothing else.

    Attributes:
      num_steps: optimizer steps.
      learning_rate: peak of the default optimizer's schedule.
      optimizer: `(learning_rate, num_steps) -> optax transformation`.
      ema_decay: decay of the running average of the parameters, in [0, 1).
    """

    num_steps: int
    learning_rate: float
    optimizer: Callable[[float, int], optax.GradientTransformation]
    ema_decay: float = 0.999


class Config(NamedTuple):
    """What a method was made of: the function that made it, such as "flows.flow_map", and its arguments by name."""

    method: str
    choices: tuple[tuple[str, Any], ...]


def config_of(method: str, **arguments: Any) -> Config:
    """The config of a method and its choices: hashable values.

    >>> config_of("flows.flow_map", num_steps=3)
    Config(method='flows.flow_map', choices=(('num_steps', 3),))
    """
    return Config(method, tuple(arguments.items()))


class Learner(NamedTuple):
    """How parameters are learned by gradients: what `gfm_jax.fit` needs to know of a method.

    Attributes:
      init: `(key, data) -> params`, where a fit starts.
      sample: `(key, data) -> batch`, the examples of one step.
      loss: `(params, key, batch) -> (scalar, info)`, info a dict of scalars.
      config: the choices that made these functions. Two learners of equal configs share one compiled program. None for
        functions that are compared themselves.
      defaults: of the optimizer; None where `fit` has to be told.
      prepare: `(key, data) -> data` as the other functions take it: checked and brought into arrays, once.
      resume: `(start, data) -> params`, where a fit goes on from the parameters of another one.
      frozen: names of the fields of params that stay as `init` made them.
    """

    init: Init
    sample: Sample
    loss: Loss
    config: Config | None = None
    defaults: Defaults | None = None
    prepare: Callable[[Array, Any], Any] = lambda key, data: data
    resume: Callable[[Any, Any], PyTree] = lambda start, data: start
    frozen: tuple[str, ...] = ()


class Procedure(NamedTuple):
    """Another way to find parameters than one descent: in closed form, or by several fits one after the other.

    Attributes:
      fit: `(key, data, *, folder, progress) -> params`, the last two as `gfm_jax.fit` has them, for its long parts.
      config: the choices that made it.
    """

    fit: Callable[..., PyTree]
    config: Config | None = None


# --- flows ------------------------------------------------------------------------------------------------------------


class Velocity(Protocol):
    def __call__(self, params: Any, t: Any, x: Array, cond: Array | None = None, /) -> Array: ...


class FlowMap(Protocol):
    def __call__(self, params: Any, s: Any, t: Any, x: Array, cond: Array | None = None, /) -> Array: ...


class Flow(NamedTuple):
    """A law of points that is reached from a source by following a velocity.

    Attributes:
      learner: how it is fitted.
      velocity: `(params, t, x, cond) -> dx/dt`, of one point.
      flow_map: `(params, s, t, x, cond) -> X_{s,t}(x)`, of one point; None for a flow that has only a velocity.
      guided: `(strength) -> Flow` under classifier-free guidance; None for a flow that was not fitted for it.
    """

    learner: Learner
    velocity: Velocity
    flow_map: FlowMap | None = None
    guided: Callable[[Any], "Flow"] | None = None


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
      time: sum of the learning rates of those steps: the clock of the gradient flow. Left out, it is summed up from
        `learning_rate`, of which one number does for all saves; without either it is the number of steps.
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
    time: Float[Array, "*runs saves"] = None  # pyright: ignore[reportAssignmentType]  `as_run` fills it in
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
    """A way to say where a run will be.

    Attributes:
      learner: how it is fitted to runs: a trajectory with a batch of runs, or a sequence of them, each of one layout.
      forecast: `(params, prefix, horizon) -> Forecast` of one run, or of each of a batch; see `gfm_jax.forecast`.
    """

    learner: Learner | Procedure
    forecast: Callable[[PyTree, Trajectory, Horizon], Forecast]


# --- weights of networks ----------------------------------------------------------------------------------------------


class Codec(NamedTuple):
    """A way to write the weights of a network as a short code, and back.

    Attributes:
      learner: how it is fitted to weights [num, dim].
      encode: `(params, w [dim]) -> z [codes]`, of one network.
      decode: `(params, z) -> w`.
    """

    learner: Learner | Procedure
    encode: Callable[[PyTree, Array], Array]
    decode: Callable[[PyTree, Array], Array]


class Generator(NamedTuple):
    """A model that draws new weights of networks like those it was fitted to.

    Attributes:
      learner: how it is fitted to weights [num, dim], a pair `(weights, cond [num, conditions])`, or `weights.Zoo`.
      generate: `(key, params, num, cond=None) -> [num, dim]`.
      velocity, flow_map: of codes, as a `Flow` has them; None for generators that do not flow.
    """

    learner: Learner | Procedure
    generate: Callable[..., Array]
    velocity: Velocity | None = None
    flow_map: FlowMap | None = None


# --- optimizers -------------------------------------------------------------------------------------------------------


class OptimizerField(NamedTuple):
    """An optimizer as a vector field on (weights, slots), with the sum of learning rates as its clock.

    Attributes:
      init: `(weights) -> slots`, a dict under optax's names.
      velocity: `(time, weights, slots, gradient, learning_rate) -> (d weights / d time, d slots / d time)`.
    """

    init: Callable[[PyTree], dict[str, PyTree]]
    velocity: Callable[..., tuple[PyTree, dict[str, PyTree]]]
