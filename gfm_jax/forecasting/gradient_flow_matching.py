"""Gradient flow matching: learn the field that moves the weights, and follow it to where a run will end."""

import functools
from collections.abc import Sequence
from typing import Literal

import jax

from gfm_jax.base import Defaults, Forecaster
from gfm_jax.checks import check_count
from gfm_jax.forecasting.field_forecaster import FEATURE_DROPOUT, FRACTIONS, Losses, field_forecaster, in_order
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

__all__ = ["flow_map", "function_space", "gradient_flow_matching", "self_distilled"]

IN_FUNCTION_SPACE = Defaults(400, 5e-4, functools.partial(field_optimizer, weight_decay=1e-4), 0.99)


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
    return field_forecaster("flow_map", draw_moves, flow_map_loss, draws, own, **of_field)


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
    return field_forecaster("gradient_flow_matching", draw_path, velocity_loss, draws, own, **of_field)


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
    return field_forecaster(
        "self_distilled", draw_path_and_moves, self_distilled_loss, draws, draws._asdict(), **of_field
    )


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
    num_runs, losses = check_count("num_runs", num_runs), in_order(losses)
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
    return field_forecaster("function_space", sample, loss, draws, own, defaults=IN_FUNCTION_SPACE, **of_field)
