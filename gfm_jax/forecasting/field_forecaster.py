"""The forecaster of a field: how it is made from a draw and a loss, and how its parameters forecast."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Defaults, Forecast, Horizon, Layout, Learner, Trajectory, config_of
from gfm_jax.checks import check_count
from gfm_jax.compiling import quick_jit
from gfm_jax.forecasting.features import observe
from gfm_jax.forecasting.field import FieldKind, FieldParams, Move, init_field, widths_of
from gfm_jax.forecasting.follow import run_displacement
from gfm_jax.forecasting.forecaster import forecaster_of
from gfm_jax.forecasting.intervals import HalfWidth, half_width_at
from gfm_jax.forecasting.names import DIRECTIONS, KRYLOV, RUN, named, stacked
from gfm_jax.forecasting.objectives import draw_moves, field_optimizer
from gfm_jax.forecasting.prefix import horizon_at
from gfm_jax.forecasting.windows import Windows, cut_all
from gfm_jax.pytrees import map_rows

__all__ = [
    "DEFAULTS",
    "FEATURE_DROPOUT",
    "FRACTIONS",
    "Losses",
    "Params",
    "field_forecaster",
    "forecast_windows",
    "in_order",
]

FRACTIONS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
FEATURE_DROPOUT = (
    ("mu", "trace"),
    ("state",),
    ("curvature",),
    ("state", "gradient", "loss", "mean_weights", "curvature"),
)
DEFAULTS = Defaults(num_steps=4000, learning_rate=3e-3, optimizer=field_optimizer, ema_decay=0.99)
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


def in_order(losses):
    """Losses as a tuple; one function as a tuple of one."""
    return (losses,) if callable(losses) else losses and tuple(losses)


def field_forecaster(
    method, draw, loss_of_field, draws, own, *, head, widths, losses, fractions, feature_dropout, defaults=DEFAULTS
):
    """The forecaster of a field that is learned by `loss_of_field(field, batch)` of `draw(draws, key, windows)`.

    `own` are the method's choices beside those that all have.
    """
    if head not in ("coordinate", "tensor"):
        raise ValueError(f"head: expected 'coordinate' or 'tensor', got {head!r}")
    widths, fractions, feature_dropout = tuple(widths), tuple(fractions), tuple(map(tuple, feature_dropout))
    losses, kind = in_order(losses), FieldKind(head, own.get("num_solver_steps"))
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

    >>> from gfm_jax.forecasting import flow_map
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
