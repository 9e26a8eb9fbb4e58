"""Learning the dynamics of training: record runs, learn the field that moves their weights, forecast where they end.

Import what you need from its room: `gfm_jax.runs` records, `gfm_jax.forecasting` forecasts, `gfm_jax.weights` generates
weights, `gfm_jax.flows` learns flows. `gfm_jax.base` holds the records that all of them speak.
"""

from gfm_jax.base import Forecast, Forecaster, Horizon, Layout, Network, Task, Trajectory

__all__ = ["Forecast", "Forecaster", "Horizon", "Layout", "Network", "Task", "Trajectory", "__version__"]

__version__ = "0.1.0"
