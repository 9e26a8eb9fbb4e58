"""How parts of the weights have moved, as features that know neither their size nor their place."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Layout
from gfm_jax.forecasting.evidence import TINY, Evidence, root

__all__ = ["grams", "lengths", "log_ratio", "motion", "recent_steps", "since"]


def grams(seen: Evidence, layout: Layout) -> Float[Array, "parts rows rows"]:
    r"""Mean products over every tensor and, last, over all weights: whatever is asked of them later is small.

    .. math:: G_{p,ij} = \frac{1}{|p|} \sum_{w \in p} r_{i,w} r_{j,w}

    The rows are the steps from save to save, the optimizer's direction, the descent, and the root of the mean squared gradient.
    """
    views = jnp.stack([seen.optimizer, seen.descent, root(seen.second_moment)])
    found, stops = [], np.cumsum(layout.sizes)
    for size, stop in zip(layout.sizes, stops, strict=True):
        own = jnp.concatenate([rows[:, stop - size : stop] for rows in (seen.steps, views)])
        found.append(jnp.matmul(own, own.T, precision="highest") / max(size, 1))
    whole = sum(size / layout.dim * gram for size, gram in zip(layout.sizes, found, strict=True))
    return jnp.stack([*found, whole])


def _products(gram, a, b):
    """Mean products of combinations of rows, [k, rows] -> [parts, k]."""
    return jnp.einsum("ki,pij,kj->pk", a, gram, b, precision="highest")


def _rms(gram, a):
    """Root mean squares of combinations of rows, [k, rows] -> [parts, k]."""
    return root(jnp.maximum(_products(gram, a, a), 0))


def lengths(gram: Float[Array, "parts rows rows"], moved: Float[Array, "k steps"]) -> Float[Array, "k parts"]:
    """Root mean squares, over every part, of displacements given as sums over steps."""
    return _rms(gram, _of_rows(gram, moved)).T


def _of_rows(gram, of_steps):
    """Combinations of steps as combinations of all rows."""
    return jnp.pad(of_steps, [(0, 0)] * (of_steps.ndim - 1) + [(0, gram.shape[-1] - of_steps.shape[-1])])


def since(saves: Float[Array, "*k saves"]) -> Float[Array, "*k steps"]:
    r"""Sums over saves of displacements from the last one, as sums over steps.

    .. math:: \sum_j a_j (w_j - w_n) = -\sum_k \Big( \sum_{j \le k} a_j \Big) (w_{k+1} - w_k)
    """
    return -jnp.cumsum(saves, axis=-1)[..., :-1]


def log_ratio(a, b):
    """log(a / b) of lengths, with a floor of a thousandth."""
    return jnp.log((a + 1e-3 * b + TINY) / (b + TINY))


def motion(
    seen: Evidence, moved: dict[str, Float[Array, " steps"]], gram: Float[Array, "parts rows rows"]
) -> dict[str, Float[Array, " parts"]]:
    """How each part has moved, in units of its way through the second half of the prefix: turns, noise, speeds, whether
    successive steps agree, and how far the optimizer's own steps would carry.

    Args:
      seen: what was observed.
      moved: displacements since the quarters of the prefix, the last save and the one before, as sums over steps.
      gram: as `grams` makes it.
    """
    num_steps, num_rows = len(seen.steps), gram.shape[-1]
    optimizer, descent, root_square = jnp.eye(num_rows)[num_steps:]
    recent = recent_steps(seen)
    moved = {name: _of_rows(gram, steps) for name, steps in moved.items()}
    mean_step = _of_rows(gram, recent / recent.sum())  # recent steps are one at least
    single = jnp.stack([moved["since_4_8"], mean_step, optimizer, descent, root_square])
    way, mean_length, optimizer_length, descent_length, root_mean_square = _rms(gram, single).T
    scale = jnp.maximum(way, TINY)

    squares = jnp.diagonal(gram, axis1=1, axis2=2)[:, :num_steps]
    successive = jnp.diagonal(gram, 1, axis1=1, axis2=2)[:, : num_steps - 1]
    noise = root(jnp.maximum(squares @ recent / recent.sum() - mean_length**2, 0))
    agree = successive @ (recent[1:] * recent[:-1]) / (squares @ recent + TINY)  # negative where the run oscillates
    # How far the optimizer's own step would carry in as many steps as were observed, and the gradient against the root of its
    # mean square, which falls behind after a spike.
    last = seen.seen.sum() - 1
    gap = seen.step[last] - seen.step[last - 1]
    rate = (seen.time[last] - seen.time[last - 1]) / jnp.where(gap > 0, gap, 1)
    carried = optimizer_length * rate * seen.step[last]
    return {
        **_turns(gram, moved, optimizer, descent),
        "noise": log_ratio(noise, scale),
        **{f"speed_{name}": log_ratio(speed, scale) for name, speed in _speeds(seen, squares).items()},
        "agreement": agree,
        "carried": log_ratio(carried, scale),
        "descent": log_ratio(descent_length, root_mean_square),
    }


def _turns(gram, moved, optimizer, descent):
    """How the displacements of the four quarters of the prefix compare in length, and where they point."""
    start, first, half, last = (moved[f"since_{j}_8"] for j in (0, 2, 4, 6))
    quarters = {1: start - first, 2: first - half, 3: half - last, 4: last}
    length = dict(zip(quarters, _rms(gram, jnp.stack([*quarters.values()])).T, strict=True))
    pairs = {
        "quarters": (quarters[4], quarters[3]),
        "halves": (quarters[3] + quarters[4], quarters[1] + quarters[2]),
        "steps": (moved["since_last"], moved["since_second_last"] - moved["since_last"]),
        "optimizer": (optimizer, half),
        "descent": (descent, half),
    }
    left, right = map(jnp.stack, zip(*pairs.values(), strict=True))
    cosines = _products(gram, left, right) / (_rms(gram, left) * _rms(gram, right) + TINY)
    lengths = {f"length_{k + 1}_to_{k}": log_ratio(length[k + 1], length[k]) for k in (1, 2, 3)}
    return lengths | {f"turn_{name}": cosine for name, cosine in zip(pairs, cosines.T, strict=True)}


def recent_steps(seen: Evidence) -> Float[Array, " steps"]:
    """1 for the steps that begin in the second half of the prefix, the last step where none does, 0 for the others."""
    begun = seen.seen[1:] & (seen.progress[:-1] >= 1 / 2)
    last = jnp.arange(1, len(seen.step)) == seen.seen.sum() - 1
    return jnp.where(begun.any(), begun, last).astype(jnp.float32)


def _speeds(seen, squares):
    """Root mean square speed, per length of the prefix, of the last two segments and of parts of the prefix."""
    squares = squares / jnp.maximum(jnp.diff(seen.step), 1e-3)[None] ** 2
    last, until = seen.seen.sum() - 1, seen.progress[1:]
    save = jnp.arange(1, len(seen.step))
    steps = {
        "last": save == last,
        "second_last": save == last - 1,
        "last_eighth": until > 7 / 8,
        "seventh_eighth": (until > 3 / 4) & (until <= 7 / 8),
        "second_half": until > 1 / 2,
    }
    when = jnp.stack([chosen & seen.seen[1:] for chosen in steps.values()]).astype(jnp.float32)
    speeds = root(squares @ when.T / jnp.maximum(when.sum(1), 1)[None]) * seen.step[last]
    return dict(zip(steps, speeds.T, strict=True))
