"""Following a field from one moment of a run to another: in one step of its flow map, or by an ODE solver."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Horizon
from gfm_jax.flows import flow_map_step
from gfm_jax.forecasting.field import FieldParams, Move, move
from gfm_jax.solve import solve_flow

__all__ = ["clock", "displacement", "log_time", "run_displacement", "solved_displacement"]


def clock(now: Horizon, moment: Horizon) -> Float[Array, "*n"]:
    """Flow time: 0 at the last observed save, 1 in the far future; 0 as long as all rates were 0."""
    return 1 - jnp.where(moment.time > 0, now.time / jnp.where(moment.time > 0, moment.time, 1), 1)


def log_time(now: Horizon, moment: Horizon) -> Float[Array, "*n"]:
    """The clock of velocities, finite also where the rates were 0 until now."""
    return jnp.log(jnp.maximum(moment.time, jnp.maximum(1e-6 * now.time, 1e-30)))


def displacement(field: FieldParams, step: Move) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Displacement at t in one step from s, and the logarithm of its expected error, in units of the features' scale."""
    mean_velocity, log_error = move(field, step)
    return flow_map_step(clock(step.now, step.s), clock(step.now, step.t), step.x_s, mean_velocity), log_error


def solved_displacement(field: FieldParams, step: Move) -> Float[Array, "*n"]:
    """Displacement at t by an ODE solver, in the clock log(time) and in units of the features' scale; steps and rates
    between the two moments are taken as linear in time."""
    import diffrax  # on first use: it takes half a second

    assert field.kind.num_solver_steps is not None
    elapsed = step.t.time - step.s.time
    start, end = (log_time(step.now, moment) for moment in (step.s, step.t))

    def velocity(log_time, x):
        fraction = (jnp.exp(log_time) - step.s.time) / jnp.where(elapsed > 0, elapsed, 1)
        moment = jax.tree.map(lambda a, b: a + fraction * (b - a), step.s, step.t)
        return move(field, step._replace(s=moment, t=moment, x_s=x))[0]

    x_t, _ = solve_flow(velocity, step.x_s, start, end, num_steps=field.kind.num_solver_steps, solver=diffrax.Heun())
    return x_t


def run_displacement(field: FieldParams, step: Move) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """Displacement at t of every weight of a run, by a solver where the field is a velocity, and the logarithm of its
    expected error, in units of the features' scale."""
    moved, log_error = displacement(field, step)
    if field.kind.num_solver_steps is not None:
        moved = solved_displacement(field, step)
    return moved, log_error
