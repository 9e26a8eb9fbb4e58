"""Flow matching: regression of a velocity on the velocities of paths."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from gfm_jax.base import Interpolant, PathSample
from gfm_jax.checks import as_float
from gfm_jax.flows.closed_form import posterior, velocity_to
from gfm_jax.flows.interpolants import linear

__all__ = ["empirical_path", "flow_matching_loss"]


def flow_matching_loss(
    velocity: Float[Array, "..."], path: PathSample, weight: Float[Array, "..."] | float = 1.0
) -> Float[Array, ""]:
    r"""Conditional flow matching.

    .. math:: E \; \omega \, | v_\theta(x_t, t) - \dot x_t |^2 / d

    with the mean of the squares over the d coordinates. Its minimiser is the conditional mean E[dx_t | x_t, t], the velocity of
    the marginals.

    Args:
      velocity: v_theta at (t, x_t), in the shape of `path.dx_t`.
      path: the samples.
      weight: omega: a number, one for each sample, or one for each coordinate of each sample.

    Returns:
      The mean over samples and coordinates.

    Raises:
      ValueError: for a velocity of another shape, or weights that are not led by the samples.

    >>> from gfm_jax.flows import interpolate
    >>> path = interpolate(linear, 0.5, jnp.zeros(2), jnp.array([2.0, 0.0]))
    >>> float(flow_matching_loss(jnp.zeros(2), path))
    2.0
    """
    velocity, dx_t, weight = as_float("velocity", velocity), as_float("path", path.dx_t), as_float("weight", weight)
    if velocity.shape != dx_t.shape:
        raise ValueError(f"velocity: expected the shape of the path's, {dx_t.shape}, got {velocity.shape}")
    if weight.shape != velocity.shape[: weight.ndim]:
        raise ValueError(f"weight: expected a number for each sample of {velocity.shape}, got shape {weight.shape}")
    weight = weight.reshape(weight.shape + (1,) * (velocity.ndim - weight.ndim))
    return jnp.mean(weight * (velocity - dx_t) ** 2)


def empirical_path(
    path: PathSample,
    reference_points: Shaped[Array, "..."],
    *,
    interpolant: Interpolant = linear,
    source: tuple[float, float] = (0.0, 1.0),
) -> PathSample:
    r"""The paths of empirical flow matching: through the same points, with the mean velocity of all that might have led there.

    .. math:: \hat u_M = \sum_{j=1}^M \lambda_j \, u(x_t, t; b^{(j)}), \qquad \lambda = \mathrm{softmax}_j \log p(x_t | b^{(j)})

    Regression on it has the minimiser of conditional flow matching, and a variance that is at most as large; M = 1 is
    conditional flow matching, M = n on all the data the exact field. On the closed form of flow matching, arXiv 2506.03719,
    Algorithm 2 and Proposition 2. In the paper's equation 8 the softmax runs over the data set; it has to run over b.

    Args:
      path: a batch of points on paths of that interpolant from that source, [batch, *event].
      reference_points: b, [batch, M, *event] with each sample's own x_1 in it, or [M, *event] with all of them, as
        `draw_reference_points` draws them. Without the own x_1 the target is biased.
      interpolant: the pair (alpha, beta).
      source: mean and standard deviation of the Gaussian source.

    Returns:
      The path with the mean velocities as its dx_t.

    Raises:
      ValueError: for reference points of another number of sets or another dimension.

    >>> from gfm_jax.flows import interpolate
    >>> path = jax.tree.map(lambda leaf: leaf[None], interpolate(linear, 0.0, jnp.zeros(1), jnp.array([3.0])))
    >>> path.dx_t.tolist(), jax.jit(empirical_path)(path, jnp.array([[1.0], [3.0]])).dx_t.round().tolist()
    ([[3.0]], [[2.0]])
    """

    reference_points = as_float("reference_points", reference_points)
    event = path.x_t.shape[1:]
    sets = reference_points.shape[: reference_points.ndim - len(event)]
    if len(sets) not in (1, 2) or not sets[-1] or reference_points.shape[len(sets) :] != event:
        wanted = ", ".join(map(str, event))
        raise ValueError(
            f"reference_points: expected [batch, M, {wanted}] or [M, {wanted}], got shape {reference_points.shape}"
        )
    if len(sets) == 2 and len(reference_points) != len(path.x_t):
        raise ValueError(
            f"reference_points: expected a set for each of {len(path.x_t)} samples, got {len(reference_points)}"
        )

    def target(t, x_t, points):
        mean = posterior(points, t, x_t, interpolant=interpolant, source=source, chunk=points.shape[0]).mean
        return velocity_to(interpolant, t, x_t, mean)

    own_set = 0 if len(sets) == 2 else None
    return path._replace(dx_t=jax.vmap(target, in_axes=(0, 0, own_set))(path.t, path.x_t, reference_points))
