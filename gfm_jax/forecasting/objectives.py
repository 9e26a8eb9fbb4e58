"""What a field is fitted to: batches of recorded moves, and losses of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Horizon
from gfm_jax.flows import flow_matching_loss, interpolate, lagrangian, linear
from gfm_jax.forecasting.displacement import function_space_loss, laplace_nll, relative_huber
from gfm_jax.forecasting.draws import draw_pairs, draw_windows
from gfm_jax.forecasting.field import FieldParams, Move, move
from gfm_jax.forecasting.follow import clock, displacement, log_time, run_displacement, solved_displacement
from gfm_jax.forecasting.names import DIRECTIONS, named
from gfm_jax.forecasting.windows import Windows

__all__ = [
    "Draws",
    "draw_moves",
    "draw_path",
    "draw_path_and_moves",
    "draw_runs",
    "field_optimizer",
    "flow_map_loss",
    "lagrangian_residual",
    "loss_of_forecasts",
    "self_distilled_loss",
    "velocity_loss",
]

ERROR_WEIGHT = 0.02  # of the likelihood of errors, which teaches a field how far it will be off


class Draws(NamedTuple):
    """How pairs of moments are drawn.

    Attributes:
      batch_size: coordinates in a batch.
      now_probability: of a pair that starts at the last observed save; the others start beyond it.
      final_probability: of a pair that ends at the end of the run; the others end before it.
      path_noise: width of the Gaussian noise round the path at which a velocity is learned, in units of the features' scale:
        what was only ever on a path does not know the way back to it, and its solution drifts off.
    """

    batch_size: int
    now_probability: float
    final_probability: float
    path_noise: float = 0.0


def flow_map_loss(field: FieldParams, batch) -> Float[Array, ""]:
    """Regression of displacements on those of recorded runs."""
    step, target, weight = batch
    forecast, log_error = displacement(field, step)
    error = jax.lax.stop_gradient(forecast - target)
    return relative_huber(forecast, target, weight) + ERROR_WEIGHT * laplace_nll(log_error, error)


def velocity_loss(field: FieldParams, batch) -> Float[Array, ""]:
    """Conditional flow matching on the paths of recorded runs.

    A velocity does not say how far off its solution will be: that is learned from steps that are solved, a quarter as many.
    """
    (step, path, weight), (steps, x_t, _) = batch
    velocity, _ = move(field, step)
    kept = jax.lax.stop_gradient(field)  # before the solve, which else would be made ready to be differentiated
    solved = jax.vmap(functools.partial(solved_displacement, kept))(steps)
    _, log_error = move(field, steps)
    return flow_matching_loss(velocity, path, weight) + ERROR_WEIGHT * laplace_nll(log_error, solved - x_t)


def self_distilled_loss(field: FieldParams, batch) -> Float[Array, ""]:
    """Velocities learned from paths, and a flow map from those velocities."""
    (step, path, weight), (off, slope, weight_off), (steps, x_t, _) = batch
    # v_{t,t} is the velocity in the flow's clock; paths have theirs in log(time).
    velocity = move(field, step)[0] * (1 - clock(step.now, step.t))
    residual = jax.vmap(functools.partial(lagrangian_residual, field))(off, slope)
    # The error of the displacement, were the residual the same all the way from s to t.
    log_ratio = log_time(off.now, off.t) - log_time(off.now, off.s)
    distilled = relative_huber(log_ratio * residual, 0.0, weight_off)
    forecast, log_error = displacement(field, steps)
    error = jax.lax.stop_gradient(forecast - x_t)
    along = relative_huber(velocity, path.dx_t, weight)
    return along + distilled + ERROR_WEIGHT * laplace_nll(log_error, error)


def loss_of_forecasts(losses: Sequence[Callable], weight: float, field: FieldParams, batch) -> Float[Array, ""]:
    """The loss of the networks that are forecast and the error of their weights, `function_space_loss`; how large the error is
    expected to be is learned on.

    Args:
      losses: for each batch of windows, in their order, `weights [dim] -> scalar`.
      weight: of the error of the weights.
      field, batch: the field, and what `draw_runs` draws.
    """

    def one(loss_of_weights, step, target):
        origin, scale = step.features.origin, step.features.scale
        moved, log_error = run_displacement(field, step)
        error = jax.lax.stop_gradient(moved - (target - origin) / scale)
        loss = function_space_loss(loss_of_weights, origin + scale * moved, origin, target, weight)
        return loss + ERROR_WEIGHT * laplace_nll(log_error, error)

    parts = zip(losses, batch, strict=True)
    return jnp.concatenate([jax.vmap(functools.partial(one, loss))(*part) for loss, part in parts]).mean()


def field_optimizer(learning_rate: float, num_steps: int, weight_decay: float = 0.15) -> optax.GradientTransformation:
    """AdamW on a cosine, gradients scaled to a norm of at most 1."""
    adamw = optax.adamw(optax.cosine_decay_schedule(learning_rate, num_steps), weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def draw_moves(
    draws: Draws, key: Array, windows: Sequence[Windows]
) -> tuple[Move, Float[Array, " n"], Float[Array, " n"]]:
    """Moves of n coordinates, near `draws.batch_size`, where they end, and their weights, as a flow map learns from them."""
    pairs = _draw_pairs(key, windows, draws.batch_size, draws.now_probability, draws.final_probability)
    return Move(pairs.features, pairs.now, pairs.s, pairs.t, pairs.x_s), pairs.x_t, pairs.weight


def draw_path(draws: Draws, key: Array, windows: Sequence[Windows]):
    """The documented interpolant, linear between adjacent saves, its velocity in the clock log(time); and, a quarter as
    many, jumps from the last observed save."""
    key_pairs, key_fraction, key_noise, key_jumps = jax.random.split(key, 4)
    pairs = _draw_pairs(
        key_pairs, windows, draws.batch_size, draws.now_probability, draws.final_probability, adjacent=True
    )
    fraction = jax.random.uniform(key_fraction, pairs.x_s.shape)
    path = jax.vmap(functools.partial(interpolate, linear))(fraction, pairs.x_s, pairs.x_t)
    between = jax.tree.map(lambda a, b: a + fraction * (b - a), pairs.s, pairs.t)
    elapsed = pairs.t.time - pairs.s.time
    still = elapsed <= 1e-9 * pairs.t.time  # at a rate of 0 nothing moves, and no velocity is defined
    clock_speed = jnp.where(still, 1, elapsed / jnp.maximum(between.time, 1e-30))
    weight = jnp.where(still, 0, pairs.weight)
    near = path.x_t + draws.path_noise * jax.random.normal(key_noise, fraction.shape)
    step = Move(pairs.features, pairs.now, between, between, near)
    jumps = draw_moves(draws._replace(batch_size=draws.batch_size // 4, now_probability=1.0), key_jumps, windows)
    return (step, path._replace(dx_t=path.dx_t / clock_speed), weight), jumps


def lagrangian_residual(field: FieldParams, off: Move, slope: Horizon) -> Float[Array, ""]:
    """d/dt X_{s,t} - v_{t,t}(X_{s,t}), for one coordinate, in the clock log(time)."""
    mean_velocity = lambda step: move(field, step)[0]

    # Where all rates were 0 until now the flow's clock begins at t instead.
    now = off.now._replace(time=jnp.where(off.now.time > 0, off.now.time, off.t.time))

    def moment(c):  # at which the flow's clock shows c, on the run's own schedule
        time = now.time / (1 - c)
        step, rate = (
            at + (time - off.t.time) * per
            for at, per in ((off.t.step, slope.step), (off.t.learning_rate, slope.learning_rate))
        )
        return Horizon(step, time, rate)

    v = lambda s, t, x: mean_velocity(off._replace(t=moment(t), x_s=x[0]))[None]
    teacher = lambda t, x: mean_velocity(off._replace(s=moment(t), t=moment(t), x_s=x[0]))[None]
    s, t = clock(now, off.s), clock(now, off.t)
    return lagrangian(v, s, t, off.x_s[None], teacher=teacher)[0] * (1 - t)


def draw_path_and_moves(draws: Draws, key: Array, windows: Sequence[Windows]):
    """As for a velocity, and a third as many moves that end between two saves, with the slopes of step and rate there."""
    key_path, key_moves, key_fraction = jax.random.split(key, 3)
    pairs = _draw_pairs(key_moves, windows, draws.batch_size // 3, draws.now_probability, draws.final_probability)
    fraction = jax.random.uniform(key_fraction, pairs.x_s.shape)
    between = jax.tree.map(lambda a, b: a + fraction * (b - a), pairs.before, pairs.t)
    elapsed = pairs.t.time - pairs.before.time
    still = elapsed <= 1e-6 * pairs.t.time  # at a rate of 0: steps and rates have no slope in time
    slope = jax.tree.map(
        lambda a, b: jnp.where(still, 0, (b - a) / jnp.where(still, 1, elapsed)), pairs.before, pairs.t
    )
    off = Move(pairs.features, pairs.now, pairs.s, between, pairs.x_s)
    path, jumps = draw_path(draws, key_path, windows)
    return path, (off, slope, pairs.weight), jumps


def _draw_pairs(key, windows, num, now_probability, final_probability, *, adjacent=False):
    """Pairs of moments of coordinates, from every layout in proportion to its windows."""
    total = sum(len(part.run) for part in windows)
    counts = [max(num * len(part.run) // total, 1) for part in windows]
    draws = [
        draw_pairs(key, part, count, now_probability, final_probability, adjacent=adjacent)
        for key, part, count in zip(jax.random.split(key, len(windows)), windows, counts, strict=True)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *draws)


def draw_runs(key: Array, windows: Windows, num: int, final_probability: float) -> tuple[Move, Array]:
    """Whole runs: moves from the last observed save, and the true weights at their ends."""
    window, ahead = draw_windows(key, windows, num, final_probability)
    run, last = windows.run[window], windows.last[window]
    features = jax.tree.map(lambda leaf: leaf[window], windows.features)
    features = features._replace(directions=named(features.directions, DIRECTIONS))
    now, t = (windows.moment(run, save) for save in (last, ahead))
    return Move(features, now, now, t, jnp.zeros_like(features.scale)), windows.weights[run, ahead]
