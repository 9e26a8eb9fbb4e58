"""The training loss around a point: its gradient, and what a few products with its Hessian say about the way down."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Curvature, Trajectory
from gfm_jax.convolutions import fast_in_loops
from gfm_jax.forecasting.inputs import as_run
from gfm_jax.forecasting.names import KRYLOV

__all__ = ["curvature_at", "measure_curvature", "metric", "no_curvature"]

ROUNDING = 1e-5  # of the length of a product with the Hessian


def curvature_at(loss: Callable, weights: Float[Array, " dim"], metric: Float[Array, " dim"]) -> Curvature:
    r"""One gradient and three products with the Hessian: the first four directions of the Krylov space of P H from P g.

    .. math:: \mathcal K = \mathrm{span} \{ P g, \; P H P g, \; (P H)^2 P g, \; (P H)^3 P g \}

    On the quadratic model of the loss, dw / d time = -P (g + H (w - w_n)) never leaves the whole Krylov space, of which
    these four are the directions that matter first; they are all of it where P H has no more than four different
    eigenvalues. They are made orthonormal in the metric of 1 / P by Lanczos' recursion, fully orthogonalised.

    Args:
      loss: `weights [dim] -> scalar`, twice differentiable.
      weights: where, w_n.
      metric: P, the positive diagonal by which the optimizer multiplies a gradient.

    Returns:
      The loss, its gradient, and the directions, [4, dim]; those that the Krylov space does not have are zero.

    >>> found = curvature_at(lambda w: w[0] ** 2 + 2 * w[1] ** 2, jnp.ones(2), jnp.ones(2))
    >>> found.gradient.tolist(), jnp.linalg.norm(found.krylov, axis=1).round().tolist()
    ([2.0, 4.0], [1.0, 1.0, 0.0, 0.0])
    """
    return fast_in_loops(functools.partial(_curvature_at, loss))(weights, metric)


def _curvature_at(loss, weights, metric):
    (value, gradient), linear = jax.linearize(jax.value_and_grad(loss), weights)
    root = jnp.sqrt(metric)
    hessian = lambda q: root * linear(root * q)[1]  # P^1/2 H P^1/2, which is symmetric
    basis = [_unit(-root * gradient)]
    while len(basis) < len(KRYLOV):
        following = hessian(basis[-1])
        length = jnp.linalg.norm(following)
        for _ in range(2):  # twice is enough, once is not
            for q in basis:
                following = following - jnp.vdot(q, following, precision="highest") * q
        # Where the Krylov space has no further direction, what is left is rounding.
        basis.append(_unit(jnp.where(jnp.linalg.norm(following) > ROUNDING * length, following, 0)))
    return Curvature(jnp.ones(()), value, gradient, root * jnp.stack(basis))


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-20)


def metric(run: Trajectory, last: int | Array = -1) -> Float[Array, "*runs dim"]:
    """P at a save of a run, or of a batch of them: Adam's 1 / sqrt(nu) where `nu` was recorded, else 1."""
    assert run.weights is not None
    if run.state is None or "nu" not in run.state:
        return jnp.ones_like(run.weights[..., last, :], jnp.float32)
    return 1 / (jnp.sqrt(run.state["nu"][..., last, :].astype(jnp.float32)) + 1e-8)


def measure_curvature(run: Trajectory, loss: Callable[[Array], Array]) -> Trajectory:
    r"""The run, with the gradient of the loss and four Krylov directions at its last weights: more to forecast by.

    Use it on a prefix where the training loss is at hand, for a field that was fitted with `losses`.

    .. math:: \mathcal K = \mathrm{span} \{ P g, \; P H P g, \; (P H)^2 P g, \; (P H)^3 P g \}, \qquad P = \texttt{metric(run)}

    Args:
      run: one run, up to its last observed save, with weights.
      loss: `weights [dim] -> scalar`, on data that the run was trained on. It is differentiated twice; the more of the data,
        the better: late in training the gradient is that of few examples.

    Returns:
      The run with its `curvature`, for about four gradients' worth of work.

    Raises:
      ValueError: for a run without weights, a batch of runs, or a loss that is no scalar.

    >>> run = Trajectory(step=jnp.arange(3), time=0.1 * jnp.arange(3), weights=jnp.ones((3, 2)))
    >>> measure_curvature(run, lambda w: jnp.sum(w**2)).curvature.gradient
    Array([2., 2.], dtype=float32)
    """
    run = as_run(run)
    assert run.weights is not None
    if run.weights.ndim != 2:
        raise ValueError(f"run: expected one run [saves, dim], got {run.weights.shape}; map over a batch with jax.vmap")
    weights = jnp.asarray(run.weights[-1], jnp.float32)
    shape = jax.eval_shape(loss, weights).shape
    if shape != ():
        raise ValueError(f"loss: expected a scalar from the weights of a run, got an array of shape {shape}")
    return run._replace(curvature=curvature_at(loss, weights, metric(run)))


def no_curvature(weights: Float[Array, "*runs dim"]) -> Curvature:
    """Stands for a curvature that nobody measured."""
    *runs, dim = weights.shape
    zeros = lambda *shape: jnp.zeros((*runs, *shape), jnp.float32)
    return Curvature(zeros(), zeros(), zeros(dim), zeros(len(KRYLOV), dim))
