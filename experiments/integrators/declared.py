"""What every method declares of itself, beside what is worked out and what is measured: order, stability, noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.integrators.methods import ON_THE_FLOW
from gfm_jax.optimizers import stability
from gfm_jax.optimizers.testing import descent, distance, exact_flow, fitted_order, follow, regress

__all__ = ["measure_noise", "measure_order", "measure_stability", "orders", "regions", "root_test"]

TIME = 4.0  # of the gradient flow on which orders are fitted


def measure_order(config, key: jax.Array) -> dict[str, np.ndarray]:
    """Distances to the flow of a perceptron with 41 weights, by method [starts, numbers of updates]."""
    problems = [regress(jax.random.fold_in(key, k)) for k in range(config.num_starts)]
    gradient = problems[0].gradient  # of one network, on the examples that it is given
    several = [(problem.start, problem.examples) for problem in problems]
    starts, examples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    flow = functools.partial(exact_flow, descent(gradient))
    ends = jax.vmap(flow, (0, None, 0))(starts, TIME, examples)
    found = {}
    for name in config.methods:
        run = jax.vmap(functools.partial(follow, ON_THE_FLOW[name].make, gradient), (0, None, None, 0))
        others = [run(starts, TIME / num, num, examples) for num in config.order_updates]
        found[name] = np.stack([jax.vmap(distance)(other, ends) for other in others], axis=1)
    return found


def orders(config, far: np.ndarray) -> list[float]:
    """The fitted order from each start."""
    return [fitted_order(1 / np.array(config.order_updates), row) for row in far]


def measure_stability(config, name: str) -> float:
    """The largest learning rate at which a mode of curvature 1 dies out, by bisection on runs."""
    method = ON_THE_FLOW[name]
    low, high = 0.0, 2 * method.stability
    for _ in range(14):
        middle = (low + high) / 2
        end = follow(method.make, _identity, jnp.ones(1), middle, config.stability_updates)
        low, high = (middle, high) if bool(jnp.abs(end) < 1) else (low, middle)
    return low


def root_test(name: str) -> float | None:
    """The same of a linear multistep rule, by the roots of its polynomial."""
    coefficients = ON_THE_FLOW[name].coefficients
    return coefficients and stability.stability_interval(*coefficients)


def measure_noise(config, key: jax.Array, name: str) -> float:
    """The variance of the direction under white noise in the gradient, on flat ground."""
    transform, noise = ON_THE_FLOW[name].make(1.0), jax.random.normal(key, (config.noise_updates, 16))
    step = lambda state, g: transform.update(g, state, g)[::-1]
    return float(jax.jit(lambda: jax.lax.scan(step, transform.init(noise[0]), noise)[1][100:].var())())


def regions(names, real: np.ndarray, imaginary: np.ndarray) -> dict[str, np.ndarray]:
    """By how much a step multiplies a mode of complex curvature, of the multistep rules [imaginary, real]."""
    q = real[None, :] + 1j * imaginary[:, None]
    rules = {name: ON_THE_FLOW[name].coefficients for name in names}
    return {name: stability.growth(*rule, q) for name, rule in rules.items() if rule}


def _identity(x):
    return x
