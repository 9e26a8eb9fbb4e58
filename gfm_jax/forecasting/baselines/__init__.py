"""The simple ways to say where a run will end, from the prefix alone."""

from gfm_jax.forecasting.baselines.combinations import lawa, lawa_half_log, linear, log_time, persistence, sqrt_time
from gfm_jax.forecasting.baselines.lfd2 import lfd2
from gfm_jax.forecasting.baselines.modes import dmd, exponential, rank1

__all__ = [
    "dmd",
    "exponential",
    "lawa",
    "lawa_half_log",
    "lfd2",
    "linear",
    "log_time",
    "persistence",
    "rank1",
    "sqrt_time",
]
