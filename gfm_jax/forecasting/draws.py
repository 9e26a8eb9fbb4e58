"""Random windows, and pairs of moments of single weights, to fit to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gfm_jax.base import Features, Horizon
from gfm_jax.forecasting.names import DIRECTIONS, named
from gfm_jax.forecasting.windows import Windows, of_weights

__all__ = ["MOST_WEIGHT", "Pairs", "draw_pairs", "draw_windows"]

MOST_WEIGHT = 1e6  # of a pair: errors are relative to how far the run moves, but for a thousandth of its scale


class Pairs(NamedTuple):
    """Two moments s <= t of one coordinate beyond the last observed one, `now`, and `before`, that of the save before t;
    displacements in units of its scale."""

    features: Features
    now: Horizon
    s: Horizon
    t: Horizon
    before: Horizon
    x_s: Float[Array, " pairs"]
    x_t: Float[Array, " pairs"]
    weight: Float[Array, " pairs"]
    place: tuple[Int[Array, " pairs"], ...]  # (run, last observed save, coordinate)


def draw_windows(
    key: Array, windows: Windows, num: int, final_probability: float
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Indices of `num` windows, and for each a save ahead: the final one with that probability, else log-uniform.

    Args:
      key: randomness.
      windows: to draw from, each as likely as the others.
      num: how many, at least 1.
      final_probability: in [0, 1].

    >>> from gfm_jax.base import Layout, Trajectory
    >>> from gfm_jax.forecasting import cut
    >>> step, layout = jnp.tile(jnp.arange(9), (2, 1)), Layout(("bias",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=jnp.ones((2, 9, 3)), layout=layout)
    >>> window, save = draw_windows(jax.random.key(0), cut(runs, (0.25, 0.5)), 3, final_probability=1.0)
    >>> save.tolist()
    [8, 8, 8]
    """
    key_window, key_final, key_ahead = jax.random.split(key, 3)
    window = jax.random.randint(key_window, (num,), 0, len(windows.run))
    last, final = windows.last[window], windows.weights.shape[1] - 1
    factor = (final / last) ** jax.random.uniform(key_ahead, (num,))
    ahead = jnp.clip(jnp.round(last * factor).astype(jnp.int32), last + 1, final)
    return window, jnp.where(jax.random.bernoulli(key_final, final_probability, (num,)), final, ahead)


def draw_pairs(
    key: Array, windows: Windows, num: int, now_probability: float, final_probability: float, *, adjacent: bool = False
) -> Pairs:
    """Coordinates at two moments: s is the last observed save with probability `now_probability`, else any save before t.

    With `adjacent`, t is the save that follows s, and s any save from the last observed one on. The weight of a pair makes
    the mean of weight * error^2 an estimate of a run's squared error relative to the squared distance that it moves until t
    (with `adjacent`, until its end). Pairs of a run at rest have no weight.

    Args:
      key: randomness.
      windows: to draw from, each as likely as the others.
      num: how many pairs, at least 1.
      now_probability: in [0, 1].
      final_probability: of a pair that ends at the end of its run, as in `draw_windows`.
      adjacent: whether t follows s.

    >>> from gfm_jax.base import Layout, Trajectory
    >>> from gfm_jax.forecasting import cut
    >>> step, layout = jnp.tile(jnp.arange(9), (2, 1)), Layout(("bias",), ((3,),))
    >>> runs = Trajectory(step=step, time=0.1 * step, weights=step[..., None] * jnp.ones(3), layout=layout)
    >>> pairs = draw_pairs(jax.random.key(0), cut(runs, (0.25, 0.5)), 2, now_probability=1.0, final_probability=1.0)
    >>> (pairs.features.origin + pairs.features.scale * pairs.x_t).round().tolist()  # the weights at the end
    [8.0, 8.0]
    """
    key_window, key_coordinate, key_now, key_s = jax.random.split(key, 4)
    window, t = draw_windows(key_window, windows, num, final_probability)
    coordinate = jax.random.randint(key_coordinate, (num,), 0, windows.weights.shape[-1])
    run, last = windows.run[window], windows.last[window]
    between = last + jnp.floor((t - last) * jax.random.uniform(key_s, (num,))).astype(jnp.int32)
    s = jnp.where(jax.random.bernoulli(key_now, now_probability, (num,)), last, between)
    goal = t
    if adjacent:
        s, t, goal = between, between + 1, jnp.full_like(t, windows.weights.shape[1] - 1)

    picked = of_weights(windows.features, lambda leaf: leaf[window, coordinate])
    tensor, of_run, directions = map(jnp.asarray, (picked.tensor, picked.run, picked.directions))  # stacked
    picked = picked._replace(
        tensor=tensor[window, picked.segment], run=of_run[window], directions=named(directions, DIRECTIONS)
    )
    moment = functools.partial(windows.moment, run)
    moved = lambda save: (windows.weights[run, save, coordinate] - picked.origin) / picked.scale
    distance = windows.distance[window, goal]
    weight = jnp.minimum(picked.scale**2 * windows.layout.dim / jnp.where(distance > 0, distance, 1), MOST_WEIGHT)
    weight = jnp.where(distance > 0, weight, 0)  # a run that does not move has no error relative to its motion
    return Pairs(
        picked, moment(last), moment(s), moment(t), moment(t - 1), moved(s), moved(t), weight, (run, last, coordinate)
    )
