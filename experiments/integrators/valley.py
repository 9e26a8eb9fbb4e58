"""A curved valley in the plane, to look at: where runs go, beside the flow."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.integrators.methods import ON_THE_FLOW

__all__ = ["SHOWN", "loss", "walk"]

SHOWN = ("sgd", "adams_bashforth_2", "taylor4_opt", "heun", "rk4")
START, TIME, GRADIENTS = jnp.array([-1.1, 1.6]), 1.6, 64


def loss(w):
    """A parabola along a valley b = a^2."""
    return (1 - w[0]) ** 2 / 2 + 4 * (w[1] - w[0] ** 2) ** 2 / 2


def walk() -> dict[str, np.ndarray]:
    """Paths [points, 2] of the shown methods, at as many gradients each, and of the flow."""
    gradient = jax.grad(loss)
    flow = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, w, _: -gradient(w)),
        diffrax.Tsit5(),
        0.0,
        TIME,
        0.001,
        START,
        saveat=diffrax.SaveAt(ts=jnp.linspace(0, TIME, 200)),
    )
    return {"flow": np.asarray(flow.ys)} | {name: _path(ON_THE_FLOW[name], gradient) for name in SHOWN}


def _path(method, gradient):
    updates = GRADIENTS // method.gradients
    transform = optax.with_extra_args_support(method.make(TIME / updates))

    def step(carry, _):
        weights, state = carry
        moved, state = transform.update(gradient(weights), state, weights, grad_fn=gradient)
        weights = optax.apply_updates(weights, moved)
        return (weights, state), weights

    walk = jax.jit(lambda: jax.lax.scan(step, (START, transform.init(START)), length=updates)[1])
    return np.concatenate([START[None], walk()])
