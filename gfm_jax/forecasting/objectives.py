"""What a field is fitted to: batches of recorded moves, and losses of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Features, Horizon
from gfm_jax.flows import flow_matching_loss, interpolate, lagrangian, linear
from gfm_jax.forecasting.displacement import function_space_loss, laplace_nll, relative_huber
from gfm_jax.forecasting.field import FieldParams, Move, move
from gfm_jax.forecasting.names import DIRECTIONS, named
from gfm_jax.forecasting.recipe import Recipe, clock, displacement, log_time, run_displacement, solved_displacement
from gfm_jax.forecasting.windows import Windows, draw_pairs, draw_windows

__all__ = ["Objective", "draw_moves", "function_space", "lagrangian_residual", "weight_space"]

ERROR_SHARE = 0.02  # of the likelihood of errors, which teaches a field how far it will be off


class Objective(NamedTuple):
    """What `fitting.fit` asks for: `sample(key, windows)`, `loss(field, key, batch)` and the optimizer."""

    sample: Callable
    loss: Callable
    optimizer: optax.GradientTransformation


@functools.cache  # so that a second fit of the same recipe compiles nothing
def weight_space(recipe: Recipe) -> Objective:
    r"""Regression of displacements, or of velocities, on those of recorded runs; or of velocities, and of a flow map on them.

    .. math:: \ell + 0.02 \left( |e| / b + \log b \right)

    with the loss l of `gradient_flow_matching`, and b, the error that the field expects of itself, learned from its errors e
    in jumps; a velocity is solved for its own, a quarter as many.

    Args:
      recipe: the choices; its objective tells displacements from velocities from self-distillation.
    """

    def flow_map_loss(field, key, batch):
        step, target, weight = batch
        forecast, log_error = displacement(recipe, field, step)
        error = jax.lax.stop_gradient(forecast - target)
        return relative_huber(forecast, target, weight) + ERROR_SHARE * laplace_nll(log_error, error), {}

    def velocity_loss(field, key, batch):
        (step, path, weight), (jumps, x_t, _) = batch
        velocity, _ = move(recipe.head, recipe.widths, field, step)
        # A velocity does not say how far off its solution will be: that is learned from jumps that are solved.
        kept = jax.lax.stop_gradient(field)  # before the solve, which else would be made ready to be differentiated
        solved = jax.vmap(functools.partial(solved_displacement, recipe, kept))(jumps)
        _, log_error = move(recipe.head, recipe.widths, field, jumps)
        return flow_matching_loss(velocity, path, weight) + ERROR_SHARE * laplace_nll(log_error, solved - x_t), {}

    def self_distilled_loss(field, key, batch):
        (step, path, weight), (off, slope, weight_off), (jumps, x_t, _) = batch
        # v_{t,t} is the velocity in the flow's clock; paths have theirs in log(time).
        velocity = move(recipe.head, recipe.widths, field, step)[0] * (1 - clock(step.now, step.t))
        residual = jax.vmap(functools.partial(lagrangian_residual, recipe, field))(off, slope)
        # The error of the displacement, were the residual the same all the way from s to t.
        log_ratio = log_time(off.now, off.t) - log_time(off.now, off.s)
        distilled = relative_huber(log_ratio * residual, 0.0, weight_off)
        forecast, log_error = displacement(recipe, field, jumps)
        error = jax.lax.stop_gradient(forecast - x_t)
        along = relative_huber(velocity, path.dx_t, weight)
        return along + distilled + ERROR_SHARE * laplace_nll(log_error, error), {}

    optimizer = _optimizer(recipe.peak_rate, recipe.num_steps, recipe.weight_decay)
    if recipe.objective == "self_distilled":
        return Objective(functools.partial(_draw_path_moves_and_jumps, recipe), self_distilled_loss, optimizer)
    if recipe.objective == "velocity":
        return Objective(functools.partial(_draw_path_and_jumps, recipe), velocity_loss, optimizer)
    return Objective(functools.partial(draw_moves, recipe), flow_map_loss, optimizer)


@functools.cache
def function_space(recipe: Recipe, losses: tuple[Callable, ...]) -> Objective:
    """The loss of the networks that are forecast and the error of their weights, `function_space_loss`; how large the
    error is expected to be is learned on, as in `weight_space`.

    Args:
      recipe: the choices.
      losses: for each batch of windows, in their order, `weights [dim] -> scalar`.
    """
    num = max(recipe.function_runs // len(losses), 1)

    def sample(key, windows):
        keys = jax.random.split(key, len(windows))
        return [_draw_runs(key, part, num, recipe.share_final) for key, part in zip(keys, windows, strict=True)]

    def loss(field, key, batch):
        def one(loss_of_weights, step, target):
            origin, scale = step.features.origin, step.features.scale
            moved, log_error = run_displacement(recipe, field, step)
            forecast = origin + scale * moved
            error = jax.lax.stop_gradient(moved - (target - origin) / scale)
            loss = function_space_loss(loss_of_weights, forecast, origin, target, recipe.weight)
            return loss + ERROR_SHARE * laplace_nll(log_error, error)

        values = [
            jax.vmap(functools.partial(one, loss_of_weights))(*part)
            for loss_of_weights, part in zip(losses, batch, strict=True)
        ]
        return jnp.concatenate(values).mean(), {}

    return Objective(sample, loss, _optimizer(recipe.function_rate, recipe.function_steps))


def _optimizer(peak_rate, num_steps, weight_decay=1e-4):
    rate = optax.cosine_decay_schedule(peak_rate, num_steps)
    adamw = optax.adamw(rate, weight_decay=weight_decay)
    return _frozen_standardisation(optax.chain(optax.clip_by_global_norm(1.0), adamw))


def _frozen_standardisation(optimizer):
    return optax.multi_transform(
        {"fit": optimizer, "keep": optax.set_to_zero()},
        lambda field: FieldParams(jax.tree.map(lambda _: "fit", field.network), "keep", "keep"),
    )


def draw_moves(
    recipe: Recipe, key: Array, windows: Sequence[Windows]
) -> tuple[Move, Float[Array, " n"], Float[Array, " n"]]:
    """Moves of n coordinates, near `recipe.batch_size`, where they end, and their weights, as a flow map learns from them."""
    pairs = _draw_pairs(key, windows, recipe.batch_size, recipe.share_now, recipe.share_final)
    return Move(pairs.features, pairs.now, pairs.s, pairs.t, pairs.x_s), pairs.x_t, pairs.weight


def _draw_path_and_jumps(recipe, key, windows):
    """The documented interpolant, linear between adjacent saves, its velocity in the clock log(time); and, a quarter as
    many, jumps from the last observed save."""
    key_pairs, key_share, key_tube, key_jumps = jax.random.split(key, 4)
    pairs = _draw_pairs(key_pairs, windows, recipe.batch_size, recipe.share_now, recipe.share_final, adjacent=True)
    share = jax.random.uniform(key_share, pairs.x_s.shape)
    path = jax.vmap(functools.partial(interpolate, linear))(share, pairs.x_s, pairs.x_t)
    between = jax.tree.map(lambda a, b: a + share * (b - a), pairs.s, pairs.t)
    elapsed = pairs.t.time - pairs.s.time
    still = elapsed <= 1e-9 * pairs.t.time  # at a rate of 0 nothing moves, and no velocity is defined
    clock_speed = jnp.where(still, 1, elapsed / jnp.maximum(between.time, 1e-30))
    weight = jnp.where(still, 0, pairs.weight)
    near = path.x_t + recipe.tube * jax.random.normal(key_tube, share.shape)
    step = Move(pairs.features, pairs.now, between, between, near)
    jumps = draw_moves(recipe._replace(batch_size=recipe.batch_size // 4, share_now=1.0), key_jumps, windows)
    return (step, path._replace(dx_t=path.dx_t / clock_speed), weight), jumps


def lagrangian_residual(recipe, field, off: Move, slope: Horizon) -> Float[Array, ""]:
    """d/dt X_{s,t} - v_{t,t}(X_{s,t}), for one coordinate, in the clock log(time)."""
    mean_velocity = lambda step: move(recipe.head, recipe.widths, field, step)[0]

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


def _draw_path_moves_and_jumps(recipe, key, windows):
    """As for a velocity, and a third as many moves that end between two saves, with the slopes of step and rate there."""
    key_path, key_moves, key_share = jax.random.split(key, 3)
    pairs = _draw_pairs(key_moves, windows, recipe.batch_size // 3, recipe.share_now, recipe.share_final)
    share = jax.random.uniform(key_share, pairs.x_s.shape)
    between = jax.tree.map(lambda a, b: a + share * (b - a), pairs.before, pairs.t)
    elapsed = pairs.t.time - pairs.before.time
    still = elapsed <= 1e-6 * pairs.t.time  # at a rate of 0: steps and rates have no slope in time
    slope = jax.tree.map(
        lambda a, b: jnp.where(still, 0, (b - a) / jnp.where(still, 1, elapsed)), pairs.before, pairs.t
    )
    off = Move(pairs.features, pairs.now, pairs.s, between, pairs.x_s)
    path, jumps = _draw_path_and_jumps(recipe, key_path, windows)
    return path, (off, slope, pairs.weight), jumps


def _draw_pairs(key, windows, num, share_now, share_final, **options):
    """Pairs of moments of coordinates, from every layout in proportion to its windows."""
    total = sum(len(part.run) for part in windows)
    counts = [max(num * len(part.run) // total, 1) for part in windows]
    draws = [
        draw_pairs(key, part, count, share_now, share_final, **options)
        for key, part, count in zip(jax.random.split(key, len(windows)), windows, counts, strict=True)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *draws)


def _draw_runs(key: Array, windows: Windows, num: int, share_final: float) -> tuple[Move, Array]:
    """Whole runs: moves from the last observed save, and the true weights at their ends."""
    window, ahead = draw_windows(key, windows, num, share_final)
    run, last = windows.run[window], windows.last[window]
    features: Features = jax.tree.map(lambda leaf: leaf[window], windows.features)
    features = features._replace(directions=named(features.directions, DIRECTIONS))
    now, t = (windows.moment(run, save) for save in (last, ahead))
    return Move(features, now, now, t, jnp.zeros_like(features.scale)), windows.weights[run, ahead]
