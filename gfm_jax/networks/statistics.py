"""Running statistics, as those of BatchNorm, of a network whose weights were replaced."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

__all__ = ["refresh_statistics"]


def refresh_statistics(
    update: Callable[[PyTree, PyTree], PyTree], statistics: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""Running statistics of new weights: the mean over batches of what each batch gives, whatever the momentum is.

    Use it after weights were replaced, by a forecast or an average, in a network with BatchNorm: statistics of the old weights
    do not fit the new ones. A layer that follows its batches by :math:`s \leftarrow m s + (1 - m) b` shows m and b when it is
    asked twice,

    .. math:: m = u(1) - u(0), \qquad b = u(0) / (1 - m)

    with u the statistics after one batch, from those given.

    Args:
      update: `(statistics, batch) -> statistics` after the network has seen a batch in training, with the new weights; a
        jitted function saves time.
      statistics: as they are, such as `variables["batch_stats"]`; only their shapes and dtypes count, but for what no batch
        moves, and for counters, which stay.
      batches: of training data, at least one, all of one shape; some thousand examples do.

    Returns:
      Statistics of the same structure.

    Raises:
      ValueError: without a batch.

    >>> import flax.linen as nn
    >>> net = nn.BatchNorm(use_running_average=False, momentum=0.9)
    >>> x = jnp.arange(12.0).reshape(6, 2)
    >>> variables = net.init(jax.random.key(0), x)
    >>> def update(statistics, x):
    ...     variables_now = {"params": variables["params"], "batch_stats": statistics}
    ...     return net.apply(variables_now, x, mutable=["batch_stats"])[1]["batch_stats"]
    >>> refresh_statistics(update, variables["batch_stats"], [x[:3], x[3:]])["mean"].round().tolist()
    [5.0, 6.0]
    """
    statistics = jax.tree.map(jnp.asarray, statistics)
    total, num = None, 0
    for batch in batches:
        new = _of_batch(update, statistics, batch)
        total = new if total is None else jax.tree.map(jnp.add, total, new)
        num += 1
    if total is None:
        raise ValueError("batches: expected at least one batch, got none")
    return jax.tree.map(lambda sum_, old: (sum_ / num).astype(old.dtype) if _moves(old) else old, total, statistics)


def _moves(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _of_batch(update, statistics, batch):
    """What one batch gives, in float32 or better; a statistic that it does not move stays."""
    filled = lambda value: jax.tree.map(lambda leaf: jnp.full_like(leaf, value) if _moves(leaf) else leaf, statistics)

    def one(old, at_zero, at_one):
        if not _moves(old):
            return old
        at_zero, at_one, old = (
            leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in (at_zero, at_one, old)
        )
        momentum = at_one - at_zero
        moved = momentum < 1
        return jnp.where(moved, at_zero / jnp.where(moved, 1 - momentum, 1), old)

    return jax.tree.map(one, statistics, update(filled(0.0), batch), update(filled(1.0), batch))
