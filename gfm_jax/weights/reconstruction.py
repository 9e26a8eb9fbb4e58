"""How much of a network is left after a round trip through its codes: in behaviour, and in nats."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["behavioural", "gaussian_kl"]


def behavioural(
    outputs: Callable[[Array, Array], Array],
    found: Float[Array, " dim"],
    target: Float[Array, " dim"],
    inputs: Array,
    *,
    logits: bool = True,
) -> Float[Array, ""]:
    r"""What the round trip changes in the outputs, in units of their own mean square.

    .. math:: \frac{E_x |f_w(x) - f_{\hat w}(x)|^2}{E_x |f_w(x)|^2}

    On behavioural losses of weight-space encoders, arXiv 2503.17138.

    Args:
      outputs: `(w, inputs) -> [num, outputs]`.
      found, target: weights.
      inputs: examples to look at.
      logits: whether the mean over the outputs of an example is left out, as softmax leaves it out.

    Returns:
      This fraction; where the network's outputs are all zero, the mean square of the change itself.

    Raises:
      ValueError: for logits of one class.
    """
    f_found, f_target = outputs(found, inputs), outputs(target, inputs)
    if logits:
        if f_target.shape[-1] == 1:
            raise ValueError("logits: expected False for one output, got True")
        f_found, f_target = (f - f.mean(-1, keepdims=True) for f in (f_found, f_target))
    size = jnp.mean(f_target**2)
    return jnp.mean((f_found - f_target) ** 2) / jnp.where(size > 0, size, 1)


def gaussian_kl(mean: Float[Array, " codes"], log_std: Float[Array, " codes"]) -> Float[Array, ""]:
    r"""KL(N(mean, std^2) | N(0, 1)) in nats, a mean over codes."""
    return jnp.mean((mean**2 + jnp.exp(2 * log_std) - 1) / 2 - log_std)
