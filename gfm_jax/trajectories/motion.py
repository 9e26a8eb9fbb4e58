"""How parts of the weights have moved, as features that know neither their size nor their place."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Layout
from gfm_jax.trajectories.evidence import TINY, Evidence

__all__ = ["Parts", "log_ratio", "motion", "parts_of", "recent_steps", "since"]


class Parts(NamedTuple):
    """Every tensor and, last, all weights together.

    Attributes:
      gram: mean products of rows over the weights of each part, G[p, i, j] = mean_p(r_i r_j).
      num_steps: how many of the rows are steps from save to save; after them come the optimizer's direction, the descent
        and the root of the mean squared gradient.
    """

    gram: Float[Array, "parts rows rows"]
    num_steps: int

    def products(self, a: Float[Array, "k rows"], b: Float[Array, "k rows"]) -> Float[Array, "parts k"]:
        """Mean products of combinations of rows, a G b."""
        return jnp.einsum("ki,pij,kj->pk", a, self.gram, b, precision="highest")

    def rms(self, a: Float[Array, "k rows"]) -> Float[Array, "parts k"]:
        """Root mean squares of combinations of rows."""
        return jnp.sqrt(jnp.maximum(self.products(a, a), 0))


def parts_of(seen: Evidence, layout: Layout) -> Parts:
    """The parts of what was observed: one matrix product a tensor, and all that is asked of them later is small."""
    views = jnp.stack([seen.optimizer, seen.descent, jnp.sqrt(seen.second_moment)])
    grams, stops = [], np.cumsum(layout.sizes)
    for size, stop in zip(layout.sizes, stops, strict=True):
        own = jnp.concatenate([rows[:, stop - size : stop] for rows in (seen.steps, views)])
        grams.append(jnp.matmul(own, own.T, precision="highest") / size)
    whole = sum(size / layout.dim * gram for size, gram in zip(layout.sizes, grams, strict=True))
    return Parts(jnp.stack([*grams, whole]), len(seen.steps))


def since(saves: Float[Array, "k saves"]) -> Float[Array, "k steps"]:
    r"""Sums over saves of displacements from the last one, as sums over steps.

    .. math:: \sum_j a_j (w_j - w_n) = -\sum_k \Big( \sum_{j \le k} a_j \Big) (w_{k+1} - w_k)
    """
    return -jnp.cumsum(saves, axis=-1)[..., :-1]


def log_ratio(a, b):
    """log(a / b) of lengths, with a floor of a thousandth."""
    return jnp.log((a + 1e-3 * b + TINY) / (b + TINY))


def motion(seen: Evidence, moved: Float[Array, "displacements steps"], parts: Parts) -> Float[Array, "parts 17"]:
    """How each part has moved, in units of its way through the second half of the prefix: turns, noise, speeds, whether
    successive steps agree, and how far the optimizer's own steps would carry.

    Args:
      seen: what was observed.
      moved: displacements since each eighth of the prefix, since the last save and the one before, as sums over steps.
      parts: of the weights.
    """
    num_steps, num_rows = parts.num_steps, parts.gram.shape[-1]
    rows = jnp.eye(num_rows)
    optimizer, descent, square = rows[num_steps], rows[num_steps + 1], rows[num_steps + 2]
    moved = jnp.pad(moved, ((0, 0), (0, num_rows - num_steps)))
    recent = recent_steps(seen)
    mean_step = jnp.pad(recent / recent.sum(), (0, num_rows - num_steps))
    quarters = moved[0:8:2] - jnp.concatenate([moved[2:8:2], jnp.zeros((1, num_rows))])
    single = jnp.stack([moved[4], mean_step, optimizer, descent, square])
    way, mean_step, optimizer_length, descent_length, square_length = parts.rms(single).T
    lengths = parts.rms(quarters)
    left = jnp.stack([quarters[3], quarters[2] + quarters[3], moved[8], optimizer, descent])
    right = jnp.stack([quarters[2], quarters[0] + quarters[1], moved[9] - moved[8], moved[4], moved[4]])
    cosines = parts.products(left, right) / (parts.rms(left) * parts.rms(right) + TINY)

    scale = jnp.maximum(way, TINY)
    squares = jnp.diagonal(parts.gram, axis1=1, axis2=2)[:, :num_steps]
    successive = jnp.diagonal(parts.gram, 1, axis1=1, axis2=2)[:, : num_steps - 1]
    noise = jnp.sqrt(jnp.maximum(squares @ recent / recent.sum() - mean_step**2, 0))
    agree = successive @ (recent[1:] * recent[:-1]) / (squares @ recent + TINY)  # negative where the run oscillates
    # How far the optimizer's own step would carry in as many steps as were observed, and the gradient against the root of its
    # mean square, which falls behind after a spike.
    last = seen.seen.sum() - 1
    rate = (seen.time[last] - seen.time[last - 1]) / (seen.step[last] - seen.step[last - 1])
    carried = optimizer_length * rate * seen.step[last]
    features = [
        log_ratio(lengths[:, 1:], lengths[:, :-1]),
        cosines,
        log_ratio(noise, scale)[:, None],
        log_ratio(_speeds(seen, squares), scale[:, None]),
        agree[:, None],
        log_ratio(carried, scale)[:, None],
        log_ratio(descent_length, square_length)[:, None],
    ]
    return jnp.concatenate(features, axis=-1)


def recent_steps(seen: Evidence) -> Float[Array, " steps"]:
    """1 for the steps of the second half of the prefix, 0 for the others."""
    return (seen.seen[1:] & (seen.progress[:-1] >= 1 / 2)).astype(jnp.float32)


def _speeds(seen, squares):
    """Root mean square speed, per length of the prefix, of the last two segments and of shares of the prefix. [parts, 5]."""
    squares = squares / jnp.maximum(jnp.diff(seen.step), 1e-3) ** 2
    last, until = seen.seen.sum() - 1, seen.progress[1:]
    save = jnp.arange(1, len(seen.step))
    shares = [until > 7 / 8, (until > 3 / 4) & (until <= 7 / 8), until > 1 / 2]
    when = jnp.stack([save == last, save == last - 1, *(share & seen.seen[1:] for share in shares)]).astype(jnp.float32)
    return jnp.sqrt(squares @ when.T / jnp.maximum(when.sum(1), 1)) * seen.step[last]
