"""Gradient flow matching: learn the field that moves the weights, and follow it to where a run will end."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Defaults, Forecast, Forecaster, Horizon, Layout, Learner, Trajectory, config_of
from gfm_jax.checks import check_count
from gfm_jax.compiling import quick_jit
from gfm_jax.forecasting.features import observe
from gfm_jax.forecasting.field import FieldKind, FieldParams, Move, init_field, widths_of
from gfm_jax.forecasting.follow import run_displacement
from gfm_jax.forecasting.forecaster import forecaster_of
from gfm_jax.forecasting.intervals import UNIT, HalfWidth, conformal, half_width_at, widen
from gfm_jax.forecasting.names import DIRECTIONS, KRYLOV, RUN, named, stacked
from gfm_jax.forecasting.objectives import (
    Draws,
    draw_moves,
    draw_path,
    draw_path_and_moves,
    draw_runs,
    field_optimizer,
    flow_map_loss,
    loss_of_forecasts,
    self_distilled_loss,
    velocity_loss,
)
from gfm_jax.forecasting.prefix import horizon_at
from gfm_jax.forecasting.windows import Windows, cut_all
from gfm_jax.pytrees import map_rows

__all__ = [
    "FEATURE_DROPOUT",
    "FRACTIONS",
    "Params",
    "calibrate",
    "calibrate_windows",
    "flow_map",
    "forecast_windows",
    "function_space",
    "gradient_flow_matching",
    "self_distilled",
]

FRACTIONS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
FEATURE_DROPOUT = (
    ("mu", "trace"),
    ("state",),
    ("curvature",),
    ("state", "gradient", "loss", "mean_weights", "curvature"),
)
DEFAULTS = Defaults(num_steps=4000, learning_rate=3e-3, optimizer=field_optimizer, ema_decay=0.99)
IN_FUNCTION_SPACE = Defaults(400, 5e-4, functools.partial(field_optimizer, weight_decay=1e-4), 0.99)
Losses = Sequence[Callable[[Array], Array]] | Callable[[Array], Array]


class Params(NamedTuple):
    """The parts of the field, the half width of its intervals, the layouts that it was fitted to, and whether it saw
    curvature."""

    network: PyTree
    shift: Float[Array, " features"]
    spread: Float[Array, " features"]
    kind: FieldKind
    half_width: HalfWidth | None
    layouts: tuple[Layout, ...]
    has_curvature: Float[Array, ""]

    @property
    def field(self) -> FieldParams:
        return FieldParams(self.network, self.shift, self.spread, self.kind)


# --- methods ----------------------------------------------------------------------------------------------------------


def flow_map(
    *,
    head: Literal["coordinate", "tensor"] = "coordinate",
    widths: Sequence[int] = (128, 128),
    losses: Losses | None = None,
    fractions: Sequence[float] = FRACTIONS,
    feature_dropout: Sequence[Sequence[str]] = FEATURE_DROPOUT,
    now_probability: float = 0.75,
    final_probability: float = 0.5,
    batch_size: int = 2048,
) -> Forecaster:
    r"""A forecaster that learns the flow map of training: any horizon in one evaluation of its field.

    .. math:: \min_\theta E\,\mathrm{huber}\left(\sqrt\omega\,(X_{s,t}(x_s) - x_t)\right)

    with x the displacement since the last observed save of a recorded run. It also learns how far off its forecasts will be, of
    which `calibrate` makes intervals. Use it first; `function_space` goes on from it where a loss is at hand.

    Args:
      head: "coordinate" (coefficients for every weight) or "tensor" (for every tensor: cheap, and nearly as good).
      widths: of the hidden layers of the field's network, at least one.
      losses: of each batch of runs, `weights [dim] -> scalar`, on data that the runs were trained on: the field then learns
        from the curvature too, and forecasts best for a prefix with that of `forecasting.measure_curvature`.
      fractions: fractions of a run that are observed in training, each in (0, 1).
      feature_dropout: sets of parts of a record that are hidden in turn from some of the windows, so that the field learns to
        do without what another optimizer does not have, or a user did not record.
      now_probability: of a pair of moments that starts at the last observed save, in [0, 1]; the others start beyond it.
      final_probability: of a pair that ends at the end of the run, in [0, 1]; the others end before it.
      batch_size: coordinates in a batch.

    Returns:
      A forecaster, fitted by `fit(key, forecaster, runs)` to a batch of runs, or to several of one layout each; runs that are
      not sound are left out, with a warning that names them.

    Raises:
      ValueError: for an unknown head, numbers out of range, or without hidden layers; in a fit where no run is left that is
        sound, for losses of another number, or for a `start` of another field.

    >>> import gfm_jax as gfm, jax, jax.numpy as jnp, optax
    >>> task = gfm.linear_regression(jax.random.key(0), 20, 3)
    >>> keys, rates = jax.random.split(jax.random.key(1), 8), jnp.full((8, 40), 0.1)
    >>> runs = gfm.record(keys, task, optax.sgd, rates, gfm.save_steps(40, 20))
    >>> forecaster = gfm.forecasting.flow_map(widths=(8,), batch_size=64)
    >>> params, info = gfm.fit(jax.random.key(2), forecaster, runs, num_steps=2)
    >>> gfm.forecast(forecaster, params, runs, observed=0.5).weights.shape
    (8, 3)

    A learned field of training is the idea of Shou, Ding, Gao (2025), arXiv 2505.20221; flow maps, features and heads are this
    library's.
    """
    own = {"batch_size": batch_size, "now_probability": now_probability, "final_probability": final_probability}
    draws = Draws(**own)
    of_field = {
        "head": head, "widths": widths, "losses": losses, "fractions": fractions, "feature_dropout": feature_dropout,
    }  # fmt: skip
    return _forecaster("flow_map", draw_moves, flow_map_loss, draws, own, **of_field)


def gradient_flow_matching(
    *,
    head: Literal["coordinate", "tensor"] = "coordinate",
    widths: Sequence[int] = (128, 128),
    losses: Losses | None = None,
    fractions: Sequence[float] = FRACTIONS,
    feature_dropout: Sequence[Sequence[str]] = FEATURE_DROPOUT,
    now_probability: float = 0.75,
    final_probability: float = 0.5,
    batch_size: int = 2048,
    path_noise: float = 2.0,
    num_solver_steps: int = 3,
) -> Forecaster:
    r"""A forecaster that learns the velocity of training by conditional flow matching, and follows it by an ODE solver.

    .. math:: \min_\theta E\,\omega |v_\theta(x_t, t) - \dot x_t|^2

    on the piecewise-linear interpolant of a recorded run with Gaussian noise round it, in the clock log(sum of learning rates).

    Args:
      head, widths, losses, fractions, feature_dropout, now_probability, final_probability, batch_size: as in `flow_map`.
      path_noise: width of the noise round the path, in units of the features' scale, at least 0.
      num_solver_steps: steps of Heun's method to a horizon, at least 1.

    Returns, raises: as `flow_map`.

    >>> forecaster = gradient_flow_matching(widths=(8,), num_solver_steps=2)
    >>> forecaster.learner.defaults.num_steps  # of `fit(key, forecaster, runs)`
    4000

    Source: Shou, Ding, Gao (2025), arXiv 2505.20221, from its public description.
    """
    draws = Draws(batch_size, now_probability, final_probability, path_noise)
    num_solver_steps = check_count("num_solver_steps", num_solver_steps)
    of_field = {
        "head": head, "widths": widths, "losses": losses, "fractions": fractions, "feature_dropout": feature_dropout,
    }  # fmt: skip
    own = draws._asdict() | {"num_solver_steps": num_solver_steps}
    return _forecaster("gradient_flow_matching", draw_path, velocity_loss, draws, own, **of_field)


def self_distilled(
    *,
    head: Literal["coordinate", "tensor"] = "coordinate",
    widths: Sequence[int] = (128, 128),
    losses: Losses | None = None,
    fractions: Sequence[float] = FRACTIONS,
    feature_dropout: Sequence[Sequence[str]] = FEATURE_DROPOUT,
    now_probability: float = 0.75,
    final_probability: float = 0.5,
    batch_size: int = 2048,
    path_noise: float = 2.0,
) -> Forecaster:
    r"""A forecaster that learns where runs come to from how they move: the flow map of a velocity, by self-distillation.

    .. math:: \min_\theta E\,\mathrm{huber}(\sqrt\omega\,(v_{t,t}(x_t) - \dot x_t)) +
       E\,\mathrm{huber}(\sqrt\omega\,\log(t/s)\,(\partial_t X_{s,t}(x_s) - \mathrm{sg}(v_{t,t}(X_{s,t}(x_s)))))

    Args:
      head, widths, losses, fractions, feature_dropout, now_probability, final_probability, batch_size: as in `flow_map`.
      path_noise: as in `gradient_flow_matching`.

    Returns, raises: as `flow_map`.

    >>> forecaster = self_distilled(widths=(8,), head="tensor")
    >>> forecaster.learner.defaults.num_steps  # of `fit(key, forecaster, runs)`
    4000

    Lagrangian self-distillation, arXiv 2505.18825, of training runs.
    """
    draws = Draws(batch_size, now_probability, final_probability, path_noise)
    of_field = {
        "head": head, "widths": widths, "losses": losses, "fractions": fractions, "feature_dropout": feature_dropout,
    }  # fmt: skip
    return _forecaster("self_distilled", draw_path_and_moves, self_distilled_loss, draws, draws._asdict(), **of_field)


def function_space(
    losses: Losses | None = None,
    *,
    head: Literal["coordinate", "tensor"] = "coordinate",
    widths: Sequence[int] = (128, 128),
    fractions: Sequence[float] = FRACTIONS,
    feature_dropout: Sequence[Sequence[str]] = FEATURE_DROPOUT,
    final_probability: float = 0.5,
    num_runs: int = 6,
    weight: float = 0.15,
) -> Forecaster:
    r"""A flow map that is tuned on the loss at the forecast weights; go on from a fitted `flow_map` by `fit(start=params)`.

    .. math:: \log \frac{L(\hat w) + \epsilon}{L(w_n) + \epsilon} + \lambda \, e

    with e the relative squared error of the weights, as `function_space_loss` has it.

    Args:
      losses: of each batch of runs, `weights [dim] -> scalar`. Needed in a fit.
      head, widths, fractions, feature_dropout, final_probability: as in `flow_map`.
      num_runs: whole runs in a batch, at least 1.
      weight: lambda, at least 0.

    Returns, raises: as `flow_map`.

    >>> forecaster = function_space(lambda weights: jnp.sum(weights**2), widths=(8,))
    >>> forecaster.learner.defaults.num_steps  # of `fit(key, forecaster, runs, start=params)`
    400
    """
    if not weight >= 0:
        raise ValueError(f"weight: expected at least 0, got {weight}")
    num_runs, losses = check_count("num_runs", num_runs), _in_order(losses)
    draws = Draws(2048, 0.75, final_probability)  # of the moves that features are standardised by
    num = max(num_runs // max(len(losses or ()), 1), 1)

    def sample(draws, key, windows):
        keys = jax.random.split(key, len(windows))
        parts = zip(keys, windows, strict=True)
        return [draw_runs(key, part, num, draws.final_probability) for key, part in parts]

    own = {"losses": losses, "final_probability": final_probability, "num_runs": num_runs, "weight": weight}
    of_field = {
        "head": head, "widths": widths, "losses": losses, "fractions": fractions, "feature_dropout": feature_dropout,
    }  # fmt: skip
    loss = functools.partial(loss_of_forecasts, losses or (), weight)
    return _forecaster("function_space", sample, loss, draws, own, defaults=IN_FUNCTION_SPACE, **of_field)


def _in_order(losses):
    """Losses as a tuple; one function as a tuple of one."""
    return (losses,) if callable(losses) else losses and tuple(losses)


def _forecaster(
    method, draw, loss_of_field, draws, own, *, head, widths, losses, fractions, feature_dropout, defaults=DEFAULTS
):
    """The forecaster of a field that is learned by `loss_of_field(field, batch)` of `draw(draws, key, windows)`.

    `own` are the method's choices beside those that all have.
    """
    if head not in ("coordinate", "tensor"):
        raise ValueError(f"head: expected 'coordinate' or 'tensor', got {head!r}")
    widths, fractions, feature_dropout = tuple(widths), tuple(fractions), tuple(map(tuple, feature_dropout))
    losses, kind = _in_order(losses), FieldKind(head, own.get("num_solver_steps"))
    if not widths:
        raise ValueError("widths: expected those of at least one hidden layer, got none")
    for width in widths:
        check_count("widths", width)
    check_count("batch_size", draws.batch_size)
    for name in ("now_probability", "final_probability"):
        if not 0 <= getattr(draws, name) <= 1:
            raise ValueError(f"{name}: expected a probability in [0, 1], got {getattr(draws, name)}")
    if not draws.path_noise >= 0:
        raise ValueError(f"path_noise: expected at least 0, got {draws.path_noise}")

    def prepare(key, runs):
        if "losses" in own and not losses:
            raise ValueError(f"losses: expected one for each batch of runs, for a fit in function space, got {losses}")
        return cut_all(runs, fractions, feature_dropout, losses)

    def about(field: FieldParams, windows):
        layouts = tuple(dict.fromkeys(part.layout for part in windows))
        has_curvature = jnp.stack([named(part.features.run, RUN)["has_curvature"].max() for part in windows]).max()
        return Params(*field, None, layouts, has_curvature)

    def resume(start, windows):
        if (start.kind, widths_of(start.field)) != (kind, widths):
            got = f"{start.kind} of widths {widths_of(start.field)}"
            raise ValueError(f"start: expected {kind} of widths {widths}, got {got}")
        return about(start.field, windows)

    of_all = {"head": head, "widths": widths, "fractions": fractions, "feature_dropout": feature_dropout}
    learner = Learner(
        init=lambda key, windows: about(_init(kind, widths, draws, key, windows), windows),
        sample=functools.partial(draw, draws),
        loss=lambda params, key, batch: (loss_of_field(params.field, batch), {}),
        config=config_of(f"forecasting.{method}", **of_all, **own),
        defaults=defaults,
        prepare=prepare,
        resume=resume,
        frozen=("shift", "spread", "has_curvature"),
    )
    return forecaster_of(learner, functools.partial(_forecast, kind), lambda params: params.layouts)


# Looked at once: it would take longer to optimise than to run.
def _init(kind, widths, draws, key, windows):
    key_network, key_example = jax.random.split(key)
    example = draw_moves(draws, key_example, windows)[0]  # what every method is asked for in the end
    return init_field(key_network, kind, widths, example)


_init = quick_jit(_init, static_argnums=(0, 1, 2))


# --- forecasts --------------------------------------------------------------------------------------------------------


def _forecast(kind: FieldKind, params: Params, prefix: Trajectory, horizon: Horizon) -> Forecast:
    if params.kind != kind:
        raise ValueError(f"params: expected those of {kind}, got {params.kind}")
    if prefix.curvature is not None:  # what was fitted without must not see one
        prefix = prefix._replace(curvature=jax.tree.map(lambda leaf: params.has_curvature * leaf, prefix.curvature))
    features = stacked(observe(prefix))
    if prefix.curvature is None:  # its directions are zero: left out, they cost nothing
        assert isinstance(features.directions, dict)
        offered = {name: array for name, array in features.directions.items() if name not in KRYLOV}
        features = features._replace(directions=offered)
    return _from_features(params, features, horizon_at(prefix, -1), horizon)


def _from_features(params, features, now, horizon) -> Forecast:
    step = Move(features, now, now, horizon, jnp.zeros_like(features.scale))
    moved, log_error = run_displacement(params.field, step)
    weights = features.origin + features.scale * moved
    if params.half_width is None:
        return Forecast(weights)
    margin = half_width_at(params.half_width, jnp.log(horizon.step / now.step)) * features.scale * jnp.exp(log_error)
    return Forecast(weights, weights - margin, weights + margin)


def forecast_windows(params: Params, windows: Windows, save: int = -1) -> Forecast:
    """Forecasts of a save of every window's run, by default its end, [windows, dim], in one compiled call for all saves and
    all optimizers of a layout.

    Args:
      params: as `fit` returns them.
      windows: of runs of one layout.
      save: index of the save to forecast, beyond the last observed one of every window; negative from the end.

    >>> step, layout = jnp.tile(jnp.arange(21), (8, 1)), Layout(("",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=step[..., None] * jnp.ones(3), layout=layout)
    >>> windows = cut_all(runs, (0.5,))
    >>> params = flow_map(widths=(8,)).learner.init(jax.random.key(0), windows)  # not fitted, a field stands still
    >>> forecast_windows(params, windows[0]).weights[0].tolist()
    [10.0, 10.0, 10.0]
    """
    return _forecast_windows(params._replace(layouts=()), windows, save)


@jax.jit
def _forecast_windows(params, windows, save):
    def one(window):
        features, run, last = window
        features = features._replace(directions=named(features.directions, DIRECTIONS))
        now, then = (windows.moment(run, k) for k in (last, save))
        return _from_features(params, features, now, then)

    return map_rows(one, (windows.features, windows.run, windows.last), batch_size=8)


# --- intervals --------------------------------------------------------------------------------------------------------


def calibrate(
    params: Params,
    runs: Sequence[Trajectory | Windows] | Trajectory | Windows,
    *,
    losses: Sequence[Callable] | Callable | None = None,
    fractions: Sequence[float] = FRACTIONS,
    coverage: float = 0.9,
) -> Params:
    """Gives a fitted field intervals, forecast +- q(m/n) * expected error, from runs that it was not fitted to.

    Args:
      params: as `fit` returns them.
      runs: held out from the fit: a batch of runs, or several of one layout each; at least 9 for a coverage of .9.
      losses: for each batch, `weights [dim] -> scalar`, where the field was fitted with losses.
      fractions: fractions of a run that are observed, each in (0, 1).
      coverage: the probability with which a weight of a new run, such as these, is covered, in (0, 1).

    Returns:
      The parameters, whose forecasts have `lower` and `upper`.

    Raises:
      ValueError: for runs of which none is sound, fewer runs than the coverage needs, or a coverage outside (0, 1).

    >>> step, layout = jnp.tile(jnp.arange(21), (8, 1)), Layout(("",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=step[..., None] * jnp.ones(3), layout=layout)
    >>> windows = cut_all(runs, (0.5,))
    >>> params = flow_map(widths=(8,)).learner.init(jax.random.key(0), windows)  # not fitted, a field stands still
    >>> calibrate(params, windows, coverage=0.5).half_width.value.round().tolist()  # off by 10, in units of 5
    [2.0]
    """
    windows = cut_all(runs, fractions, losses=losses)
    return calibrate_windows(params, windows, [np.arange(len(part.run)) for part in windows], coverage=coverage)[0]


def calibrate_windows(
    params: Params,
    windows: Sequence[Windows],
    held_out: Sequence[np.ndarray],
    groups: Sequence[Sequence] | None = None,
    coverage: float = 0.9,
) -> tuple[Params, list[Forecast]]:
    """Gives a field its intervals, forecast +- q(m/n) * expected error, by `conformal` calibration.

    Args:
      params: the field.
      windows: of runs that it was not fitted to.
      held_out: for each of them, indices of the windows to calibrate on.
      groups: for each of them, a label of each of these windows; the intervals are then widened until they cover the given
        fraction of the weights of these windows in the worst group, not only in the mean.
      coverage: as in `calibrate`.

    Returns:
      The field with its intervals, and its forecasts of the ends of all windows.
    """
    forecasts = [forecast_windows(params._replace(half_width=UNIT), part) for part in windows]
    aheads = [jnp.log(part.moment(part.run, -1).step / part.moment(part.run, part.last).step) for part in windows]
    ratios, horizons, runs = [], [], []
    for i, (part, forecast, ahead, rows) in enumerate(zip(windows, forecasts, aheads, held_out, strict=True)):
        error = np.abs(np.asarray(part.weights)[np.asarray(part.run), -1] - np.asarray(forecast.weights))
        assert forecast.upper is not None
        ratios += list((error / np.asarray(forecast.upper - forecast.weights))[rows])
        horizons += np.asarray(ahead)[rows].tolist()
        runs += [(i, run) for run in np.asarray(part.run)[rows].tolist()]
    labels = None if groups is None else [label for part in groups for label in part]
    half_width = conformal(ratios, horizons, runs, labels, coverage)
    widened = [widen(half_width, ahead, forecast) for ahead, forecast in zip(aheads, forecasts, strict=True)]
    return params._replace(half_width=half_width), widened
