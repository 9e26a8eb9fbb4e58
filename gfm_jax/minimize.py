"""`minimize`: a few steps of an optimizer on a small objective, inside a larger computation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from gfm_jax.checks import check_count
from gfm_jax.convolutions import fast_in_loops

__all__ = ["minimize"]


def minimize(
    objective: Callable[..., Array],
    start: PyTree,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    key: Array | None = None,
    path: bool = False,
) -> PyTree:
    r"""Steps of an optimizer, as one `jax.lax.scan`.

    .. math:: x_{k+1} = x_k + \mathrm{update}(\nabla f(x_k))

    Use it for an inner optimization that has to be compiled, mapped or differentiated; `fit` is for those that take long, which
    it reports, keeps and resumes.

    Args:
      objective: `(x) -> scalar`, or `(x, key) -> scalar` where a key is given.
      start: x_0, a pytree of arrays of floats.
      optimizer: an optax transformation of gradients alone.
      num_steps: at least 0.
      key: None, or randomness of the objective, split into a key for each step.
      path: whether to keep all points.

    Returns:
      x after the last step, or, of a path, before and after every step: each array led by [num_steps + 1].

    Raises:
      ValueError: for a number of steps that is no integer of at least 0.

    >>> import jax.numpy as jnp, optax
    >>> minimize(lambda x: jnp.sum((x - 1) ** 2) / 2, jnp.zeros(2), optax.sgd(0.5), 2)
    Array([0.75, 0.75], dtype=float32)
    """
    num_steps = check_count("num_steps", num_steps, least=0)

    def step(carry, key):
        x, state = carry
        arguments = (x,) if key is None else (x, key)
        gradient = fast_in_loops(jax.grad(objective))(*arguments)
        updates, state = optimizer.update(gradient, state, x)
        return (optax.apply_updates(x, updates), state), x if path else None

    keys = None if key is None else jax.random.split(key, num_steps)
    (last, _), before = jax.lax.scan(step, (start, optimizer.init(start)), keys, length=num_steps)
    return jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), before, last) if path else last
