"""Flow matching: regression of a velocity on the velocities of paths."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Interpolant, PathSample
from gfm_jax.fields import posterior, velocity_to
from gfm_jax.paths import linear

__all__ = ["empirical_path", "flow_matching_loss"]


def flow_matching_loss(
    velocity: Float[Array, "*batch"], path: PathSample, weight: Float[Array, "*batch"] | float = 1.0
) -> Float[Array, ""]:
    r"""Conditional flow matching.

    .. math:: E \; \omega \, | v_\theta(x_t, t) - \dot x_t |^2

    Its minimiser is the conditional mean E[dx_t | x_t, t], the velocity of the marginals.

    Args:
      velocity: v_theta at (t, x_t).
      path: the samples.
      weight: omega, of each sample.
    """
    return jnp.mean(weight * (velocity - path.dx_t) ** 2)


def empirical_path(
    path: PathSample,
    companions: Float[Array, "*batch num dim"],
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
      path: a batch of points on paths of that interpolant from that source, [batch, dim].
      companions: b, [batch, M, dim] with each sample's own x_1 in it, or [M, dim] with all of them, as `draw_companions` draws
        them. Without the own x_1 the target is biased.
      interpolant: the pair (alpha, beta).
      source: mean and standard deviation of the Gaussian source.
    """

    def target(t, x_t, points):
        mean = posterior(points, t, x_t, interpolant=interpolant, source=source, chunk=points.shape[0]).mean
        return velocity_to(interpolant, t, x_t, mean)

    own_set = 0 if companions.ndim == 3 else None
    return path._replace(dx_t=jax.vmap(target, in_axes=(0, 0, own_set))(path.t, path.x_t, companions))
