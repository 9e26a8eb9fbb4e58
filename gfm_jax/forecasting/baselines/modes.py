"""Forecasts from the leading modes of the motion: weights on the saves that depend on their Gram matrix."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfm_jax.base import Forecast, Forecaster, Horizon, Trajectory
from gfm_jax.checks import check_count
from gfm_jax.forecasting.features import line_weights
from gfm_jax.forecasting.forecaster import forecaster_of, unfitted

__all__ = ["ROUNDING", "dmd", "exponential", "rank1"]

ROUNDING = 1e-6  # of the square of the leading mode


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
