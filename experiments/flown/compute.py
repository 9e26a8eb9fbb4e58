"""How many steps of training cost as much as generating a network."""

import jax
import jax.numpy as jnp

__all__ = ["flops", "steps_of_equal_compute"]


def flops(function, *args) -> float:
    """Floating-point operations of a function without loops, by XLA's own count."""
    program = jax.jit(function).lower(*args)
    cost = program.cost_analysis() or program.compile().cost_analysis()  # a GPU counts once it has compiled
    return float(cost.get("flops", 0.0))


def steps_of_equal_compute(generator, params, encoder, context, loss, weights, examples, evaluations: int) -> int:
    """Gradient steps on the examples that take as many operations as a network by a flow: its velocity, and one decoding."""
    codes = encoder.encode(params.codec, weights)
    velocity = lambda z: generator.velocity(params, jnp.float32(0.5), z, context)
    decode = lambda z: encoder.decode(params.codec, z)
    generation = evaluations * flops(velocity, codes) + flops(decode, codes)
    return max(1, round(generation / flops(jax.value_and_grad(lambda w: loss(w, examples)), weights)))
