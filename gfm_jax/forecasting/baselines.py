"""The simple ways to say where a run will end, all in closed form from the prefix."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Forecast, Forecaster, Horizon, Procedure, Trajectory, config_of
from gfm_jax.checks import check_count
from gfm_jax.forecasting.displacement import relative_l1
from gfm_jax.forecasting.features import from_first_motion, line_weights
from gfm_jax.forecasting.forecaster import forecaster_of, unfitted
from gfm_jax.forecasting.windows import cut_all
from gfm_jax.minimize import minimize

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

ROUNDING = 1e-6  # of the square of the leading mode

# --- combinations of saves: w(m) = sum_k a_k w_k ----------------------------------------------------------------------


def _combination(
    name: str, weights_of_saves: Callable[[Trajectory, Horizon], Float[Array, " saves"]], **config
) -> Forecaster:
    """A forecaster that is a row of weights on the saves, which sum to one."""

    @jax.default_matmul_precision("highest")
    def forecast(params, prefix, horizon):
        del params
        # Relative to the last save, so that float32 keeps the digits of small differences.
        origin = prefix.weights[-1].astype(jnp.float32)
        moved = weights_of_saves(prefix, horizon) @ (prefix.weights.astype(jnp.float32) - origin[None])
        return Forecast(origin + moved)

    return forecaster_of(unfitted(f"forecasting.baselines.{name}", **config), forecast)


def persistence() -> Forecaster:
    """The last observed weights, w_n: hard to beat, and what every relative error is relative to.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(persistence(), (), run, until=8).weights.round().tolist()
    [4.0, 8.0]
    """
    return _combination("persistence", lambda prefix, horizon: jnp.zeros(len(prefix.step)).at[-1].set(1.0))


def lawa(num_last: int | float = 5) -> Forecaster:
    """The mean of the last `num_last` saves (latest weight averaging); below 1 it is a fraction of the prefix.

    Args:
      num_last: how many saves, or which fraction of them, above 0.

    Raises:
      ValueError: for 0 or less.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(lawa(3), (), run, until=8).weights.round().tolist()
    [3.0, 6.0]
    """
    _check_last(num_last)
    return _combination("lawa", lambda prefix, horizon: _last(prefix, num_last), num_last=num_last)


def _check_last(num_last):
    if num_last <= 0:
        raise ValueError(f"num_last: expected a number of saves, or a fraction of them below 1, got {num_last}")


def lawa_half_log(num_last: int | float = 5) -> Forecaster:
    """The mean of the last saves, moved by half of what a line in log time predicts.

    Args:
      num_last: how many saves, or which fraction of them, above 0.

    Raises:
      ValueError: for 0 or less.

    >>> from gfm_jax import forecast
    >>> step = 2 ** jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(jnp.log2(step), jnp.array([1.0, 2.0])))
    >>> forecast(lawa_half_log(3), (), run, until=64).weights.round().tolist()
    [4.0, 8.0]
    """

    _check_last(num_last)

    def weights_of_saves(prefix, horizon):
        return _last(prefix, num_last) + 0.5 * _line(prefix, horizon, jnp.log, "time", start=1 / 4)

    return _combination("lawa_half_log", weights_of_saves, num_last=num_last)


def linear(clock: str = "time") -> Forecaster:
    """A least-squares line over the last half of the prefix, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(linear(), (), run, until=8).weights.round().tolist()
    [8.0, 16.0]
    """
    _check_clock(clock)
    line = lambda prefix, horizon: _line(prefix, horizon, lambda t: t, clock, start=1 / 2)
    return _combination("linear", line, clock=clock)


def log_time(clock: str = "time") -> Forecaster:
    """A least-squares line in the logarithm of the clock over the last three quarters, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".

    >>> from gfm_jax import forecast
    >>> step = 2 ** jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(jnp.log2(step), jnp.array([1.0, 2.0])))
    >>> forecast(log_time(), (), run, until=32).weights.round().tolist()
    [5.0, 10.0]
    """
    _check_clock(clock)
    line = lambda prefix, horizon: _line(prefix, horizon, jnp.log, clock, start=1 / 4)
    return _combination("log_time", line, clock=clock)


def sqrt_time(clock: str = "time") -> Forecaster:
    """A least-squares line in the square root of the clock over the last three quarters: diffusion, continued from w_n.

    Args:
      clock: "time" (the sum of learning rates) or "step".

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5) ** 2
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(jnp.sqrt(step), jnp.array([1.0, 2.0])))
    >>> forecast(sqrt_time(), (), run, until=25).weights.round().tolist()
    [5.0, 10.0]
    """
    _check_clock(clock)
    line = lambda prefix, horizon: _line(prefix, horizon, jnp.sqrt, clock, start=1 / 4)
    return _combination("sqrt_time", line, clock=clock)


def _last(prefix, num_last):
    num_last = num_last if num_last >= 1 else max(round(num_last * len(prefix.step)), 1)
    recent = jnp.arange(len(prefix.step)) >= len(prefix.step) - num_last
    return recent / recent.sum()


def _check_clock(clock):
    if clock not in ("time", "step"):
        raise ValueError(f"clock: expected 'time' or 'step', got {clock!r}")


def _line(prefix, horizon, scale, clock, start):
    seen, then = getattr(prefix, clock).astype(jnp.float32), getattr(horizon, clock)
    seen = from_first_motion(seen, jnp.ones(len(seen), bool))  # the logarithm of time 0 is left out
    inside = (prefix.step >= start * prefix.step[-1]).astype(jnp.float32)
    return line_weights(scale(seen), inside) * (scale(jnp.maximum(then, seen[-1])) - scale(seen[-1]))


# --- modes of the motion: the same, with weights on the saves that depend on their Gram matrix ------------------------


def _modal(name: str, weights_of_saves: Callable, *, per_tensor: bool = False, **config) -> Forecaster:
    """A forecaster from `(gram, prefix, horizon) -> weights on the saves`, of the whole motion or of every tensor's own.

    The Gram matrix [saves, saves] of the displacements from w_n is all that modes need, however many weights there are.
    """

    @jax.default_matmul_precision("highest")
    def forecast(params, prefix, horizon):
        del params
        weights = prefix.weights.astype(jnp.float32)
        moved, sizes = weights - weights[-1][None], prefix.layout.sizes if per_tensor else (weights.shape[-1],)
        starts = itertools.accumulate(sizes[:-1], initial=0)
        parts = [moved[:, start : start + size] for start, size in zip(starts, sizes, strict=True)]
        grams = jnp.stack([part @ part.T for part in parts])
        rows = jax.vmap(lambda gram: weights_of_saves(gram, prefix, horizon))(grams)
        ahead = jnp.concatenate([row @ part for row, part in zip(rows, parts, strict=True)])
        return Forecast(weights[-1] + ahead)

    return forecaster_of(unfitted(f"forecasting.baselines.{name}", **config), forecast)


def _saves_ahead(prefix: Trajectory, horizon: Horizon) -> Float[Array, ""]:
    """How many saves ahead the horizon lies, at the mean spacing of those observed."""
    return (horizon.step - prefix.step[-1]) * (len(prefix.step) - 1) / (prefix.step[-1] - prefix.step[0])


def _modes(gram: Float[Array, "saves saves"], rank: int):
    """Coordinates of a motion on its leading modes, [saves, rank], and the modes as weights on the saves, [rank, saves]."""
    values, vectors = _eigh(gram)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    kept = values > ROUNDING * values[0]  # the others are rounding, and none of a run at rest
    sizes = jnp.where(kept, jnp.sqrt(jnp.where(kept, values, 1)), 0)[None]
    return vectors * sizes, jnp.where(kept[None], vectors / jnp.where(kept[None], sizes, 1), 0).T


@jax.custom_jvp
def _eigh(gram):
    """`jnp.linalg.eigh`, differentiable where several eigenvalues are equal, as those of a motion of few modes are 0."""
    return tuple(jnp.linalg.eigh(gram))


@_eigh.defjvp
def _(primals, tangents):
    values, vectors = _eigh(*primals)
    change = vectors.T @ tangents[0] @ vectors
    gaps = values[None] - values[:, None]
    apart = jnp.abs(gaps) > ROUNDING * jnp.abs(values).max()
    turned = jnp.where(apart, change / jnp.where(apart, gaps, 1), 0)
    return (values, vectors), (jnp.diagonal(change), vectors @ turned)


def exponential(rank: int = 3) -> Forecaster:
    r"""Each leading mode of the motion relaxes exponentially: steps d_k of a mode shrink by a factor rho a save.

    .. math:: c(m) = c_n + d_n \, \rho \frac{1 - \rho^h}{1 - \rho}, \qquad
       \rho = \frac{\langle d_{k+1}, d_k \rangle}{\langle d_k, d_k \rangle}, \; h \text{ saves ahead}

    Args:
      rank: number of modes, at least 1.

    Raises:
      ValueError: for a rank below 1.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(32 * 0.5**step, jnp.array([1.0, 2.0])))
    >>> forecast(exponential(), (), run, until=5).weights.round().tolist()
    [1.0, 2.0]
    """
    check_count("rank", rank)

    def weights_of_saves(gram, prefix, horizon):
        coordinates, modes = _modes(gram, rank)
        steps = jnp.diff(coordinates, axis=0)
        squares = (steps[:-1] ** 2).sum(0)
        factor = (steps[1:] * steps[:-1]).sum(0) / jnp.where(squares > 0, squares, 1)
        factor = jnp.clip(factor, 0.0, 0.999)
        return (steps[-1] * factor * (1 - factor ** _saves_ahead(prefix, horizon)) / (1 - factor)) @ modes

    return _modal("exponential", weights_of_saves, rank=rank)


def rank1() -> Forecaster:
    """The leading mode of the displacements since w_0, continued along a least-squares line (RELEX, arXiv 2605.21468).

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(rank1(), (), run, until=8).weights.round().tolist()
    [8.0, 16.0]
    """

    def weights_of_saves(gram, prefix, horizon):
        since_start = jnp.eye(len(gram)) - jnp.eye(len(gram))[:1]
        coordinates, modes = _modes(since_start @ gram @ since_start.T, 1)
        slope = line_weights(prefix.step.astype(jnp.float32), jnp.ones(len(gram))) @ coordinates[:, 0]
        return slope * (horizon.step - prefix.step[-1]) * modes[0] @ since_start

    return _modal("rank1", weights_of_saves)


def dmd(rank: int = 1, start: float = 1 / 2) -> Forecaster:
    r"""Dynamic mode decomposition of each tensor: its leading modes c_k follow a linear map to a fixed point.

    .. math:: c_{k+1} = A c_k + b, \qquad (A, b) = \arg\min \sum_k |c_{k+1} - A c_k - b|^2, \qquad
       A \leftarrow A / \max(1, \rho(A))

    over the saves from `start` on, so that A is no expansion; its spectral radius rho(A) is the 64th root of the norm of the
    64th power (arXiv 2006.02361, per tensor).

    Args:
      rank: number of modes of each tensor, at least 1.
      start: fraction of the prefix from which on saves count, in [0, 1).

    Raises:
      ValueError: for a number outside its range.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(32 * 0.5**step, jnp.array([1.0, 2.0])))
    >>> forecast(dmd(), (), run, until=5).weights.round().tolist()
    [1.0, 2.0]
    """
    check_count("rank", rank)
    if not 0 <= start < 1:
        raise ValueError(f"start: expected a fraction of the prefix in [0, 1), got {start}")

    def weights_of_saves(gram, prefix, horizon):
        inside = (prefix.step >= start * prefix.step[-1]).astype(gram.dtype)
        centre = inside[:, None] * (jnp.eye(len(gram)) - (inside / inside.sum())[None])
        coordinates, modes = _modes(centre @ gram @ centre.T, min(rank, len(gram) - 1))
        before, after, pair = coordinates[:-1], coordinates[1:], (inside[:-1] * inside[1:])[:, None]
        mean_before, mean_after = ((pair * c).sum(0) / jnp.maximum(pair.sum(), 1) for c in (before, after))
        deviation = pair * (before - mean_before[None])
        square = deviation.T @ deviation
        trace = jnp.trace(square)
        ridge = jnp.where(trace > 0, 1e-6 * trace, 1) * jnp.eye(len(square))
        operator = jnp.linalg.solve(square + ridge, deviation.T @ (after - mean_after[None]))
        power = jax.lax.fori_loop(0, 6, lambda _, power: power @ power, operator)
        growth = optax.safe_norm(power, 1.0) ** (1 / 64)
        operator = operator / growth
        last, num_ahead = coordinates[-1], _saves_ahead(prefix, horizon)
        end = _affine_power(operator, mean_after - mean_before @ operator, jnp.floor(num_ahead))(last)
        part = num_ahead - jnp.floor(num_ahead)  # an incomplete last save counts in part
        end = end + part * ((end - mean_before) @ operator + mean_after - end)
        return (end - last) @ modes @ centre

    return _modal("dmd", weights_of_saves, per_tensor=True, rank=rank, start=start)


def _affine_power(operator: Float[Array, "rank rank"], shift: Float[Array, " rank"], count: Float[Array, ""]):
    """The map c -> c A + b applied `count` times, by squaring: in 30 steps, however many times."""
    rank = len(shift)
    step = jnp.eye(rank + 1).at[:rank, :rank].set(operator).at[rank, :rank].set(shift)  # (c, 1) -> (c A + b, 1)
    times = jnp.minimum(count, 2.0**30).astype(jnp.int32)

    def square(k, carry):
        found, power = carry
        found = jnp.where((times >> k) & 1, found @ power, found)
        return found, power @ power

    found, _ = jax.lax.fori_loop(0, 31, square, (jnp.eye(rank + 1), step))
    return lambda c: c @ found[:rank, :rank] + found[rank, :rank]


# --- a fitted pair of numbers -----------------------------------------------------------------------------------------


def lfd2(fractions: tuple[float, ...] = (0.2, 0.5), every: int = 16) -> Forecaster:
    r"""One linear map, shared by all weights, from the first and the last observed one, by L1 regression.

    .. math:: \hat w_m = w_n + a\,(w_n - w_0) + b\,w_n

    fitted for each of `fractions` of a run that are observed; a forecast takes the nearest (LFD-2, arXiv
    2505.02714; the errors of each run are relative to how far it moved).

    Args:
      fractions: fractions of a run that are observed, each in (0, 1).
      every: one weight in so many is used in the regression, at least 1.

    Returns:
      A forecaster, fitted by `fit(key, forecaster, runs)`; its parameters are (a, b) of each fraction.

    Raises:
      ValueError: for `every` below 1.

    >>> from gfm_jax import forecast
    >>> step = jnp.arange(5)
    >>> run = Trajectory(step=step, time=0.1 * step, weights=jnp.outer(step, jnp.array([1.0, 2.0])))
    >>> forecast(lfd2((0.5,)), jnp.array([[1.0, 0.0]]), run, until=8).weights.round().tolist()
    [8.0, 16.0]
    """
    fractions = tuple(fractions)
    if every < 1:
        raise ValueError(f"every: expected one weight in 1 or more, got {every}")

    def fit_pairs(key, runs, *, folder, progress):
        parts = [_examples(fractions, every, windows) for windows in cut_all(runs, fractions)]
        since, origin, moved, nearest = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        return jnp.stack([_l1_regression(since, origin, moved, (nearest == i) * 1.0) for i in range(len(fractions))])

    @jax.default_matmul_precision("highest")
    def forecast(params, prefix, horizon):
        nearest = jnp.argmin(jnp.abs(prefix.step[-1] / horizon.step - jnp.array(fractions)))
        first, last = prefix.weights[0].astype(jnp.float32), prefix.weights[-1].astype(jnp.float32)
        a, b = params[nearest]
        return Forecast(last + a * (last - first) + b * last)

    learner = Procedure(fit_pairs, config_of("forecasting.baselines.lfd2", fractions=fractions, every=every))
    return forecaster_of(learner, forecast)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _examples(fractions, every, windows):
    """(since the start, origin, moved, index of the fraction) of weights of all windows, in units of how far each run moved."""
    observed = windows.clock.step[windows.run, windows.last] / windows.clock.step[windows.run, -1]
    nearest = jnp.argmin(jnp.abs(observed[:, None] - jnp.array(fractions)[None]), axis=1)
    part = slice(None, None, every)
    origin, first = windows.features.origin[:, part], windows.weights[windows.run, 0, part]
    moved = windows.weights[windows.run, -1, part] - origin
    size = jnp.sqrt(jnp.mean(moved**2, -1, keepdims=True))
    rows = [
        jnp.where(size > 0, row / jnp.where(size > 0, size, 1), 0).ravel() for row in (origin - first, origin, moved)
    ]
    return *rows, jnp.broadcast_to(nearest[:, None], moved.shape).ravel()


@jax.jit
def _l1_regression(x, y, target, wanted):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))
    return minimize(lambda c: relative_l1(c[0] * x + c[1] * y, target, wanted), jnp.zeros(2), optimizer, 300)
