"""The choices of gradient flow matching, and the moves that a field makes under them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Horizon
from gfm_jax.flows import jump
from gfm_jax.forecasting.field import FieldParams, Move, move
from gfm_jax.solve import solve_flow

__all__ = ["OBJECTIVES", "Recipe", "clock", "displacement", "run_displacement", "solved_displacement"]

OBJECTIVES = ("velocity", "flow_map", "self_distilled", "function_space")


class Recipe(NamedTuple):
    """How a field is fitted.

    Attributes:
      objective: "velocity" (conditional flow matching, followed by an ODE solver), "flow_map" (any horizon in one call),
        "self_distilled" (the flow map of a velocity, by Lagrangian self-distillation: where runs come to is learned from
        how they move), or "function_space" (the flow map, tuned on the loss at the forecast weights).
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
      tube: width, in units of the features' scale, of the Gaussian tube round the path in which a velocity is learned: what
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
        ("curvature",),
        ("state", "gradient", "loss", "mean_weights", "curvature"),
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


def clock(now: Horizon, moment: Horizon) -> Float[Array, "*n"]:
    """Flow time: 0 at the last observed save, 1 in the far future; 0 as long as all rates were 0."""
    return 1 - jnp.where(moment.time > 0, now.time / jnp.where(moment.time > 0, moment.time, 1), 1)


def log_time(now: Horizon, moment: Horizon) -> Float[Array, "*n"]:
    """The clock of velocities, finite also where the rates were 0 until now."""
    return jnp.log(jnp.maximum(moment.time, jnp.maximum(1e-6 * now.time, 1e-30)))


def displacement(recipe: Recipe, field: FieldParams, step: Move) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Displacement at t in one jump from s, and the logarithm of its expected error, in units of the features' scale."""
    mean_velocity, log_error = move(recipe.head, recipe.widths, field, step)
    return jump(clock(step.now, step.s), clock(step.now, step.t), step.x_s, mean_velocity), log_error


def solved_displacement(recipe: Recipe, field: FieldParams, step: Move) -> Float[Array, "*n"]:
    """Displacement at t by an ODE solver, in the clock log(time) and in units of the features' scale; steps and rates
    between the two moments are taken as linear in time."""
    import diffrax  # on first use: it takes half a second

    elapsed = step.t.time - step.s.time
    start, end = (log_time(step.now, moment) for moment in (step.s, step.t))

    def velocity(log_time, x):
        share = (jnp.exp(log_time) - step.s.time) / jnp.where(elapsed > 0, elapsed, 1)
        moment = jax.tree.map(lambda a, b: a + share * (b - a), step.s, step.t)
        return move(recipe.head, recipe.widths, field, step._replace(s=moment, t=moment, x_s=x))[0]

    x_t, _ = solve_flow(velocity, step.x_s, start, end, num_steps=recipe.solver_steps, solver=diffrax.Heun())
    return x_t


def run_displacement(
    recipe: Recipe, field: FieldParams, step: Move
) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """Displacement at t of every weight of a run, solved where the recipe learns a velocity, and the logarithm of its
    expected error, in units of the features' scale."""
    moved, log_error = displacement(recipe, field, step)
    if recipe.objective == "velocity":
        moved = solved_displacement(recipe, field, step)
    return moved, log_error
