"""Adjoint matching: what a velocity has to become so that samples follow a reward, from paths that forget their start."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.checks import check_count
from gfm_jax.flows.sources import GaussianSource

__all__ = ["adjoint_matching_targets", "memoryless_step"]


def memoryless_step(
    velocity: Callable[[Array, Array], Array],
    source: GaussianSource,
    s: Float[Array, ""],
    t: Float[Array, ""],
    x_s: Float[Array, " dim"],
    noise: Float[Array, " dim"],
) -> Float[Array, " dim"]:
    r"""A step of the diffusion that has the marginals of a flow along straight lines, and whose end knows nothing of its start.

    .. math:: x_t = t \hat x_1 + (1-t) \left( \mu + \rho (\hat x_0 - \mu) + \sqrt{1 - \rho^2} F n \right), \qquad
       \rho = \frac{s (1-t)}{t (1-s)}

    where :math:`\hat x_0 = x_s - s v` and :math:`\hat x_1 = x_s + (1-s) v` are what the velocity takes source and target to be.
    At s = 0 all of the source is drawn anew. In the limit of short steps, with unit noise as source,

    .. math:: dx = (2 v - x / t) \, dt + \sqrt{2 (1-t) / t} \; dB

    Means are without error for Gaussians in steps of any length. Covariances are too small by something of first order in the
    step, since what the velocity does not know of source and target is left out.

    Args:
      velocity: `(t, x) -> dx/dt`.
      source: N(mu, F F^T), independent of the targets.
      s, t: where the step begins and ends, 0 <= s < t <= 1.
      x_s: where it begins.
      noise: n, of N(0, I); zeros for the mean of the step.

    Returns:
      x_t, [dim].

    >>> source = GaussianSource(jnp.zeros(2), jnp.eye(2))
    >>> velocity, x_s = lambda t, x: jnp.ones(2), jnp.array([2.0, 0.0])
    >>> memoryless_step(velocity, source, jnp.array(0.0), jnp.array(0.5), x_s, noise=jnp.zeros(2)).tolist()
    [1.5, 0.5]

    Adjoint matching, arXiv 2409.08861, its memoryless schedule in closed steps.
    """
    v = velocity(s, x_s)
    x_0, x_1 = x_s - s * v, x_s + (1 - s) * v
    kept = s * (1 - t) / (t * (1 - s))
    fresh = jnp.sqrt(1 - kept**2) * jnp.matmul(source.factor, noise, precision="highest")
    return t * x_1 + (1 - t) * (source.mean + kept * (x_0 - source.mean) + fresh)


def adjoint_matching_targets(
    key: Array,
    velocity: Callable[[Array, Array], Array],
    base: Callable[[Array, Array], Array],
    reward: Callable[[Array], Array],
    source: GaussianSource,
    x_0: Float[Array, " dim"],
    num_steps: int,
) -> tuple[Float[Array, " steps"], Float[Array, "steps dim"], Float[Array, "steps dim"]]:
    r"""Points of one path, and the velocities there that would lead to samples of the base's law tilted by the reward.

    .. math:: p(x) \propto p_{\text{base}}(x) \, e^{r(x)}, \qquad
       v^*(s, x_s) = v_{\text{base}}(s, x_s) - \frac{1-s}{s} \, F F^\top E[a_s | x_s], \\
       a_1 = - \nabla r(x_1), \qquad a_s = \left( \frac{\partial E_{\text{base}}[x_t | x_s]}{\partial x_s} \right)^\top a_t

    for steps from s to t. The adjoint a is carried back through the mean steps of the base alone; for a Gaussian base and a
    linear or quadratic reward this is without error in any number of steps. At s = 0 the first step's own control stands in,
    :math:`(1-t)^2 / t \; F F^\top a_t`.

    Args:
      key: randomness of the path.
      velocity: that is tuned, `(t, x) -> dx/dt`; its gradient is not taken.
      base: that it started as.
      reward: `(x_1) -> scalar`, differentiable.
      source: that the base was fitted from, independent of its targets.
      x_0: a point of it.
      num_steps: even steps of the path, at least 1.

    Returns:
      (times, points, targets), the times those at which the steps begin. Nothing of them carries a gradient.

    Raises:
      ValueError: for fewer than one step, or an x_0 that is not of the source's shape.

    >>> base = lambda t, x: (2 * t - 1) / (t**2 + (1 - t) ** 2) * x  # from N(0, I) to N(0, I)
    >>> source, reward = GaussianSource(jnp.zeros(2), jnp.eye(2)), lambda x: x.sum()  # p is N((1, 1), I)
    >>> times, points, targets = adjoint_matching_targets(jax.random.key(0), base, base, reward, source, jnp.zeros(2), 2)
    >>> times.tolist(), targets[1].round().tolist()
    ([0.0, 0.5], [1.0, 1.0])

    Adjoint matching, arXiv 2409.08861: lean adjoint and memoryless schedule.
    """
    num_steps = check_count("num_steps", num_steps)
    if x_0.shape != source.mean.shape:
        raise ValueError(f"x_0: expected a point of the source, {source.mean.shape}, got shape {x_0.shape}")
    times = jnp.linspace(0, 1, num_steps + 1, dtype=x_0.dtype)
    noise = jax.random.normal(key, (num_steps, *x_0.shape), x_0.dtype)

    def forward(x, step):
        s, t, n = step
        return memoryless_step(velocity, source, s, t, x, n), x

    x_1, points = jax.lax.scan(forward, x_0, (times[:-1], times[1:], noise))

    def backward(a_t, step):
        s, t, x = step
        mean = lambda x: memoryless_step(base, source, s, t, x, jnp.zeros_like(x))
        a_s = jax.vjp(mean, x)[1](a_t)[0]
        a = jnp.where(s > 0, (1 - s) / jnp.where(s > 0, s, 1) * a_s, (1 - t) ** 2 / t * a_t)
        return a_s, base(s, x) - jnp.matmul(
            source.factor, jnp.matmul(source.factor.T, a, precision="highest"), precision="highest"
        )

    _, targets = jax.lax.scan(backward, -jax.grad(reward)(x_1), (times[:-1], times[1:], points), reverse=True)
    return jax.lax.stop_gradient((times[:-1], points, targets))
