"""A recipe in circulation that scores nearly as well as its training networks, because it copies them."""

from gfm_jax.base import Generator
from gfm_jax.fitting import with_defaults
from gfm_jax.flows import flow_matching
from gfm_jax.networks import TimeMLP
from gfm_jax.weights import flow_to_learn, pca

__all__ = ["NUM_COPIED", "SOLVER_STEPS", "copying"]

SOLVER_STEPS = 400  # of Heun's method
NUM_COPIED = 100  # training networks, in as many components but one


def copying(num_networks: int, num_steps: int) -> Generator:
    """All principal components there are, not standardized, and a source that hardly varies.

    A flow from next to a point has to tell its ends apart by what is left of the noise, and learns the way to each of them.
    Inputs are scaled so that the network sees the source, and early times are resolved; without either it copies more slowly.
    """
    network = TimeMLP((256, 256, 256), scale=0.1)
    flow = with_defaults(flow_matching(network, std_0=0.01), num_steps=num_steps, learning_rate=3e-3)
    return flow_to_learn(pca(num_networks - 1, whiten=False), flow)
