"""The simple ways to say where a run will end, all in closed form from the prefix."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Forecast, Forecaster, Horizon, Trajectory
from gfm_jax.losses import relative_l1
from gfm_jax.trajectories import check_prefix, cut_all, line_weights

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


def nothing_to_fit(key, runs, losses=None, **_):
    del key, runs, losses
    return ()


# --- combinations of saves: w(m) = sum_k a_k w_k ----------------------------------------------------------------------


def _combination(weights_of_saves: Callable[[Trajectory, Horizon], Float[Array, " saves"]]) -> Forecaster:
    """A forecaster that is a row of weights on the saves, which sum to one."""

    def forecast(params, prefix, horizon):
        del params
        prefix = check_prefix(prefix, horizon, ())
        # Relative to the last save, so that float32 keeps the digits of small differences.
        origin = prefix.weights[-1].astype(jnp.float32)
        moved = weights_of_saves(prefix, horizon) @ (prefix.weights.astype(jnp.float32) - origin)
        return Forecast(origin + moved)

    return Forecaster(nothing_to_fit, forecast)


def persistence() -> Forecaster:
    """The last observed weights, w_n: hard to beat, and what every relative error is relative to."""
    return _combination(lambda prefix, horizon: jnp.zeros(len(prefix.step)).at[-1].set(1.0))


def lawa(num_last: int | float = 5) -> Forecaster:
    """The mean of the last `num_last` saves (latest weight averaging); below 1 it is a share of the prefix."""
    if num_last <= 0:
        raise ValueError(f"num_last: expected a number of saves, or a share of them below 1, got {num_last}")
    return _combination(lambda prefix, horizon: _last(prefix, num_last))


def lawa_half_log(num_last: int = 5) -> Forecaster:
    """The mean of the last saves, moved by half of what a line in log time foretells."""

    def weights_of_saves(prefix, horizon):
        return _last(prefix, num_last) + 0.5 * _line(prefix, horizon, jnp.log, "time", start=1 / 4)

    return _combination(weights_of_saves)


def linear(clock: str = "time") -> Forecaster:
    """A least-squares line over the last half of the prefix, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".
    """
    return _combination(lambda prefix, horizon: _line(prefix, horizon, lambda t: t, clock, start=1 / 2))


def log_time(clock: str = "time") -> Forecaster:
    """A least-squares line in the logarithm of the clock over the last three quarters, continued from w_n."""
    return _combination(lambda prefix, horizon: _line(prefix, horizon, jnp.log, clock, start=1 / 4))


def sqrt_time(clock: str = "time") -> Forecaster:
    """A least-squares line in the square root of the clock over the last three quarters: diffusion, continued from w_n."""
    return _combination(lambda prefix, horizon: _line(prefix, horizon, jnp.sqrt, clock, start=1 / 4))


def _last(prefix, num_last):
    num_last = num_last if num_last >= 1 else round(num_last * len(prefix.step))
    recent = jnp.arange(len(prefix.step)) >= len(prefix.step) - num_last
    return recent / recent.sum()


def _line(prefix, horizon, scale, clock, start):
    if clock not in ("time", "step"):
        raise ValueError(f"clock: expected 'time' or 'step', got {clock!r}")
    seen, then = getattr(prefix, clock).astype(jnp.float32), getattr(horizon, clock)
    seen = jnp.maximum(seen, seen[1])  # the logarithm of time 0 is left out
    inside = (prefix.step >= start * prefix.step[-1]).astype(jnp.float32)
    return line_weights(scale(seen), inside) * (scale(then) - scale(seen[-1]))


# --- modes of the motion: the same, with weights on the saves that depend on their Gram matrix ------------------------


def _modal(weights_of_saves: Callable, *, per_tensor: bool = False) -> Forecaster:
    """A forecaster from `(gram, prefix, horizon) -> weights on the saves`, of the whole motion or of every tensor's own.

    The Gram matrix [saves, saves] of the displacements from w_n is all that modes need, however many weights there are.
    """

    def forecast(params, prefix, horizon):
        del params
        prefix = check_prefix(prefix, horizon, ())
        weights = prefix.weights.astype(jnp.float32)
        moved, sizes = weights - weights[-1], prefix.layout.sizes if per_tensor else (weights.shape[-1],)
        starts = itertools.accumulate(sizes[:-1], initial=0)
        parts = [moved[:, start : start + size] for start, size in zip(starts, sizes, strict=True)]
        grams = jnp.stack([part @ part.T for part in parts])
        rows = jax.vmap(lambda gram: weights_of_saves(gram, prefix, horizon))(grams)
        ahead = jnp.concatenate([row @ part for row, part in zip(rows, parts, strict=True)])
        return Forecast(weights[-1] + ahead)

    return Forecaster(nothing_to_fit, forecast)


def _saves_ahead(prefix: Trajectory, horizon: Horizon) -> Float[Array, ""]:
    """How many saves ahead the horizon lies, at the mean spacing of those observed."""
    return (horizon.step - prefix.step[-1]) * (len(prefix.step) - 1) / prefix.step[-1]


def _modes(gram: Float[Array, "saves saves"], rank: int):
    """Coordinates of a motion on its leading modes, [saves, rank], and the modes as weights on the saves, [rank, saves]."""
    values, vectors = jnp.linalg.eigh(gram)
    values, vectors = jnp.maximum(values[::-1][:rank], 0), vectors[:, ::-1][:, :rank]
    coordinates = vectors * jnp.sqrt(values)
    return coordinates, (vectors / jnp.maximum(jnp.sqrt(values), 1e-12)).T * (values > 1e-12)[:, None]


def exponential(rank: int = 3) -> Forecaster:
    r"""Each leading mode of the motion relaxes exponentially: steps d_k of a mode shrink by a factor rho a save.

    .. math:: c(m) = c_n + d_n \, \rho \frac{1 - \rho^h}{1 - \rho}, \qquad
       \rho = \frac{\langle d_{k+1}, d_k \rangle}{\langle d_k, d_k \rangle}, \; h \text{ saves ahead}
    """

    def weights_of_saves(gram, prefix, horizon):
        coordinates, modes = _modes(gram, rank)
        steps = jnp.diff(coordinates, axis=0)
        factor = (steps[1:] * steps[:-1]).sum(0) / jnp.maximum((steps[:-1] ** 2).sum(0), 1e-12)
        factor = jnp.clip(factor, 0.0, 0.999)
        return (steps[-1] * factor * (1 - factor ** _saves_ahead(prefix, horizon)) / (1 - factor)) @ modes

    return _modal(weights_of_saves)


def rank1() -> Forecaster:
    """The leading mode of the displacements since w_0, continued along a least-squares line (RELEX, arXiv 2605.21468)."""

    def weights_of_saves(gram, prefix, horizon):
        since_start = jnp.eye(len(gram)) - jnp.eye(len(gram))[0]
        coordinates, modes = _modes(since_start @ gram @ since_start.T, 1)
        slope = line_weights(prefix.step.astype(jnp.float32), jnp.ones(len(gram))) @ coordinates[:, 0]
        return slope * (horizon.step - prefix.step[-1]) * modes[0] @ since_start

    return _modal(weights_of_saves)


def dmd(rank: int = 1, start: float = 1 / 2) -> Forecaster:
    r"""Dynamic mode decomposition of each tensor: its leading modes c_k follow a linear map to a fixed point.

    .. math:: c_{k+1} = A c_k + b, \qquad (A, b) = \arg\min \sum_k |c_{k+1} - A c_k - b|^2, \qquad
       A \leftarrow A / \max(1, \rho(A))

    over the saves from `start` (a share of the prefix) on, so that A is no expansion; its spectral radius rho(A) is the
    64th root of the norm of the 64th power (arXiv 2006.02361, per tensor).
    """

    def weights_of_saves(gram, prefix, horizon):
        inside = (prefix.step >= start * prefix.step[-1]).astype(gram.dtype)
        centre = inside[:, None] * (jnp.eye(len(gram)) - inside / inside.sum())
        coordinates, modes = _modes(centre @ gram @ centre.T, min(rank, len(gram) - 1))
        before, after, pair = coordinates[:-1], coordinates[1:], (inside[:-1] * inside[1:])[:, None]
        mean_before, mean_after = ((pair * c).sum(0) / jnp.maximum(pair.sum(), 1) for c in (before, after))
        deviation = pair * (before - mean_before)
        square = deviation.T @ deviation
        ridge = (1e-6 * jnp.trace(square) + 1e-12) * jnp.eye(len(square))
        operator = jnp.linalg.solve(square + ridge, deviation.T @ (after - mean_after))
        power = jax.lax.fori_loop(0, 6, lambda _, power: power @ power, operator)
        operator = operator / jnp.maximum(jnp.linalg.norm(power) ** (1 / 64), 1.0)
        num_ahead = _saves_ahead(prefix, horizon)

        def walk(k, c):
            share = jnp.clip(num_ahead - k, 0, 1)  # an incomplete last save counts in part
            return c + share * ((c - mean_before) @ operator + mean_after - c)

        last = coordinates[-1]
        end = jax.lax.fori_loop(0, jnp.ceil(num_ahead).astype(jnp.int32), walk, last)
        return (end - last) @ modes @ centre

    return _modal(weights_of_saves, per_tensor=True)


# --- a fitted pair of numbers -----------------------------------------------------------------------------------------


def lfd2(fractions: tuple[float, ...] = (0.2, 0.5), every: int = 16) -> Forecaster:
    r"""One linear map, shared by all weights, from the first and the last observed one, by L1 regression.

    .. math:: \hat w_m = w_n + a\,(w_n - w_0) + b\,w_n

    fitted for each of `fractions`, the shares of a run that are observed; a forecast takes the nearest (LFD-2, arXiv
    2505.02714; the errors of each run are relative to how far it moved). One weight in `every` is used in the regression.
    """

    def fit(key, runs, losses=None, **_):
        del key, losses
        if not runs:
            raise ValueError("runs: expected at least one batch of runs, got none")
        parts = [_examples(tuple(fractions), every, windows) for windows in cut_all(runs, fractions)]
        since, origin, moved, nearest = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        return jnp.stack([_l1_regression(since, origin, moved, (nearest == i) * 1.0) for i in range(len(fractions))])

    def forecast(params, prefix, horizon):
        prefix = check_prefix(prefix, horizon, ())
        nearest = jnp.argmin(jnp.abs(prefix.step[-1] / horizon.step - jnp.array(fractions)))
        first, last = prefix.weights[0].astype(jnp.float32), prefix.weights[-1].astype(jnp.float32)
        a, b = params[nearest]
        return Forecast(last + a * (last - first) + b * last)

    return Forecaster(fit, forecast)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _examples(fractions, every, windows):
    """(since the start, origin, moved, index of the fraction) of weights of all windows, in units of how far each run moved."""
    share = windows.clock.step[windows.run, windows.last] / windows.clock.step[windows.run, -1]
    nearest = jnp.argmin(jnp.abs(share[:, None] - jnp.array(fractions)), axis=1)
    part = slice(None, None, every)
    origin, first = windows.context.origin[:, part], windows.weights[windows.run, 0, part]
    moved = windows.weights[windows.run, -1, part] - origin
    size = jnp.sqrt(jnp.mean(moved**2, -1, keepdims=True))
    rows = [(row / size).ravel() for row in (origin - first, origin, moved)]
    return *rows, jnp.broadcast_to(nearest[:, None], moved.shape).ravel()


@jax.jit
def _l1_regression(x, y, target, wanted):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))

    def step(carry, _):
        coefficients, state = carry
        loss = lambda c: relative_l1(c[0] * x + c[1] * y, target, wanted)
        updates, state = optimizer.update(jax.grad(loss)(coefficients), state)
        return (optax.apply_updates(coefficients, updates), state), None

    start = jnp.zeros(2)
    (coefficients, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=300)
    return coefficients
