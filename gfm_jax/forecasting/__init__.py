"""Where will this run end? Forecasters of the weights, from what was observed of a training run."""

from gfm_jax.forecasting import baselines, gate, nowcast
from gfm_jax.forecasting.calibration import calibrate
from gfm_jax.forecasting.curvature import curvature_at, measure_curvature
from gfm_jax.forecasting.displacement import (
    function_space_loss,
    laplace_nll,
    relative_huber,
    relative_l1,
    relative_squared_error,
)
from gfm_jax.forecasting.draws import draw_pairs, draw_windows
from gfm_jax.forecasting.drift import Drift, drift_by_layer
from gfm_jax.forecasting.evidence import log_of_loss
from gfm_jax.forecasting.features import from_first_motion, line_weights, observe
from gfm_jax.forecasting.field import Coefficients, FieldKind, FieldParams, Move, init_field, move
from gfm_jax.forecasting.field_forecaster import forecast_windows
from gfm_jax.forecasting.forecaster import forecast
from gfm_jax.forecasting.gradient_flow_matching import flow_map, function_space, gradient_flow_matching, self_distilled
from gfm_jax.forecasting.inputs import as_run
from gfm_jax.forecasting.names import DIRECTIONS
from gfm_jax.forecasting.optimizer_flow import optimizer_flow
from gfm_jax.forecasting.prefix import horizon_at, horizon_at_step, prefix_of, save_at
from gfm_jax.forecasting.validation import check_forecast, is_forecastable, sound_runs
from gfm_jax.forecasting.windows import Windows, cut, cut_all, merge, thin

__all__ = [
    "Coefficients",
    "DIRECTIONS",
    "Drift",
    "FieldKind",
    "FieldParams",
    "Move",
    "Windows",
    "as_run",
    "baselines",
    "calibrate",
    "check_forecast",
    "curvature_at",
    "cut",
    "cut_all",
    "draw_pairs",
    "draw_windows",
    "drift_by_layer",
    "flow_map",
    "forecast",
    "forecast_windows",
    "from_first_motion",
    "function_space",
    "function_space_loss",
    "gate",
    "gradient_flow_matching",
    "horizon_at",
    "horizon_at_step",
    "init_field",
    "is_forecastable",
    "laplace_nll",
    "line_weights",
    "log_of_loss",
    "measure_curvature",
    "merge",
    "move",
    "nowcast",
    "observe",
    "optimizer_flow",
    "prefix_of",
    "relative_huber",
    "relative_l1",
    "relative_squared_error",
    "save_at",
    "self_distilled",
    "sound_runs",
    "thin",
]
