"""Gradients for methods with several stages inside optax's wrappers, which show them a part of the parameters or a vector."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from gfm_jax.pytrees import ravel, unravel

__all__ = ["WholeGradient", "ask", "whole_params"]


class WholeGradient(NamedTuple):
    """The `grad_fn` to hand to an optimizer that stands inside `optax.masked`, `optax.partition` or `optax.flatten`.

    Use it for `heun`, `rk4`, `joint_runge_kutta`, `embedded_runge_kutta` and the like in a loop of your own (the recorder does
    it by itself). Inside these wrappers a method knows a masked tree or a flat vector, at which the gradient of the loss cannot
    be taken: what is masked is filled up with the current parameters, a vector is brought into their shapes, and the answer is
    masked or flattened alike.

        updates, state = optimizer.update(grads, state, params, grad_fn=WholeGradient(grad_fn, params))

    `optax.MultiSteps(...).update` hands `grad_fn` on, but its `.gradient_transformation()` inside another wrapper drops it. The
    first stage is then the mean over the accumulated minibatches, the others are taken on the last one.

    Attributes:
      grad_fn: `(params) -> gradient` of the whole parameters, on the minibatch of this update; further arguments are handed on.
      params: the whole parameters at this update.
    """

    grad_fn: Callable[..., PyTree]
    params: PyTree

    def __call__(self, part: PyTree, *args: object) -> PyTree:
        """The gradient at `part`, in the form of `part`."""
        gradient = self.grad_fn(whole_params(part, self.params), *args)
        if _is_vector_of(part, self.params):
            return ravel(gradient).astype(part.dtype)
        return jax.tree.map(lambda p, g: p if _is_masked(p) else g, part, gradient, is_leaf=_is_masked)


def whole_params(part: PyTree, params: PyTree) -> PyTree:
    """Parameters of which `part`, a masked tree or a flat vector, is what a wrapped optimizer sees.

    Args:
      part: a tree like `params`, also with `optax.MaskedNode` in the place of subtrees, or all of them as one vector [dim].
      params: the whole parameters, from which what is masked is taken.

    Raises:
      ValueError: for another structure, such as a vector of only some of the parameters.

    >>> whole_params(jnp.arange(3.0), {"a": jnp.zeros(2), "b": jnp.zeros(1)})["a"]
    Array([0., 1.], dtype=float32)
    """
    if _is_vector_of(part, params):
        return unravel(params, part)
    try:
        whole = jax.tree.map(lambda p, w: w if _is_masked(p) else p, part, params, is_leaf=_is_masked)
    except ValueError:
        whole = None
    if whole is None or jax.tree.map(jnp.shape, whole) != jax.tree.map(jnp.shape, params):
        raise ValueError(
            "part: expected the parameters, with some of them masked by optax.MaskedNode, or all of them as one vector, got "
            f"{jax.tree.map(jnp.shape, part)} of {jax.tree.map(jnp.shape, params)}: optax.flatten must stand outside of "
            "optax.masked and optax.partition"
        )
    return whole


def ask(grad_fn: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """`grad_fn(params)`; where a wrapper hides parameters from a plain `grad_fn`, an error that says what to do."""
    try:
        return grad_fn(params)
    except (TypeError, KeyError, AttributeError) as error:
        leaves = jax.tree.leaves(params, is_leaf=_is_masked)
        if not any(map(_is_masked, leaves)) and not (len(leaves) == 1 and jnp.ndim(params) == 1):
            raise
        raise ValueError(
            "grad_fn: expected a gradient at the parameters that the method is shown; inside optax.masked, optax.partition or "
            "optax.flatten these are a part of them or a vector: hand over grad_fn=WholeGradient(grad_fn, params), with the "
            f"whole params of the update; got {type(error).__name__}: {error}"
        ) from error


def _is_masked(node):
    return isinstance(node, optax.MaskedNode)


def _is_vector_of(part, params):
    """Whether `part` is all of `params` as one vector, and `params` are not."""
    leaves = jax.tree.leaves(params)
    if not hasattr(part, "shape") or (hasattr(params, "shape") and jnp.shape(part) == jnp.shape(params)):
        return False
    return jnp.shape(part) == (sum(leaf.size for leaf in leaves),)
