"""Gradient flow matching: learn the field that moves the weights, and follow it to where a run will end."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Context, Forecast, Forecaster, Horizon, Layout, Trajectory
from gfm_jax.fields import FieldParams, Move, init_field, jump, move
from gfm_jax.losses import flow_matching_loss, function_space_loss, laplace_nll, relative_huber
from gfm_jax.methods.intervals import UNIT, HalfWidth, conformal, half_width_at, widen
from gfm_jax.paths import interpolate, linear
from gfm_jax.pytrees import map_rows
from gfm_jax.solve import solve_flow
from gfm_jax.training import fit as minimise
from gfm_jax.trajectories import (
    NUM_KRYLOV,
    Windows,
    check_prefix,
    cut_all,
    draw_pairs,
    draw_windows,
    horizon_at,
    observe,
)

__all__ = ["OBJECTIVES", "Params", "Recipe", "calibrate", "forecast_windows", "gradient_flow_matching"]

OBJECTIVES = ("velocity", "flow_map", "function_space")


class Recipe(NamedTuple):
    """How a field is fitted.

    Attributes:
      objective: "velocity" (conditional flow matching, followed by an ODE solver), "flow_map" (any horizon in one call), or
        "function_space" (the flow map, tuned on the loss at the forecast weights).
      head: "coordinate" (coefficients for every weight) or "tensor" (for every tensor: cheap, and nearly as good).
      widths: of the field's network.
      fractions: shares of a run that are observed in training.
      withheld: parts of the record that are hidden in turn from some of the windows, so that the field learns to do
        without: what another optimizer does not have, or a user did not record.
      num_steps, batch_size, peak_rate, weight_decay: of the fit in weight space, by AdamW on a cosine.
      share_now: share of pairs that start at the last observed save; the others start beyond it.
      share_final: share of pairs that end at the end of the run; the others end before it.
      function_steps, function_runs, function_rate: of the fit in function space: steps, runs a step, learning rate.
      weight: lambda, the weight of the relative squared error beside the loss at the forecast weights.
      tube: width, in units of the context's scale, of the Gaussian tube round the path in which a velocity is learned: what
        only ever stood on a path does not know the way back to it, and its solution drifts off.
      solver_steps: steps of Heun's method that follow a velocity.
      coverage: of the intervals.
    """

    objective: str = "flow_map"
    head: str = "coordinate"
    widths: tuple[int, ...] = (128, 128)
    fractions: tuple[float, ...] = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
    withheld: tuple[tuple[str, ...], ...] = (
        ("mu", "trace"),
        ("state",),
        ("landscape",),
        ("state", "gradient", "loss", "mean_weights", "landscape"),
    )
    num_steps: int = 4000
    batch_size: int = 2048
    peak_rate: float = 3e-3
    weight_decay: float = 0.15
    share_now: float = 0.75
    share_final: float = 0.5
    function_steps: int = 400
    function_runs: int = 6
    function_rate: float = 5e-4
    weight: float = 0.15
    tube: float = 2.0
    solver_steps: int = 3
    coverage: float = 0.9


class Params(NamedTuple):
    """The field, the half width of its intervals, the layouts that it was fitted to, and whether their loss was surveyed."""

    field: FieldParams
    half_width: HalfWidth | None
    layouts: tuple[Layout, ...]
    surveyed: Float[Array, ""] | float


def gradient_flow_matching(objective: str = "flow_map", **choices) -> Forecaster:
    r"""A forecaster that learns the optimizer-aware field of training.

    .. math:: \text{velocity}: \; \min_\theta E\,\omega|v_\theta(x_t, t) - \dot x_t|^2, \quad
       \text{flow map}: \; \min_\theta E\,\mathrm{huber}(\sqrt\omega\,(X_{s,t}(x_s) - x_t))

    with x the displacement since the last observed save, on the piecewise-linear interpolant of the recorded run (for a
    velocity in a Gaussian tube round it), and the sum of learning rates as the clock.

    Args:
      objective: one of `OBJECTIVES`.
      **choices: any other field of `Recipe`.

    Returns:
      `fit(key, runs, losses=None, *, calibration=None, start=None, folder=None, mesh=None, progress=None)`, where
      `calibration` are runs held out to calibrate intervals (without them there are none), and `start` are parameters to
      go on from; and `forecast(params, prefix, horizon)`. With `losses`, on data that the runs were trained on, the field
      also learns from their landscape, and forecasts best for a prefix that `trajectories.survey` looked around; the
      objective in function space needs them. Runs for calibration are surveyed by the loss of the batch of their layout.

    Raises:
      ValueError: for an unknown objective, head or choice.

    Source: Shou, Ding, Gao (2025), arXiv 2505.20221, from its public description; the flow map and function-space
    objectives, the context and the heads are this library's.
    """
    if unknown := set(choices) - set(Recipe._fields):
        raise ValueError(f"{', '.join(sorted(unknown))}: expected fields of Recipe, {', '.join(Recipe._fields)}")
    recipe = Recipe(objective, **choices)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if recipe.head not in ("coordinate", "tensor"):
        raise ValueError(f"head: expected 'coordinate' or 'tensor', got {recipe.head!r}")
    return Forecaster(functools.partial(_fit, recipe), functools.partial(_forecast, recipe))


# --- moves ------------------------------------------------------------------------------------------------------------


def displacement(recipe: Recipe, field: FieldParams, step: Move) -> tuple[Array, Array]:
    """Displacement at t in one jump from s, and the logarithm of its expected error, in units of the context's scale."""
    clock = lambda moment: 1 - step.now.time / moment.time  # 0 at the last observed save, 1 in the far future
    mean_velocity, log_error = move(recipe.head, recipe.widths, field, step)
    return jump(clock(step.s), clock(step.t), step.x_s, mean_velocity), log_error


def solved_displacement(recipe: Recipe, field: FieldParams, step: Move) -> Array:
    """Displacement at t by an ODE solver, in the clock log(time); steps and rates between the two moments are taken as
    linear in time."""

    def velocity(log_time, x):
        share = (jnp.exp(log_time) - step.s.time) / (step.t.time - step.s.time)
        moment = jax.tree.map(lambda a, b: a + share * (b - a), step.s, step.t)
        return move(recipe.head, recipe.widths, field, step._replace(s=moment, t=moment, x_s=x))[0]

    x_t, _ = solve_flow(velocity, step.x_s, jnp.log(step.s.time), jnp.log(step.t.time), num_steps=recipe.solver_steps)
    return x_t


def run_displacement(recipe: Recipe, field: FieldParams, step: Move) -> tuple[Array, Array]:
    """Displacement of every weight of a run, and its expected error, in the units of the weights."""
    moved, log_error = displacement(recipe, field, step)
    if recipe.objective == "velocity":
        moved = solved_displacement(recipe, field, step)
    return step.context.scale * moved, step.context.scale * jnp.exp(log_error)


def _forecast(recipe: Recipe, params: Params, prefix: Trajectory, horizon: Horizon) -> Forecast:
    prefix = check_prefix(prefix, horizon, params.layouts)
    if prefix.landscape is not None:  # what was fitted without must not see one
        prefix = prefix._replace(landscape=jax.tree.map(lambda leaf: params.surveyed * leaf, prefix.landscape))
    context = observe(prefix)
    if prefix.landscape is None:  # its directions, the last ones, are zero: left out, they cost nothing
        context = context._replace(directions=context.directions[:, :-NUM_KRYLOV])
    return _from_context(recipe, params, context, horizon_at(prefix, -1), horizon)


def _from_context(recipe, params, context, now, horizon) -> Forecast:
    step = Move(context, now, now, horizon, jnp.zeros_like(context.scale))
    moved, error = run_displacement(recipe, params.field, step)
    weights = context.origin + moved
    if params.half_width is None:
        return Forecast(weights)
    margin = half_width_at(params.half_width, jnp.log(horizon.step / now.step)) * error
    return Forecast(weights, weights - margin, weights + margin)


def forecast_windows(recipe: Recipe, params: Params, windows: Windows, save: int = -1) -> Forecast:
    """Forecasts of a save of every window's run, by default its end, [windows, dim], in one compiled call for all saves and
    all optimizers of a layout."""
    # Only these choices matter once a field is fitted; the others would only make it compile again.
    objective = "velocity" if recipe.objective == "velocity" else "flow_map"
    recipe = Recipe(objective, recipe.head, recipe.widths, solver_steps=recipe.solver_steps)
    return _forecast_windows(recipe, params._replace(layouts=()), windows, save)


@functools.partial(jax.jit, static_argnums=0)
def _forecast_windows(recipe, params, windows, save):
    def one(window):
        context, run, last = window
        now, then = (windows.moment(run, k) for k in (last, save))
        return _from_context(recipe, params, context, now, then)

    return map_rows(one, (windows.context, windows.run, windows.last), batch_size=8)


# --- fitting ----------------------------------------------------------------------------------------------------------


def _fit(
    recipe: Recipe,
    key: Array,
    runs: Sequence[Trajectory],
    losses: Sequence[Callable] | None = None,
    *,
    calibration: Sequence[Trajectory] = (),
    start: Params | None = None,
    folder=None,
    mesh=None,
    progress: str | None = None,
) -> Params:
    in_function_space = recipe.objective == "function_space"
    if (in_function_space or losses is not None) and len(losses or ()) != len(runs):
        raise ValueError(
            f"losses: expected one for each of the {len(runs)} batches of runs, got {losses and len(losses)}"
        )
    windows = cut_all(runs, recipe.fractions, recipe.withheld, losses)
    key_init, key_fit, key_function = jax.random.split(key, 3)
    layouts = tuple(dict.fromkeys(part.layout for part in runs))
    options = {"mesh": mesh, "progress": progress}
    if start is None:
        field = _init(recipe, key_init, windows)
        sample, loss, optimizer = _weight_space(recipe)
        in_folder = None if folder is None else f"{folder}/weight_space"
        field = minimise(
            key_fit, loss, field, windows, sample, optimizer, recipe.num_steps, folder=in_folder, **options
        ).params
    else:
        field = start.field
    if in_function_space:
        sample, loss, optimizer = _function_space(recipe, tuple(losses))
        in_folder = None if folder is None else f"{folder}/function_space"
        field = minimise(
            key_function, loss, field, windows, sample, optimizer, recipe.function_steps, folder=in_folder, **options
        ).params
    surveyed = max(float(part.context.directions[..., -1].any()) for part in windows)  # the last is of the landscape
    params = Params(field, None, layouts, surveyed)
    if not calibration:
        return params
    loss_of = {} if losses is None else dict(zip((part.layout for part in runs), losses, strict=True))
    held_out = cut_all(calibration, recipe.fractions, losses=[loss_of.get(part.layout) for part in calibration])
    return calibrate(recipe, params, held_out, [np.arange(len(part.run)) for part in held_out])[0]


# Looked at once: it would take longer to optimise than to run.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _init(recipe, key, windows):
    key_network, key_example = jax.random.split(key)
    example = _draw_moves(recipe, key_example, windows)[0]
    return init_field(key_network, recipe.head, recipe.widths, example)


@functools.cache  # so that a second fit of the same recipe compiles nothing
def _weight_space(recipe):
    def sample(key, windows):
        return _draw_moves(recipe, key, windows)

    def loss(field, key, batch):
        step, target, weight = batch
        if recipe.objective == "velocity":
            velocity, log_error = move(recipe.head, recipe.widths, field, step)
            return flow_matching_loss(velocity, target, weight), {}
        forecast, log_error = displacement(recipe, field, step)
        error = jax.lax.stop_gradient(forecast - target)
        return relative_huber(forecast, target, weight) + 0.02 * laplace_nll(log_error, error), {}

    return sample, loss, _optimizer(recipe.peak_rate, recipe.num_steps, recipe.weight_decay)


@functools.cache
def _function_space(recipe, losses):
    num = max(recipe.function_runs // len(losses), 1)

    def sample(key, windows):
        keys = jax.random.split(key, len(windows))
        return [_draw_runs(key, part, num, recipe.share_final) for key, part in zip(keys, windows, strict=True)]

    def loss(field, key, batch):
        def one(loss_of_weights, step, target):
            origin = step.context.origin
            forecast = origin + run_displacement(recipe, field, step)[0]
            return function_space_loss(loss_of_weights, forecast, origin, target, recipe.weight)

        values = [
            jax.vmap(functools.partial(one, loss_of_weights))(*part)
            for loss_of_weights, part in zip(losses, batch, strict=True)
        ]
        return jnp.concatenate(values).mean(), {}

    return sample, loss, _optimizer(recipe.function_rate, recipe.function_steps)


def _optimizer(peak_rate, num_steps, weight_decay=1e-4):
    rate = optax.cosine_decay_schedule(peak_rate, num_steps)
    adamw = optax.adamw(rate, weight_decay=weight_decay)
    return _frozen_standardisation(optax.chain(optax.clip_by_global_norm(1.0), adamw))


def _frozen_standardisation(optimizer):
    return optax.multi_transform(
        {"fit": optimizer, "keep": optax.set_to_zero()},
        lambda field: FieldParams(jax.tree.map(lambda _: "fit", field.network), "keep", "keep"),
    )


def _draw_moves(recipe: Recipe, key: Array, windows: Sequence[Windows]):
    """(moves of coordinates, their targets, weights), from every layout in proportion to its windows."""
    total = sum(len(part.run) for part in windows)
    counts = [max(recipe.batch_size * len(part.run) // total, 1) for part in windows]
    keys = jax.random.split(key, len(windows) + 1)
    draws = [
        draw_pairs(key, part, num, recipe.share_now, recipe.share_final, adjacent=recipe.objective == "velocity")
        for key, part, num in zip(keys[1:], windows, counts, strict=True)
    ]
    pairs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *draws)
    if recipe.objective != "velocity":
        return Move(pairs.context, pairs.now, pairs.s, pairs.t, pairs.x_s), pairs.x_t, pairs.weight
    # The documented interpolant: linear between adjacent saves s and t; its velocity is taken in the clock log(time).
    key_share, key_tube = jax.random.split(keys[0])
    share = jax.random.uniform(key_share, pairs.x_s.shape)
    path = jax.vmap(functools.partial(interpolate, linear))(share, pairs.x_s, pairs.x_t)
    between = jax.tree.map(lambda a, b: a + share * (b - a), pairs.s, pairs.t)
    clock_speed = (pairs.t.time - pairs.s.time) / between.time
    near = path.x_t + recipe.tube * jax.random.normal(key_tube, share.shape)
    step = Move(pairs.context, pairs.now, between, between, near)
    return step, path._replace(dx_t=path.dx_t / clock_speed), pairs.weight


def _draw_runs(key: Array, windows: Windows, num: int, share_final: float) -> tuple[Move, Array]:
    """Whole runs: moves from the last observed save, and the true weights at their ends."""
    window, ahead = draw_windows(key, windows, num, share_final)
    run, last = windows.run[window], windows.last[window]
    context: Context = jax.tree.map(lambda leaf: leaf[window], windows.context)
    now, t = (windows.moment(run, save) for save in (last, ahead))
    return Move(context, now, now, t, jnp.zeros_like(context.scale)), windows.weights[run, ahead]


# --- intervals --------------------------------------------------------------------------------------------------------


def calibrate(
    recipe: Recipe,
    params: Params,
    windows: Sequence[Windows],
    held_out: Sequence[np.ndarray],
    groups: Sequence[Sequence] | None = None,
) -> tuple[Params, list[Forecast]]:
    """Gives a field its intervals, forecast +- q(m/n) * expected error, by `conformal` calibration.

    Args:
      recipe, params: the field.
      windows: of runs that it was not fitted to.
      held_out: for each of them, indices of the windows to calibrate on.
      groups: for each of them, a label of each of these windows; the intervals then cover the given share of the weights in
        the worst group, not only in the mean. By default all are one group.

    Returns:
      The field with its intervals, and its forecasts of the ends of all windows.
    """
    forecasts = [forecast_windows(recipe, params._replace(half_width=UNIT), part) for part in windows]
    aheads = [jnp.log(part.moment(part.run, -1).step / part.moment(part.run, part.last).step) for part in windows]
    ratios, horizons = [], []
    for part, forecast, ahead, rows in zip(windows, forecasts, aheads, held_out, strict=True):
        error = np.abs(np.asarray(part.weights)[np.asarray(part.run), -1] - np.asarray(forecast.weights))
        ratios += list((error / np.asarray(forecast.upper - forecast.weights))[rows])
        horizons += np.asarray(ahead)[rows].tolist()
    labels = None if groups is None else [label for part in groups for label in part]
    half_width = conformal(ratios, horizons, labels, recipe.coverage)
    widened = [widen(half_width, ahead, forecast) for ahead, forecast in zip(aheads, forecasts, strict=True)]
    return params._replace(half_width=half_width), widened
