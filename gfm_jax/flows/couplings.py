"""Couplings: which source point goes with which target. Each returns `index`, and the pairs are (x_0, x_1[index])."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from gfm_jax.checks import as_points, check_count, check_finite

__all__ = ["independent", "optimal_transport", "paired", "sinkhorn"]


def independent(key: Array, x_0: Shaped[Array, "n dim"], x_1: Shaped[Array, "n dim"]) -> Int[Array, " n"]:
    """Any source with any target.

    >>> points = jnp.zeros((4, 2))
    >>> sorted(independent(jax.random.key(0), points, points).tolist())
    [0, 1, 2, 3]
    """
    _same_shape(x_0, x_1)
    return jax.random.permutation(key, len(x_0))


def paired(x_0: Shaped[Array, "n dim"], x_1: Shaped[Array, "n dim"]) -> Int[Array, " n"]:
    """Each source with the target of its own row, as they came.

    >>> points = jnp.zeros((4, 2))
    >>> paired(points, points).tolist()
    [0, 1, 2, 3]
    """
    _same_shape(x_0, x_1)
    return jnp.arange(len(x_0))


def optimal_transport(x_0, x_1, cond=None, *, block: int = 256) -> np.ndarray:
    r"""Minibatch optimal transport, exact within blocks of rows, by SciPy on the host.

    .. math:: \min_\pi \sum_i | x_0^{(i)} - x_1^{(\pi(i))} |^2

    Its paths seldom cross, so that the target of a velocity has little variance left. In blocks it changes the velocity that
    is learned, and its marginals not. With conditions, rows change places only with rows of the same condition: else sources
    would tell conditions apart.

    Args:
      x_0, x_1: points [n, dim]; their order is the blocks'.
      cond: a condition for each target, [n] or [n, ...].
      block: rows that are matched together, at least 1; the cost grows with its square.

    Returns:
      index, int [n].

    Raises:
      ValueError: for points of different shapes or not finite, conditions of another number, or a block below 1.

    >>> optimal_transport(jnp.array([[0.0], [10.0]]), jnp.array([[11.0], [1.0]])).tolist()
    [1, 0]
    """
    from scipy.optimize import linear_sum_assignment  # on first use: it takes a fifth of a second

    x_0, x_1 = (np.asarray(as_points(name, x), float) for name, x in (("x_0", x_0), ("x_1", x_1)))
    _same_shape(x_0, x_1)
    for name, x in (("x_0", x_0), ("x_1", x_1)):
        check_finite(name, x)
    x_0, x_1 = x_0 - x_0.mean(0), x_1 - x_1.mean(0)  # no match changes what this takes from the costs
    block = check_count("block", block)
    labels = _labels(cond, len(x_0))
    index = np.arange(len(x_0))
    for start in range(0, len(x_0), block):
        rows = index[start : start + block].copy()
        for label in np.unique(labels[rows]):
            mine = rows[labels[rows] == label]
            # |x_0 - x_1|^2 / 2, but for what no match changes
            _, assigned = linear_sum_assignment(-x_0[mine] @ x_1[mine].T)
            index[mine] = mine[assigned]
    return index


def sinkhorn(
    key: Array, x_0: Shaped[Array, "n dim"], x_1: Shaped[Array, "n dim"], *, epsilon: float = 0.05
) -> Int[Array, " n"]:
    r"""Entropic optimal transport by ott-jax: a target for each source, drawn from its row of the plan.

    .. math:: \min_P \sum_{ij} P_{ij} | x_0^{(i)} - x_1^{(j)} |^2 - \epsilon H(P)

    It runs on the device, inside `jit`. Targets are drawn, so that some come twice and some not at all.

    Args:
      key: randomness of the draw.
      x_0, x_1: points [n, dim].
      epsilon: in units of the mean squared distance; towards 0 the plan becomes the exact one.

    Returns:
      index, int [n].

    Raises:
      ImportError: without ott-jax.
      ValueError: for points of different shapes, or an epsilon that is not positive.

    >>> x_0, x_1 = jnp.array([[0.0], [10.0]]), jnp.array([[11.0], [1.0]])
    >>> sinkhorn(jax.random.key(0), x_0, x_1).tolist()  # doctest: +SKIP
    [1, 0]
    """
    x_0, x_1 = as_points("x_0", x_0), as_points("x_1", x_1)
    _same_shape(x_0, x_1)
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive number, got {epsilon}")
    centre = (x_0.mean(0) + x_1.mean(0)) / 2
    try:
        from ott.geometry import pointcloud  # pyright: ignore[reportMissingImports]
        from ott.solvers import linear  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('sinkhorn needs ott-jax: pip install "gfm_jax[ott]"') from error
    geometry = pointcloud.PointCloud(x_0 - centre[None], x_1 - centre[None], epsilon=epsilon, relative_epsilon="mean")
    plan = linear.solve(geometry).matrix
    return jax.random.categorical(key, jnp.log(jnp.maximum(plan, jnp.finfo(plan.dtype).tiny)), axis=-1)


def _same_shape(x_0, x_1):
    if x_0.shape != x_1.shape or x_0.ndim != 2:
        raise ValueError(f"x_0, x_1: expected points [n, dim] of one shape, got {x_0.shape} and {x_1.shape}")


def _labels(cond, num):
    if cond is None:
        return np.zeros(num, int)
    cond = np.asarray(cond)
    if cond.shape[:1] != (num,):
        raise ValueError(f"cond: expected a condition for each of {num} targets, got shape {cond.shape}")
    return np.unique(cond.reshape(num, -1), axis=0, return_inverse=True)[1].reshape(num)
