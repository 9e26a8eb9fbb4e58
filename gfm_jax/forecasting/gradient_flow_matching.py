"""Gradient flow matching: learn the field that moves the weights, and follow it to where a run will end."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Forecast, Forecaster, Horizon, Layout, Learner, Trajectory, config_of
from gfm_jax.checks import check_choices, check_count
from gfm_jax.compiling import quick_jit
from gfm_jax.fitting import fit
from gfm_jax.forecasting.features import observe
from gfm_jax.forecasting.field import FieldParams, Move, check_widths, init_field
from gfm_jax.forecasting.forecaster import forecaster_of
from gfm_jax.forecasting.intervals import UNIT, HalfWidth, conformal, half_width_at, widen
from gfm_jax.forecasting.names import DIRECTIONS, KRYLOV, RUN, named, stacked
from gfm_jax.forecasting.objectives import draw_moves, function_space, weight_space
from gfm_jax.forecasting.prefix import horizon_at
from gfm_jax.forecasting.recipe import OBJECTIVES, Recipe, run_displacement
from gfm_jax.forecasting.windows import Windows, cut_all
from gfm_jax.pytrees import map_rows

__all__ = ["Params", "calibrate", "forecast_windows", "gradient_flow_matching"]


class Params(NamedTuple):
    """The field, the half width of its intervals, the layouts that it was fitted to, and whether it saw curvature."""

    field: FieldParams
    half_width: HalfWidth | None
    layouts: tuple[Layout, ...]
    has_curvature: Float[Array, ""] | float


def gradient_flow_matching(objective: str = "flow_map", **choices) -> Forecaster:
    r"""A forecaster that learns the optimizer-aware field of training.

    .. math:: \text{velocity}: \; \min_\theta E\,\omega|v_\theta(x_t, t) - \dot x_t|^2, \quad
       \text{flow map}: \; \min_\theta E\,\mathrm{huber}(\sqrt\omega\,(X_{s,t}(x_s) - x_t))

    .. math:: \text{self-distilled}: \; \min_\theta E\,\mathrm{huber}(\sqrt\omega\,(v_{t,t}(x_t) - \dot x_t)) +
       E\,\mathrm{huber}(\sqrt\omega\,\log(t/s)\,(\partial_t X_{s,t}(x_s) - \mathrm{sg}(v_{t,t}(X_{s,t}(x_s)))))

    with x the displacement since the last observed save, on the piecewise-linear interpolant of the recorded run (for a
    velocity in a Gaussian tube round it), and the logarithm of the sum of learning rates as the clock of velocities. Each
    also learns how far off its forecasts will be, which intervals are made of.

    Args:
      objective: "velocity", "flow_map", "self_distilled" or "function_space".
      **choices: any other field of `gradient_flow_recipe.Recipe`.

    Returns:
      `fit(key, runs, losses=None, *, calibration=None, start=None, folder=None, mesh=None, progress=None)`, where
      `calibration` are runs held out to calibrate intervals (without them there are none), and `start` are parameters to
      go on from; and `forecast(params, prefix, horizon)`. With `losses`, on data that the runs were trained on, the field
      also learns from its curvature, and forecasts best for a prefix with that of `forecasting.measure_curvature`; the
      objective in function space needs them. Runs for calibration are measured by the loss of the batch of their layout.

    Raises:
      ValueError: for an unknown objective, head or choice, numbers out of range, or without hidden layers; in `fit` where no
        run is left that is sound, for losses of another number, or for `start` of another width; in `forecast` as
        `forecasting.check_forecast`. In `fit` runs that are not sound are left out, with a warning that names them.

    Source: Shou, Ding, Gao (2025), arXiv 2505.20221, from its public description; the flow map and function-space
    objectives, the features and the heads are this library's.
    """
    check_choices(Recipe, choices)
    recipe = _hashable(Recipe(objective, **choices))
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    if not recipe.widths:
        raise ValueError("widths: expected those of at least one hidden layer, got none")
    for width in recipe.widths:
        check_count("widths", width)
    if recipe.head not in ("coordinate", "tensor"):
        raise ValueError(f"head: expected 'coordinate' or 'tensor', got {recipe.head!r}")
    _check_numbers(recipe)
    return forecaster_of(
        functools.partial(_fit, recipe), functools.partial(_forecast, recipe), lambda params: params.layouts
    )


def _hashable(recipe):
    """Lists as tuples: a recipe is a key of what is compiled."""
    as_tuple = lambda value: tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value
    return Recipe(*(as_tuple(value) for value in recipe))


def _check_numbers(recipe):
    for name in ("num_steps", "batch_size", "function_steps", "function_runs", "solver_steps"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(recipe, name)}")
    for name in ("share_now", "share_final"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(recipe, name)}")
    for name in ("peak_rate", "function_rate", "weight_decay", "weight", "tube"):
        if not getattr(recipe, name) >= 0:
            raise ValueError(f"{name}: expected at least 0, got {getattr(recipe, name)}")
    if not 0 < recipe.coverage < 1:
        raise ValueError(f"coverage: expected a share in (0, 1), got {recipe.coverage}")


# --- forecasts --------------------------------------------------------------------------------------------------------


def _forecast(recipe: Recipe, params: Params, prefix: Trajectory, horizon: Horizon) -> Forecast:
    if prefix.curvature is not None:  # what was fitted without must not see one
        prefix = prefix._replace(curvature=jax.tree.map(lambda leaf: params.has_curvature * leaf, prefix.curvature))
    features = stacked(observe(prefix))
    if prefix.curvature is None:  # its directions are zero: left out, they cost nothing
        offered = {name: array for name, array in features.directions.items() if name not in KRYLOV}
        features = features._replace(directions=offered)
    return _from_features(recipe, params, features, horizon_at(prefix, -1), horizon)


def _from_features(recipe, params, features, now, horizon) -> Forecast:
    step = Move(features, now, now, horizon, jnp.zeros_like(features.scale))
    moved, log_error = run_displacement(recipe, params.field, step)
    weights = features.origin + features.scale * moved
    if params.half_width is None:
        return Forecast(weights)
    margin = half_width_at(params.half_width, jnp.log(horizon.step / now.step)) * features.scale * jnp.exp(log_error)
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
        features, run, last = window
        features = features._replace(directions=named(features.directions, DIRECTIONS))
        now, then = (windows.moment(run, k) for k in (last, save))
        return _from_features(recipe, params, features, now, then)

    return map_rows(one, (windows.features, windows.run, windows.last), batch_size=8)


# --- fitting ----------------------------------------------------------------------------------------------------------


def _fit(
    recipe: Recipe,
    key: Array,
    runs: Sequence[Trajectory | Windows] | Trajectory | Windows,
    losses: Sequence[Callable] | Callable | None = None,
    *,
    calibration: Sequence[Trajectory] | Trajectory = (),
    start: Params | None = None,
    folder=None,
    mesh=None,
    progress: str | bool = False,
) -> Params:
    in_function_space = recipe.objective == "function_space"
    losses = (losses,) if callable(losses) else losses
    if in_function_space and not losses:
        raise ValueError(f"losses: expected one for each batch of runs, for a fit in function space, got {losses}")
    windows = cut_all(runs, recipe.fractions, recipe.withheld, losses)
    key_function = jax.random.split(key, 3)[2] if start is None else key  # the first fit has the other two
    layouts = tuple(dict.fromkeys(part.layout for part in windows))
    options = {"mesh": mesh, "progress": progress}
    if start is None:
        sample, loss, optimizer = weight_space(recipe)
        learner = Learner(
            functools.partial(_init, _of_start(recipe)), sample, loss, config_of("weight_space", recipe=recipe)
        )
        options |= {"folder": None if folder is None else f"{folder}/weight_space"}
        field, _ = fit(key, learner, windows, optimizer=optimizer, num_steps=recipe.num_steps, **options)
    else:
        field = start.field
        check_widths(recipe.widths, field)
    if in_function_space:
        sample, loss, optimizer = function_space(recipe, tuple(losses))
        learner = Learner(
            lambda key, data: field, sample, loss, config_of("function_space", recipe=recipe, losses=tuple(losses))
        )
        options |= {"folder": None if folder is None else f"{folder}/function_space"}
        num_steps = recipe.function_steps
        field, _ = fit(key_function, learner, windows, optimizer=optimizer, num_steps=num_steps, start=field, **options)
    has_curvature = max(float(named(part.features.run, RUN)["has_curvature"].max()) for part in windows)
    params = Params(field, None, layouts, has_curvature)
    if calibration is None or (not isinstance(calibration, Trajectory) and not len(calibration)):
        return params
    calibration = [calibration] if isinstance(calibration, Trajectory) else list(calibration)
    loss_of = {} if losses is None else dict(zip((part.layout for part in windows), losses, strict=True))
    loss_of = [loss_of.get(part.layout) for part in calibration]
    held_out = cut_all(calibration, recipe.fractions, losses=loss_of, name="calibration")
    return calibrate(recipe, params, held_out, [np.arange(len(part.run)) for part in held_out])[0]


def _of_start(recipe):
    # A field starts the same whatever it is to learn and for how long; the other choices would only make it compile again.
    chosen = ("head", "widths", "batch_size", "share_now", "share_final")
    return Recipe(**{name: getattr(recipe, name) for name in chosen})


# Looked at once: it would take longer to optimise than to run.
def _init(recipe, key, windows):
    key_network, key_example = jax.random.split(key)
    example = draw_moves(recipe, key_example, windows)[0]  # jumps: what every objective is asked for in the end
    return init_field(key_network, recipe.head, recipe.widths, example)


_init = quick_jit(_init, static_argnums=0)


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
