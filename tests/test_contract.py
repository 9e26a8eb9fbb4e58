"""`jit(f) == f == vmap(f)` for every public function of arrays, and `grad` where it is differentiable: one table."""

import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gfm_jax as gfm
from gfm_jax import datasets, flows, forecasting, networks, optimizers, pytrees, runs, solve, weights
from gfm_jax.base import Horizon, Layout, Network, PathSample, Trajectory
from gfm_jax.flows import metrics
from gfm_jax.forecasting import baselines, gate, names
from gfm_jax.forecasting.field_forecaster import Params as FieldParams
from gfm_jax.optimizers import fields
from gfm_jax.weights import meta_learning, tuning

ROUNDING = 2e-5  # of float32, relative to the largest entry of an output: programs round in another order
SLOPES = 3e-3  # of derivatives against differences of the fourth order in float32
STEP = 0.005  # of these differences


class Row(NamedTuple):
    """A public function as a function of arrays alone, arrays to call it with, and how it is differentiated: "reverse" (and
    forwards), "forward" or None, in all floating-point numbers that it takes and gives."""

    function: Callable
    args: tuple
    grad: str | None = "reverse"


def row(function: Callable, *args: Any, grad: str | None = "reverse") -> Row:
    return Row(function, args, grad)


def later(make: Callable) -> Callable:
    """A maker of rows that is called by the test, not while tests are collected."""
    return lambda *args, **options: functools.partial(make, *args, **options)


# --- arrays and small problems ------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
KEY, OTHER_KEY = jax.random.key(0), jax.random.key(1)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
X, Y, Z, P, Q, M = draw(3), draw(3), draw(3), draw(5, 3), draw(5, 3), draw(4, 3)
S, T, RATE = np.float32(0.3), np.float32(0.7), np.float32(0.1)
LABELS, WAYS, CODES = jnp.array([0, 1, 2, 1, 0]), jnp.array([4, 1]), jnp.eye(3)

SAVES, LAYOUT = 8, Layout(("a/bias", "a/kernel"), ((2,), (2, 2)))
PATH = ((1 - np.exp(-np.arange(SAVES) / 3))[:, None] * draw(LAYOUT.dim) + 0.2 * draw(SAVES, LAYOUT.dim)).astype("f4")
PATHS = np.stack([PATH, PATH[:, ::-1] + 0.1 * draw(SAVES, LAYOUT.dim)])
ALL = jnp.arange(SAVES)
CLOCKS = {2: (ALL, 0.1 * ALL), 3: (jnp.tile(ALL, (2, 1)), jnp.tile(0.1 * ALL, (2, 1)))}
AHEAD = Horizon(jnp.float32(20), jnp.float32(2), jnp.float32(0.1))
quartic = lambda w: jnp.sum(w**4) + jnp.sum(jnp.sin(w)) ** 2


def run_of(path, **parts):
    """A run, or a batch of runs, from its weights."""
    return Trajectory(*CLOCKS[path.ndim], weights=path, layout=LAYOUT, **parts)


def recorded(path):
    """With all that a recorder keeps."""
    state, rate = {"trace": 0.5 * path}, jnp.full(path.shape[:-1], 0.1)
    return run_of(path, mean_weights=0.9 * path, gradient=-path, state=state, learning_rate=rate)


def mean_velocity(s, t, x):
    return jnp.sin(x) * (1 + s) + t * x[::-1]


def velocity(t, x):
    return jnp.sin(x) + t * x[::-1]


def filled(shapes):
    """Numbers of given shapes, from a tree of arrays or of their shapes."""
    return jax.tree.map(lambda leaf: 0.4 * draw(*leaf.shape), shapes)


@later
def network_row(module, *inputs):
    params = filled(jax.eval_shape(module.init, KEY, *inputs))
    return row(module.apply, params, *inputs)


@later
def flow_row(flow):
    params = jax.eval_shape(lambda key: flow.learner.init(key, flow.learner.prepare(key, P)), KEY)
    params = flows.FlowParams(filled(params.network), np.ones(3, np.float32), params.conditions)
    if flow.flow_map is None:
        return row(flow.velocity, params, T, X)
    return row(lambda *args: (flow.velocity(args[0], *args[2:]), flow.flow_map(*args)), params, S, T, X)


@later
def optimizer_row(make, *rates, **options):
    """Some updates on a small loss, by learning rate and starting weights."""

    def follow(w, *rates):
        transform = optax.with_extra_args_support(make(*rates, **options))
        state = transform.init(w)
        for _ in range(2):
            change, state = transform.update(jax.grad(quartic)(w), state, w, grad_fn=jax.grad(quartic))
            w = optax.apply_updates(w, change)
        return w

    return row(follow, X, *rates)


def scaled_row(make, *args):
    """The same of a transformation without a learning rate, or with one beside it."""
    return optimizer_row(
        lambda rate, *rest: optax.chain(make(*args, *rest), optax.scale_by_learning_rate(0.1 * rate)), RATE
    )


@later
def field_row(make, *args, shape=(3,), grad="reverse"):
    """The velocity of an optimizer's field, by weights, slots, gradient and its own numbers."""
    w = draw(*shape)
    slots = jax.tree.map(lambda leaf: np.abs(draw(*leaf.shape)) + 0.1, jax.eval_shape(make(*args).init, w))
    function = lambda w, slots, gradient, *args: make(*args).velocity(0.3, w, slots, gradient, 0.1)
    return row(function, w, slots, draw(*shape), *map(np.float32, args), grad=grad)


def baseline_row(forecaster, params=()):
    return row(lambda path, params: forecaster.forecast(params, run_of(path), AHEAD).weights, PATH, params)


def codec_params(codec):
    data = codec.learner.prepare(KEY, jnp.asarray(ZOO)) if hasattr(codec.learner, "prepare") else jnp.asarray(ZOO)
    if hasattr(codec.learner, "init"):
        params = jax.eval_shape(codec.learner.init, KEY, data)
        return jax.tree.map(np.abs, filled(params))  # deviations are positive
    return gfm.fit(KEY, codec, data)[0]


@later
def codec_row(codec, grad="reverse"):
    def there_and_back(params, w):
        code = codec.encode(params, w)
        return code, codec.decode(params, code)

    return row(there_and_back, codec_params(codec), ZOO[0], grad=grad)


@later
def generator_row(generator, cond=None, grad="reverse"):
    params = gfm.fit(KEY, generator, (ZOO, ZOO_COND) if cond is not None else ZOO)[0]
    return row(lambda key, params: generator.generate(key, params, 2, cond), OTHER_KEY, params, grad=grad)


APPLY = lambda w, x: nn.relu(x @ w["a"] + w["b"]) @ w["c"]
WEIGHTS = {"a": draw(2, 3), "b": draw(3), "c": draw(3, 2)}
DIM, ZOO_COND = 15, draw(6, 2)
ZOO, INPUTS = draw(6, DIM), draw(4, 2)
ZOO_LAYOUT = Layout(("a/kernel", "b/bias", "c/kernel"), ((2, 3), (3,), (3, 2)))
SYMMETRY = functools.cache(lambda: weights.find_symmetry(APPLY, WEIGHTS, INPUTS))
RELABELING = functools.cache(lambda: weights.find_relabeling(APPLY, WEIGHTS, INPUTS))
SMOOTH = lambda w, x: jnp.tanh(x @ w["a"] + w["b"]) @ w["c"]
PERCEPTRON = Network(lambda key: WEIGHTS, SMOOTH)
DATA = {"train": (draw(6, 2), np.array([0, 1, 0, 1, 1, 0], np.int32))}
few_loss = lambda w, examples: jnp.mean((SMOOTH(pytrees.unravel(WEIGHTS, w), examples[0]) - examples[1]) ** 2)
EXAMPLES = draw(4, 2), draw(4, 2)


@later
def task_row(make, *args, variety=None):
    """The loss of a step, and its gradient, by the arguments that the task is made of."""

    def function(w, key, *args):
        task = make(*args)
        step = jax.tree.map(lambda leaf: leaf[1], task.draws(key, 2, variety))
        return jax.value_and_grad(task.loss)(w, task.data, step)

    start = jax.eval_shape(lambda key, *args: make(*args).init(key, variety), KEY, *args)
    return row(function, filled(start), KEY, *args)


def windows(paths):
    return forecasting.cut(recorded(paths), (0.6,))


SEGMENT = jnp.array([0, 0, 1, 1, 1, 1])
MOMENT = Horizon(jnp.float32(7), jnp.float32(0.7), jnp.float32(0.1))


def of_features(features, *leading):
    """Numbers for features, from their shapes."""
    segment = jnp.broadcast_to(SEGMENT, (*leading, LAYOUT.dim))
    return filled(features)._replace(segment=segment, scale=jnp.ones(segment.shape))


def some_windows():
    shapes = jax.eval_shape(windows, PATHS)
    clock = Horizon(*(jnp.tile(k * (1.0 + ALL), (2, 1)) for k in (1, 0.1, 0.1)))
    found = filled(shapes._replace(features=(), clock=()))._replace(
        clock=clock, features=of_features(shapes.features, 2)
    )
    return found._replace(run=jnp.arange(2), last=jnp.full(2, 3), distance=1 + found.distance**2)


def some_move():
    """Of one whole run, for a field."""
    features = of_features(jax.eval_shape(lambda path: names.stacked(forecasting.observe(run_of(path))), PATH))
    return forecasting.Move(features, MOMENT, MOMENT, AHEAD, draw(LAYOUT.dim))


def some_field():
    kind = forecasting.FieldKind("tensor")
    shapes = jax.eval_shape(lambda key, move: forecasting.init_field(key, kind, (4,), move), KEY, some_move())
    found = filled(shapes)
    return found._replace(spread=1 + found.spread**2)


PATH_SAMPLE = PathSample(RNG.uniform(0.2, 0.8, 5).astype("f4"), P, Q, draw(5, 3), draw(5, 3))
SOURCE = flows.GaussianSource(draw(3), np.eye(3, dtype="f4") + 0.1 * draw(3, 3))
residual = lambda error, **stop: row(lambda *a: error(mean_velocity, *a, **stop), S, T, X)

PLAIN = flows.flow_matching(networks.TimeMLP((4,)))
MAP = flows.flow_map(networks.TimeMLP((4,)))
GUIDED = flows.flow_matching(networks.TimeMLP((4,)), condition_dropout=0.1)
TOKENS = weights.tokens_of(ZOO_LAYOUT)
GENERATOR, OF_VELOCITY = (
    weights.flow_to_learn(weights.pca(2), gfm.with_defaults(flow, num_steps=1)) for flow in (MAP, PLAIN)
)
FAMILY = lambda: runs.TaskFamily([runs.quadratic(jnp.ones(2))], [(optax.sgd, (0.1, 0.2))], ("cosine", "constant"))


@functools.cache
def GUIDED_PARAMS():
    shapes = jax.eval_shape(lambda key: GUIDED.learner.init(key, GUIDED.learner.prepare(key, (P, P[:, :2]))), KEY)
    return flows.FlowParams(filled(shapes.network), np.ones(3, np.float32), shapes.conditions)


def meta_row(make):
    generator = make(lambda key: ZOO[0], few_loss, lambda key, data: (data, data), inner_rate=0.1, batch_size=1)
    return lambda w, *examples: generator.learner.loss(w, KEY, generator.learner.sample(KEY, examples))[0]


@later
def tuning_row(make, generator):
    loss = lambda z, examples: jnp.sum((z - examples) ** 2)
    tune = make(generator, loss, num_steps=1, learning_rate=0.1, batch_size=2, num_solver_steps=2)
    params = gfm.fit(KEY, generator, ZOO)[0]
    return row(tune, KEY, params, draw(2), grad=None)  # Adam's first step is a sign


# --- the table ----------------------------------------------------------------------------------------------------------

TABLE = {
    "datasets.checkerboard": row(lambda key: datasets.checkerboard(key, 4), KEY, grad=None),
    "datasets.eight_gaussians": row(lambda key: datasets.eight_gaussians(key, 4), KEY, grad=None),
    "datasets.two_moons": row(lambda key: datasets.two_moons(key, 4), KEY, grad=None),
    # flows
    "flows.adjoint_matching_targets": row(  # carries no gradient, on purpose
        lambda key, x: flows.adjoint_matching_targets(key, velocity, velocity, quartic, SOURCE, x, 2), KEY, X, grad=None
    ),
    "flows.closed_form_velocity": row(lambda data, t, x: flows.closed_form_velocity(data)(t, x), P, T, X),
    "flows.distinct": row(lambda key: flows.distinct(key, 7, 3), KEY, grad=None),
    "flows.draw_reference_points": row(lambda key: flows.draw_reference_points(key, 9, 2, 4), KEY, grad=None),
    "flows.draw_gaussian": row(lambda key, source, t: flows.draw_gaussian(key, source, 2, t), KEY, SOURCE, T),
    "flows.dyadic": row(lambda key: flows.dyadic(key, 4), KEY, grad=None),
    "flows.empirical_flow_matching": flow_row(
        flows.empirical_flow_matching(networks.TimeMLP((4,)), 4, batch_size=2)
    ),
    "flows.empirical_path": row(flows.empirical_path, PATH_SAMPLE, P),
    "flows.eulerian": residual(flows.eulerian, stop="none"),
    "flows.flow_map": flow_row(MAP),
    "flows.flow_matching": flow_row(PLAIN),
    "flows.flow_matching_loss": row(flows.flow_matching_loss, P + 1, PATH_SAMPLE, np.abs(draw(5))),
    "flows.gaussian": row(
        lambda mean, std, s, t, x: [flows.gaussian(mean, std).velocity(t, x), flows.gaussian(mean, std).flow_map(s, t, x)],
        Y, T, S, T, X,
    ),
    "flows.guide": row(
        lambda strength, t, x: flows.guide(GUIDED, strength).velocity(GUIDED_PARAMS(), t, x, jnp.ones(2)), T, T, X
    ),
    "flows.guided_velocity": row(flows.guided_velocity, X, Y, T),
    "flows.independent": row(flows.independent, KEY, P, Q, grad=None),
    "flows.interpolate": row(lambda *a: flows.interpolate(flows.trigonometric, *a), T, X, Y),
    "flows.flow_map_step": row(flows.flow_map_step, S, T, X, Y),
    "flows.lagrangian": residual(flows.lagrangian, stop="none"),
    "flows.logit_normal": row(lambda key, mean, std: flows.logit_normal(key, 4, mean, std), KEY, S, T),
    "flows.mean_flow_error": row(
        lambda s, t, x, dx: flows.mean_flow_error(mean_velocity, s, t, x, dx, stop="none"), S, T, X, Y
    ),
    "flows.memoryless_step": row(
        lambda source, s, t, x, n: flows.memoryless_step(velocity, source, s, t, x, n), SOURCE, S, T, X, Y
    ),
    "flows.metrics.frechet": row(metrics.frechet, P, 1 + 2 * Q),
    "flows.metrics.histogram": row(
        lambda x: metrics.histogram(x, 4, 2.0), P[:, :2], grad=None
    ),
    "flows.metrics.kl_on_grid": row(
        lambda mass, x: metrics.kl_on_grid(jax.nn.softmax(mass.ravel()).reshape(2, 2), x, 2.0),
        draw(2, 2), P[:, :2], grad=None,
    ),
    "flows.metrics.kl_floor": row(
        lambda key: metrics.kl_floor(key, jnp.full((2, 2), 0.25), datasets.checkerboard, 8, 2), KEY, grad=None
    ),
    "flows.metrics.mmd": row(metrics.mmd, P, Q, T),
    "flows.metrics.off_support": row(metrics.off_support, P - 1, P + 1, Q, grad=None),
    "flows.metrics.sliced_wasserstein": row(lambda *a: metrics.sliced_wasserstein(*a, 3), KEY, 3 * P[:2], Q[:2]),
    "flows.paired": row(flows.paired, P, Q, grad=None),
    "flows.posterior": row(flows.posterior, P, T, X),
    "flows.progressive": row(
        lambda s, t, x, gamma: flows.progressive(mean_velocity, s, t, x, gamma, stop="none"), S, T, X, T
    ),
    "flows.sample": lambda: row(
        lambda params, x_0: flows.sample(None, MAP, params, x_0=x_0, num_steps=2), flow_row(MAP)().args[0], draw(2, 3)
    ),
    "flows.single_point": row(
        lambda y, s, t, x: [flows.single_point(y).velocity(t, x), flows.single_point(y).flow_map(s, t, x)], Y, S, T, X
    ),
    "flows.stratified": row(lambda key: flows.stratified(key, 4), KEY, grad=None),
    "flows.triangle": row(lambda key: flows.triangle(key, 4), KEY, grad=None),
    "flows.uniform": row(lambda key: flows.uniform(key, 4), KEY, grad=None),
    "flows.uniform_on_boxes": row(lambda low, t, x: flows.uniform_on_boxes(low, low + 1).velocity(t, x), M, T, X),
    "flows.unit_gaussian": row(flows.unit_gaussian, X, grad=None),
    "flows.velocity_of": row(
        lambda t, x: flows.velocity_of(lambda s, t, x: flows.flow_map_step(s, t, x, mean_velocity(s, t, x)), t, x), T, X
    ),
    "flows.velocity_to": row(lambda *a: flows.velocity_to(flows.variance_preserving, *a), T, X, Y),
    "flows.weighted_square": row(flows.weighted_square, P, draw(5)),
    # forecasting
    "forecasting.as_run": row(lambda path: forecasting.as_run(run_of(path)), PATH),
    "forecasting.baselines.dmd": baseline_row(baselines.dmd()),
    "forecasting.baselines.exponential": baseline_row(baselines.exponential()),
    "forecasting.baselines.lawa": baseline_row(baselines.lawa()),
    "forecasting.baselines.lawa_half_log": baseline_row(baselines.lawa_half_log()),
    "forecasting.baselines.lfd2": baseline_row(baselines.lfd2(), draw(2, 2)),
    "forecasting.baselines.linear": baseline_row(baselines.linear()),
    "forecasting.baselines.log_time": baseline_row(baselines.log_time()),
    "forecasting.baselines.persistence": baseline_row(baselines.persistence()),
    "forecasting.baselines.rank1": baseline_row(baselines.rank1()),
    "forecasting.baselines.sqrt_time": baseline_row(baselines.sqrt_time()),
    "forecasting.check_forecast": row(lambda path: forecasting.check_forecast(run_of(path), AHEAD), PATH),
    "forecasting.curvature_at": row(lambda w, p: forecasting.curvature_at(quartic, w, p), draw(6), 1 + draw(6) ** 2),
    "forecasting.cut": row(windows, PATHS, grad=None),  # the derivative is that of `observe`
    "forecasting.draw_pairs": lambda: row(
        lambda key, w: forecasting.draw_pairs(key, w, 4, 0.5, 0.5), KEY, some_windows()
    ),
    "forecasting.draw_windows": lambda: row(
        lambda key, w: forecasting.draw_windows(key, w, 4, 0.5), KEY, some_windows(), grad=None
    ),
    "forecasting.forecast": row(lambda path: gfm.forecast(baselines.linear(), (), run_of(path), until=9), PATH),
    "forecasting.from_first_motion": row(
        lambda time: forecasting.from_first_motion(time, jnp.ones(4, bool)), np.float32([0.05, 0.1, 0.5, 0.7])
    ),
    "forecasting.function_space_loss": row(
        lambda a, b: forecasting.function_space_loss(lambda w: jnp.sum(w**2), a, 1.0, b, 0.5), X, Y
    ),
    "forecasting.gate.choose": row(lambda candidates: gate.choose(quartic, candidates), M),
    "forecasting.gate.line_search": row(lambda a, b: gate.line_search(a, b, (0.0, 0.5, 1.0)), X, Y),
    "forecasting.horizon_at": row(lambda path: forecasting.horizon_at(recorded(path), 3), PATH, grad=None),
    "forecasting.horizon_at_step": row(
        lambda path, step: forecasting.horizon_at_step(run_of(path), step), PATH, np.float32(9.5)
    ),
    "forecasting.init_field": lambda: row(
        lambda key, move: forecasting.init_field(key, forecasting.FieldKind("tensor"), (4,), move), KEY, some_move(), grad=None
    ),
    "forecasting.is_forecastable": row(
        lambda path: forecasting.is_forecastable(run_of(path), AHEAD), PATH, grad=None
    ),
    "forecasting.laplace_nll": row(forecasting.laplace_nll, X, Y),
    "forecasting.line_weights": row(forecasting.line_weights, np.float32([0.1, 0.4, 0.5, 1]), np.ones(4, "f4")),
    "forecasting.log_of_loss": row(lambda loss: forecasting.log_of_loss(loss, 0.1), 2 + X),
    "forecasting.measure_curvature": row(
        lambda path: forecasting.measure_curvature(run_of(path), quartic).curvature, PATH
    ),
    "forecasting.forecast_windows": lambda: row(
        lambda field, w: forecasting.forecast_windows(FieldParams(*field, None, (), 0.0), w), some_field(), some_windows()
    ),
    "forecasting.move": lambda: row(forecasting.move, some_field(), some_move()),
    "forecasting.observe": row(lambda path: forecasting.observe(recorded(path)), PATH),
    "forecasting.optimizer_flow": row(
        lambda path: forecasting.optimizer_flow(fields.momentum(), 2).forecast((), recorded(path), AHEAD).weights, PATH
    ),
    "forecasting.prefix_of": row(lambda path: forecasting.prefix_of(run_of(path), 4), PATH),
    "forecasting.relative_huber": row(forecasting.relative_huber, X, Y, 1 + Z**2),
    "forecasting.relative_l1": row(forecasting.relative_l1, X, Y + 3, 1 + Z**2),
    "forecasting.relative_squared_error": row(forecasting.relative_squared_error, X, Y, Z),
    # networks
    "networks.CNN": network_row(networks.CNN((2,), 3), draw(1, 4, 4, 1)),
    "networks.LSTM": network_row(networks.LSTM(3), draw(4, 2)),
    "networks.MLP": network_row(networks.MLP((4, 2)), draw(2, 3)),
    "networks.DeepSet": network_row(networks.DeepSet(4, 2), P),
    "networks.SetTransformer": network_row(networks.SetTransformer(4, 2, 1, 2), P),
    "networks.TimeMLP": network_row(networks.TimeMLP((4,)), np.stack([T]), X),
    "networks.Transformer": network_row(networks.Transformer(4, 2, 1, 2), P),
    "networks.UNet": network_row(networks.UNet((2, 2, 1), (8,)), np.stack([T]), draw(4)),
    "networks.WithContext": network_row(
        networks.WithContext(networks.TimeMLP((4,)), networks.DeepSet(4, 2), 2), np.stack([T]), X, draw(6)
    ),
    "networks.init_network": row(lambda key: networks.init_network(networks.MLP((4, 2)), key, X), KEY, grad=None),
    # optimizers
    "optimizers.adams_bashforth": optimizer_row(optimizers.adams_bashforth, RATE),
    "optimizers.chebyshev": optimizer_row(optimizers.chebyshev, RATE),
    "optimizers.embedded_runge_kutta": optimizer_row(lambda: optimizers.embedded_runge_kutta(1e-3, 0.1)),
    "optimizers.explicit_runge_kutta": optimizer_row(optimizers.explicit_runge_kutta, RATE, tableau=diffrax.Bosh3.tableau),
    "optimizers.extrapolated_bdf2": optimizer_row(optimizers.extrapolated_bdf2, RATE),
    "optimizers.fields.adafactor": field_row(lambda: fields.adafactor(min_dim_size_to_factor=2), shape=(3, 2)),
    "optimizers.fields.adagrad": field_row(fields.adagrad),
    "optimizers.fields.adam": field_row(fields.adam, 0.9, 0.8),
    "optimizers.fields.adamw": field_row(fields.adamw, 0.9, 0.8),
    "optimizers.fields.lion": field_row(fields.lion, 0.9, 0.8),
    "optimizers.fields.matched_decay": row(lambda rate, tau: fields.matched_decay(rate, tau)(0), RATE, T),
    "optimizers.fields.matrix_sign": row(fields.matrix_sign, M),
    "optimizers.fields.memory": row(fields.memory, T, RATE),
    "optimizers.fields.momentum": field_row(fields.momentum, 0.9),
    "optimizers.fields.muon": field_row(fields.muon, 0.9, shape=(3, 2)),
    "optimizers.fields.nadam": field_row(fields.nadam, 0.9, 0.8),
    "optimizers.fields.nesterov": field_row(fields.nesterov, 0.9),
    "optimizers.fields.rmsprop": field_row(fields.rmsprop, 0.9),
    "optimizers.fields.schedule_free": field_row(fields.schedule_free, 0.9),
    "optimizers.fields.sgd": field_row(fields.sgd),
    "optimizers.fields.sign_sgd": field_row(fields.sign_sgd, grad=None),
    "optimizers.heun": optimizer_row(optimizers.heun, RATE),
    "optimizers.joint_runge_kutta": optimizer_row(
        lambda rate, step: optimizers.joint_runge_kutta(optax.sgd(rate, momentum=0.9), step=step), RATE, T
    ),
    "optimizers.leapfrog": optimizer_row(optimizers.leapfrog, RATE, T),
    "optimizers.linear_multistep": optimizer_row(
        lambda rate: optimizers.linear_multistep(rate, optimizers.TAYLOR["taylor4"]), RATE
    ),
    "optimizers.midpoint": optimizer_row(optimizers.midpoint, RATE),
    "optimizers.ralston": optimizer_row(optimizers.ralston, RATE),
    "optimizers.rk4": optimizer_row(optimizers.rk4, RATE),
    "optimizers.scale_by_chebyshev": scaled_row(optimizers.scale_by_chebyshev),
    "optimizers.scale_by_leapfrog": scaled_row(lambda: optimizers.scale_by_leapfrog(0.1)),
    "optimizers.scale_by_linear_multistep": scaled_row(optimizers.scale_by_linear_multistep, (), (1.5, -0.5)),
    "optimizers.scale_by_runge_kutta": scaled_row(optimizers.scale_by_runge_kutta, diffrax.Heun.tableau, 0.1),
    "optimizers.scale_by_symplectic_euler": scaled_row(lambda: optimizers.scale_by_symplectic_euler(0.1)),
    "optimizers.symplectic_euler": optimizer_row(optimizers.symplectic_euler, RATE, T),
    "optimizers.taylor_sgd": optimizer_row(optimizers.taylor_sgd, RATE),
    "optimizers.fields.transformation_velocity": row(
        lambda w, g, rate: optimizers.transformation_velocity(optax.sgd(rate), rate)(w, optax.sgd(rate).init(w), g),
        X, Y, RATE,
    ),
    "optimizers.whole_params": row(lambda part: optimizers.whole_params(part, {"a": X, "b": Y}), draw(6)),
    # pytrees
    "pytrees.map_rows": row(lambda rows: pytrees.map_rows(jnp.sin, rows, 2), P),
    "pytrees.ravel": row(pytrees.ravel, WEIGHTS),
    "pytrees.unravel": row(pytrees.unravel, WEIGHTS, ZOO[0]),
    # runs
    "runs.branched": task_row(
        lambda key: runs.branched(runs.linear_regression(key, 4, 3, batch_size=2)),
        KEY, variety={"branch": 1, "branch_step": 1},
    ),
    "runs.classification": task_row(
        lambda inputs: runs.classification(PERCEPTRON, {"train": (inputs, DATA["train"][1])}, 3, num_classes=2),
        DATA["train"][0],
    ),
    "runs.draw_structures": lambda: row(
        lambda key: [s[2:] for s in runs.draw_structures(key, FAMILY(), 2, 3)], KEY, grad=None
    ),
    "runs.draw_support": lambda: row(
        lambda key: runs.draw_support(key, runs.by_class(*DATA["train"], 2), jnp.array([1, 0]), 2), KEY, grad=None
    ),
    "runs.few_shot": task_row(
        lambda: runs.few_shot(PERCEPTRON, DATA, 3, num_classes=2), variety={"classes": jnp.array([1, 0])}
    ),
    "runs.gradient_descent_end": row(
        lambda key, w, rate: runs.gradient_descent_end(runs.linear_regression(key, 6, 3), w, rate, 5), KEY, X, RATE
    ),
    "runs.heavy_ball_end": row(
        lambda key, w, rate, decay: runs.heavy_ball_end(runs.linear_regression(key, 6, 3), w, rate, decay, 5),
        KEY, X, RATE, T,
    ),
    "runs.labels_among": row(runs.labels_among, LABELS, WAYS, grad=None),
    "runs.least_squares": row(lambda key: runs.least_squares(runs.linear_regression(key, 6, 3)), KEY, grad=None),
    "runs.linear_regression": task_row(lambda key: runs.linear_regression(key, 6, 3), KEY),
    "runs.logistic_regression": task_row(lambda key: runs.logistic_regression(key, 6, 3), KEY),
    "runs.minibatch_indices": row(lambda key: runs.minibatch_indices(key, 6, 2, 4), KEY, grad=None),
    "runs.optimizer_slots": row(
        lambda w: runs.optimizer_slots(optax.adam(0.1).update(w, optax.adam(0.1).init(w))[1], w), WEIGHTS
    ),
    "runs.quadratic": task_row(runs.quadratic, 1 + X**2, Y),
    "runs.record": row(
        lambda key, rates, table: [
            runs.record(one, runs.quadratic(jnp.array([0.5, 2.0])), optimizer, rates, (0, 1, 4), keep=keep)
            for one, optimizer, rates, keep in (
                (key, optax.adam, rates, runs.PARTS),
                (jax.random.split(key, 2), optax.sgd, rates, ("weights",)),
                (key, optax.sgd, table, ("weights",)),
            )
        ],
        KEY, np.full(4, 0.1, "f4"), np.full((2, 4), 0.4, "f4"), grad="forward",
    ),
    "runs.split": row(lambda paths: runs.split(run_of(paths), 1), PATHS),
    "runs.streamed": task_row(
        lambda: runs.streamed(
            PERCEPTRON, lambda key, law: (law["x"], law["y"]), lambda a, b: jnp.mean((a - b) ** 2)
        ),
        variety=dict(zip("xy", EXAMPLES, strict=True)),
    ),
    "runs.take": row(lambda paths: runs.take(run_of(paths), 1), PATHS),
    "runs.with_slots": row(
        lambda w, slot: runs.with_slots(optax.trace(0.9).init(w), w, {"trace": slot}), WEIGHTS, ZOO[0]
    ),
    # solve
    "solve.log_likelihood": row(
        lambda x: solve.log_likelihood(velocity, x, lambda x: -jnp.sum(x**2) / 2, num_steps=2), X
    ),
    "solve.solve_flow": row(lambda x, s, t: solve.solve_flow(velocity, x, s, t, num_steps=2), X, S, T),
    "solve.solve_flow_map": row(
        lambda x, s, t: solve.solve_flow_map(
            lambda s, t, x: flows.flow_map_step(s, t, x, mean_velocity(s, t, x)), x, s, t, num_steps=2
        ),
        X, S, T,
    ),
    "solve.solve_hybrid": row(lambda x: solve.solve_hybrid(velocity, lambda t, x: -x, x, 0.5, num_steps=2), X, grad=None),
    # weights
    "weights.act": lambda: row(
        lambda scale, w: weights.act(SYMMETRY(), weights.Element((jnp.array([2, 0, 1]),), (scale,)), w),
        draw(1, 3), ZOO[0],
    ),
    "weights.audit": row(
        lambda a, b, c: weights.audit(
            a, b, c, lambda w: APPLY(pytrees.unravel(WEIGHTS, w), INPUTS), lambda out, _: jnp.mean(out), others={"mean": a}
        ),
        draw(3, DIM), draw(4, DIM), draw(3, DIM), grad=None,
    ),
    "weights.autoencoder": codec_row(weights.autoencoder(2, widths=(4,), batch_size=4)),
    "weights.balance": lambda: row(lambda w: weights.balance(SYMMETRY(), w), ZOO[0], grad="forward"),
    "weights.baselines.gaussian": generator_row(weights.baselines.gaussian(weights.pca(2))),
    "weights.baselines.hypernetwork": generator_row(
        weights.baselines.hypernetwork(weights.pca(2), networks.MLP((4, 2)), num_steps=1), ZOO_COND[:2]
    ),
    "weights.baselines.interpolation": generator_row(weights.baselines.interpolation()),
    "weights.baselines.mean": generator_row(weights.baselines.mean()),
    "weights.baselines.perturbation": generator_row(weights.baselines.perturbation()),
    "weights.baselines.random": generator_row(
        weights.baselines.random(lambda key: jax.random.normal(key, (DIM,))), grad=None
    ),
    "weights.baselines.retrieval": generator_row(weights.baselines.retrieval(), ZOO_COND[:2]),
    "weights.baselines.ridge": generator_row(weights.baselines.ridge(weights.pca(2)), ZOO_COND[:2]),
    "weights.baselines.soup": generator_row(weights.baselines.soup(2)),
    "weights.canonical": lambda: codec_row(weights.canonical(SYMMETRY()), grad="forward"),
    "weights.chain": codec_row(weights.chain(weights.standardized(), weights.pca(2))),
    "weights.change_of_outputs": lambda: row(  # rounding alone
        lambda key, w: weights.change_of_outputs(key, SYMMETRY(), APPLY, w, INPUTS) < 1e-4, KEY, WEIGHTS, grad=None
    ),
    "weights.class_context": row(lambda x: weights.class_context(x, LABELS, CODES), P),
    "weights.flow_to_learn": generator_row(GENERATOR),
    "weights.from_tokens": lambda: row(lambda v: weights.from_tokens(TOKENS, v), draw(*TOKENS.index.shape)),
    "weights.identity": codec_row(weights.identity()),
    "weights.low_rank": lambda: codec_row(weights.low_rank(ZOO_LAYOUT, jnp.zeros(DIM), 1)),
    "weights.match": lambda: row(lambda a, w: weights.match(SYMMETRY(), a, w), ZOO[1], ZOO[0]),
    "weights.meta_learning.adapted": lambda: row(
        lambda zoo, x: meta_learning.adapted(weights.baselines.mean(), few_loss, optax.sgd(0.1), 2).generate(
            KEY, weights.baselines.mean().learner.fit(KEY, zoo, folder=None, progress=False), 1, support=(x[None], x[None])
        ),
        ZOO, EXAMPLES[0],
    ),
    "weights.meta_learning.maml": row(lambda w, x, y: meta_row(meta_learning.maml)(w, x, y), ZOO[0], *EXAMPLES),
    "weights.meta_learning.reptile": row(  # whose gradient is another than that of its loss, on purpose
        lambda w, x, y: meta_row(meta_learning.reptile)(w, x, y), ZOO[0], *EXAMPLES, grad=None
    ),
    "weights.nearest": row(weights.nearest, P, Q),
    "weights.nearest_distance": row(weights.nearest_distance, P, Q),
    "weights.pca": codec_row(weights.pca(2)),
    "weights.random_element": lambda: row(lambda key: weights.random_element(key, SYMMETRY()), KEY, grad=None),
    "weights.relabel": lambda: row(lambda w: weights.relabel(RELABELING(), jnp.array([1, 0]), w), ZOO[0]),
    "weights.standardized": codec_row(weights.standardized()),
    "weights.support_tokens": row(lambda x: weights.support_tokens(x, LABELS, CODES), P),
    "weights.to_tokens": row(lambda w: weights.to_tokens(TOKENS, w), ZOO[0]),
    "weights.token_autoencoder": codec_row(
        weights.token_autoencoder([ZOO_LAYOUT], 2, widths=(4,), batch_size=4)[0]
    ),
    "weights.tuning.tune_by_adjoint_matching": tuning_row(tuning.tune_by_adjoint_matching, OF_VELOCITY),
    "weights.tuning.tune_through_solver": tuning_row(tuning.tune_through_solver, GENERATOR),
}  # fmt: skip


AT_THE_START = RNG.bit_generator.state

# --- what the table leaves out ------------------------------------------------------------------------------------------

HOST = "worked out by NumPy or SciPy on the host, from numbers that are known"
DISK = "reads or writes files"
STATIC = "makes what is static inside a program: layouts, symmetries, tokens, saves, numbers of things"
ELSEWHERE = {
    **dict.fromkeys(
        (f"forecasting.{name}" for name in (
            "flow_map", "function_space", "gradient_flow_matching", "self_distilled",
            "nowcast.introspection", "nowcast.lstm", "nowcast.transformer", "nowcast.wnn",
        )),
        "test_forecasters.py::test_forecasts_are_finite_and_one",
    ),
    "flows.sinkhorn": "test_paths.py::test_sinkhorn_comes_near_the_exact_plan",
}  # fmt: skip
NOT_OF_ARRAYS = {
    "forecasting.Coefficients": "the network inside `move`",
    **dict.fromkeys(("datasets.load_dataset", "fitting.seconds_of", "load", "save"), DISK),
    **dict.fromkeys(("pretrained_models.card", "pretrained_models.pretrained"), DISK),
    **dict.fromkeys((f"runs.{n}" for n in ("open_recording", "record_to_disk", "verify")), DISK),
    **dict.fromkeys((f"runs.{n}" for n in ("last_checkpoint", "read_checkpoints", "write_checkpoint")), DISK),
    **dict.fromkeys(
        ("base.config_of", "fitting.with_defaults", "runs.watch"), "makes a record of functions and choices"
    ),
    **dict.fromkeys(("fitting.fit", "forecasting.calibrate", "flows.metrics.classifier_features"), "fits, for minutes"),
    **dict.fromkeys(("flows.fit_gaussian", "flows.metrics.exact_wasserstein", "flows.optimal_transport"), HOST),
    **dict.fromkeys(
        ("forecasting.merge", "forecasting.thin", "runs.by_class", "runs.class_subsets"),
        HOST,
    ),
    **dict.fromkeys(("optimizers.chebyshev_growth", "optimizers.chebyshev_interval"), HOST),
    **dict.fromkeys(("forecasting.cut_all", "forecasting.sound_runs"), "leaves out runs by their values"),
    **dict.fromkeys(("forecasting.save_at", "runs.save_steps", "weights.tokens_of", "weights.label_codes"), STATIC),
    "networks.refresh_statistics": "takes an iterable of batches",
    "forecasting.drift_by_layer": HOST,
    "runs.trajectory": "has as many saves as its values say",
    **dict.fromkeys(("weights.find_symmetry", "weights.find_relabeling"), STATIC),
    **dict.fromkeys((f"pytrees.{n}" for n in ("check_parameters", "depths", "layout_from_dict", "layout_of")), STATIC),
    **dict.fromkeys((f"pytrees.{n}" for n in ("layout_to_dict", "output_axes", "segment_ids")), STATIC),
    **dict.fromkeys((f"pytrees.{n}" for n in ("auto_mesh", "on_auto_mesh", "place")), "moves arrays among devices"),
}
HOST_ROOMS = ("optimizers.order_conditions.", "optimizers.stability.")  # of coefficients, by NumPy


# --- the contract -------------------------------------------------------------------------------------------------------


def public():
    """All public functions and flax modules, under the name that their room gives them; records of arrays are none."""
    found, seen = {}, set()

    def walk(room, prefix):
        members = [(name, getattr(room, name)) for name in room.__all__]
        for name, value in sorted(members, key=lambda member: not inspect.ismodule(member[1])):
            is_record = inspect.isclass(value) and not issubclass(value, nn.Module)
            if id(value) in seen or is_record or not (inspect.ismodule(value) or callable(value)):
                continue
            seen.add(id(value))
            if inspect.ismodule(value):
                walk(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    walk(gfm, "")
    return found


def test_every_public_function_has_a_row_or_a_reason():
    named = [*TABLE, *ELSEWHERE, *NOT_OF_ARRAYS]
    assert len(named) == len(set(named))
    assert {name for name in public() if not name.startswith(HOST_ROOMS)} == set(named)
    for place in ELSEWHERE.values():
        file, test = place.split("::")
        assert f"def {test}(" in (pathlib.Path(__file__).parent / file).read_text()


def is_floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def moved(args, by):
    """The arguments, their floating-point numbers plus those of a tree of the same shape."""
    return jax.tree.map(lambda leaf, change: leaf + change if is_floating(leaf) else leaf, args, by)


def numbers(tree):
    """The arrays of a result; keys as their data."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in map(jnp.asarray, jax.tree.leaves(tree))]


def assert_close(found, expected, name):
    assert len(found) == len(expected)
    for a, b in zip(map(np.asarray, found), map(np.asarray, expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        size = np.abs(b[np.isfinite(b)]).max(initial=0) if is_floating(b) else 0
        np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING * size, err_msg=name)


def after(leaves, tree):
    """A tree that is known when some arrays are: decompositions that run at once in one program on a CPU wait for one
    another's threads, for ever, with jaxlib 0.10."""
    zero = 0 * jnp.nan_to_num(sum((leaf.sum() for leaf in leaves if is_floating(leaf)), jnp.zeros(())))
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype) if is_floating(leaf) else leaf, tree)


@pytest.mark.parametrize("name", TABLE)
def test_contract(name):
    """One program holds jit(f), vmap(f) over the two examples and points on a line through the first, and a derivative."""
    RNG.bit_generator.state = AT_THE_START  # what a row draws does not depend on the rows before it
    entry = TABLE[name]
    while callable(entry):
        entry = entry()
    function, args, grad = entry
    args, noise = jax.tree.map(jnp.asarray, args), np.random.default_rng(1)
    size_of = lambda leaf: float(np.abs(leaf).max(initial=0)) or 1.0
    change = lambda leaf: np.float32(size_of(leaf) * noise.uniform(-1, 1, leaf.shape)) if is_floating(leaf) else 0
    direction = jax.tree.map(change, args)
    second = moved(args, jax.tree.map(lambda leaf: 0.02 * leaf, direction))
    points = [moved(args, jax.tree.map(lambda leaf, k=k: STEP * k * leaf, direction)) for k in (-2, -1, 1, 2)]
    first = numbers(function(*args))
    covectors = [noise.normal(size=leaf.shape).astype(leaf.dtype) for leaf in first if is_floating(leaf)]

    def weighted(leaves):
        floats = [leaf for leaf in leaves if is_floating(leaf)]
        return sum(jnp.vdot(a, b, precision="highest") for a, b in zip(covectors, floats, strict=True))

    def along(args, h):
        leaves = numbers(function(*moved(args, jax.tree.map(lambda leaf: h * leaf, direction))))
        return weighted(leaves), leaves

    @jax.jit
    def program(args, batch):
        start, slope = jnp.zeros(()), 0.0
        if grad == "reverse":
            (_, alone), slope = jax.value_and_grad(along, 1, has_aux=True)(args, start)
        elif grad == "forward":
            _, slope, alone = jax.jvp(functools.partial(along, args), (start,), (start + 1,), has_aux=True)
        else:
            alone = numbers(function(*args))
        return alone, jax.vmap(lambda args: numbers(function(*args)))(after(alone, batch)), slope

    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), args, second, *points)
    alone, together, slope = program(args, batch)
    other, *_ = program(second, batch)  # f itself, op by op, is slow
    assert_close(alone, first, "jit(f) and f")
    for i, expected in enumerate((first, other)):
        assert_close([leaf[i] for leaf in together], expected, f"vmap(f) and f, row {i}")
    if grad is not None:
        a, b, c, d = (float(weighted([leaf[2 + i] for leaf in together])) for i in range(4))
        difference = (a - 8 * b + 8 * c - d) / (12 * STEP)
        size = sum(
            float(jnp.abs(v * leaf).sum()) for v, leaf in zip(covectors, filter(is_floating, first), strict=True)
        )
        tolerance = SLOPES * abs(difference) + 1e-6 / STEP * size
        assert tolerance < abs(difference) / 10, (difference, size)  # or it could not fail
        assert abs(float(slope) - difference) < tolerance, (float(slope), difference)


@pytest.mark.parametrize("name", ["dmd", "exponential", "rank1"])
def test_gradients_of_a_run_at_rest_are_finite(name):
    """All modes of its motion have the same length, 0 (wrong before 0.2): NaN."""
    forecaster, rest = getattr(baselines, name)(), jnp.ones((SAVES, LAYOUT.dim))
    slope = jax.jit(jax.grad(lambda path: forecaster.forecast((), run_of(path), AHEAD).weights.sum()))(rest)
    assert jnp.isfinite(slope).all()
    np.testing.assert_allclose(slope.sum(), LAYOUT.dim, rtol=1e-5)  # who moves all saves moves the forecast
