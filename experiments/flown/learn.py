"""Who generates: the flow, and what stands beside it, all on the codes of one encoder."""

from typing import NamedTuple

import jax
from jaxtyping import PyTree

from experiments.flown.contexts import Lessons
from gfm_jax.base import Encoder, Generator
from gfm_jax.encoders import autoencoder, chain, relabel, standardized
from gfm_jax.methods import empirical_flow_matching, flow_to_learn
from gfm_jax.methods import weight_baselines as baselines
from gfm_jax.networks import TimeMLP

__all__ = ["Codes", "codec", "conditional", "unconditional"]

WIDTHS = (512, 512, 512)


class Codes(NamedTuple):
    """An encoder that is fitted, and what generators learn from."""

    encoder: Encoder
    params: PyTree
    lessons: Lessons


def codec(config, zoo) -> Encoder:
    """Codes of unit deviation, by an autoencoder that sees every network with its labels in any order."""
    shuffle = lambda key, w: relabel(zoo.relabeling, jax.random.permutation(key, config.num_ways), w)
    images = zoo.images["train"].inputs
    learned = autoencoder(config.num_codes, zoo.apply, images, augment=shuffle, num_steps=config.encoder_steps)
    return chain(learned, standardized(by_coordinate=True))


def conditional(config, encoder: Encoder, init) -> dict[str, Generator]:
    """By name, what makes a network for a context."""
    return {
        "random initialisation": baselines.random(init),
        "mean": baselines.mean(),
        "soup": baselines.soup(),
        "retrieval": baselines.retrieval(),
        "ridge": baselines.ridge(encoder),
        "hypernetwork": baselines.hypernetwork(encoder, num_steps=config.flow_steps),
        "flow": _flow(config, encoder),
    }


def unconditional(config, encoder: Encoder, init) -> dict[str, Generator]:
    """By name, what makes a network of any task."""
    return {
        "random initialisation": baselines.random(init),
        "interpolation": baselines.interpolation(),
        "soup": baselines.soup(),
        "noise around a network": baselines.perturbation(),
        "gaussian": baselines.gaussian(encoder),
        "flow": _flow(config, encoder),
    }


def _flow(config, encoder):
    velocity = empirical_flow_matching(TimeMLP(WIDTHS), num_steps=config.flow_steps)
    return flow_to_learn(encoder, velocity)
