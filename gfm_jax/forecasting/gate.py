"""A gate: of several forecasts, take the one that works best on data that is held out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["choose", "line_search"]


def choose(
    loss: Callable[[Array], Array], candidates: Float[Array, "candidates dim"]
) -> tuple[Float[Array, " dim"], Int[Array, ""], int]:
    r"""The candidate of least loss; one that is not finite is never taken.

    .. math:: \hat w = \arg\min_k L(w_k)

    Args:
      loss: `weights [dim] -> scalar`, on held-out data.
      candidates: forecasts of one run; with persistence and the mean of the last saves among them the choice is never
        worse than these on the held-out data.

    Returns:
      The weights chosen, their index, and the number of forward passes spent: one a candidate. Where no candidate is finite it
      is the first.

    Raises:
      ValueError: for no candidates, or a loss that is no scalar.
    """
    candidates = jnp.asarray(candidates)
    if candidates.ndim != 2 or not len(candidates):
        raise ValueError(f"candidates: expected at least one, [candidates, dim], got shape {candidates.shape}")
    if (shape := jax.eval_shape(loss, candidates[0]).shape) != ():
        raise ValueError(f"loss: expected a scalar of weights [dim], got shape {shape}")
    losses = jax.vmap(loss)(candidates)
    finite = jnp.isfinite(losses) & jnp.isfinite(candidates).all(axis=1)
    best = jnp.argmin(jnp.where(finite, losses, jnp.finfo(losses.dtype).max))
    return candidates[best], best, len(candidates)


def line_search(
    origin: Float[Array, " dim"], forecast: Float[Array, " dim"], fractions: tuple[float, ...]
) -> Float[Array, "fractions dim"]:
    """Candidates on the way from the last observed weights to a forecast, and beyond it.

    Args:
      origin, forecast: weights [dim].
      fractions: of the way, at least one; 0 is the origin, 1 the forecast.

    Raises:
      ValueError: for no fractions.
    """
    if not len(fractions):
        raise ValueError("fractions: expected at least one, got none")
    return origin[None] + jnp.array(fractions)[:, None] * (forecast - origin)[None]
