"""Classifier-free guidance, of velocities and of flow maps."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfm_jax.base import Flow, Learner

__all__ = ["guide", "guided", "guided_velocity"]


def guided_velocity(
    conditional: Float[Array, "*event"], unconditional: Float[Array, "*event"], strength: Float[Array, ""] | float
) -> Float[Array, "*event"]:
    r"""Classifier-free guidance: q = v(x; 0) + a (v(x; c) - v(x; 0)); 1 is the conditional velocity itself.

    With it as the teacher a map learns the guided flow. How to build a consistency model, arXiv 2505.18825, its section on
    guidance.

    Args:
      conditional, unconditional: v(x; c) and v(x; 0), of one shape.
      strength: a, above 1 to follow the condition more strongly.

    >>> guided_velocity(jnp.array([3.0]), jnp.array([1.0]), 2.0).tolist()
    [5.0]
    """
    return unconditional + strength * (conditional - unconditional)


def guide(flow: Flow, strength: float | Float[Array, ""]) -> Flow:
    r"""A flow that follows its condition more strongly than it was learned to.

    .. math:: q(t, x; c) = v(t, x; 0) + a \left( v(t, x; c) - v(t, x; 0) \right)

    Args:
      flow: of `flow_matching(network, condition_dropout=...)`, or of `flow_map(network, max_guidance=...)`, which follows the
        guided velocity in as few steps as the plain one.
      strength: a; 1 is the flow itself, above 1 moves away from what is generated without a condition. For a flow map at most
        its `max_guidance`.

    Returns:
      The flow with guided velocity and flow map, with the same parameters.

    Raises:
      ValueError: for a flow that was not fitted for guidance, or a strength beyond what it was fitted for.

    >>> import gfm_jax as gfm
    >>> flow = gfm.flow_matching(gfm.networks.TimeMLP((16,)), condition_dropout=0.1)
    >>> stronger = gfm.flows.guide(flow, 2.0)
    """
    if flow.guided is None:
        raise ValueError(
            "flow: expected one with condition_dropout or max_guidance, got one that was not fitted for guidance"
        )
    return flow.guided(strength)


def guided(learner: Learner, velocity: Callable[..., Array], strength) -> Flow:
    """The flow of a guided velocity."""

    def stronger(params, t, x, cond=None):
        if cond is None:
            raise ValueError("cond: expected a condition to be guided by, got None")
        v = velocity(params, t, x, cond)
        return guided_velocity(v, velocity(params, t, x, jnp.zeros_like(cond)), strength)

    return Flow(learner, stronger)
