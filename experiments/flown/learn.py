"""Who generates: the flow, and what stands beside it, all on the codes of one encoder."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, PyTree

from experiments.flown.contexts import Lessons, draw_episode
from experiments.flown.judge import loss_of
from experiments.flown.meta import at_best_rate
from gfm_jax.base import Codec, Flow, Generator
from gfm_jax.fitting import with_defaults
from gfm_jax.flows import flow_map, flow_matching
from gfm_jax.networks import TimeMLP
from gfm_jax.weights import autoencoder, baselines, chain, flow_to_learn, relabel, standardized
from gfm_jax.weights.meta_learning import maml, reptile

__all__ = ["SOLVER_STEPS", "Cast", "Codes", "codec", "flow_on", "make_cast", "shuffled"]

WIDTHS = (512, 512, 512)
SOLVER_STEPS = 25  # of Heun's method, two velocities each
INNER_STEPS = 5  # of MAML and Reptile


class Codes(NamedTuple):
    """An encoder that is fitted, and what generators learn from."""

    encoder: Codec
    params: PyTree
    lessons: Lessons


def codec(config, zoo) -> Codec:
    """Codes of unit deviation, by an autoencoder that sees every network with its labels in any order."""
    images, augment = zoo.images["train"].inputs, shuffled(config, zoo)
    learned = autoencoder(config.num_codes, zoo.apply, images, augment=augment, noise=config.code_noise)
    return chain(with_defaults(learned, num_steps=config.encoder_steps), standardized(by_coordinate=True))


def shuffled(config, zoo) -> Callable[[Array, Array], Array]:
    """`(key, w) -> w`, with its labels in any order."""
    return lambda key, w: relabel(zoo.relabeling, jax.random.permutation(key, config.num_ways), w)


class Cast(NamedTuple):
    """By name, everyone who makes networks: for a context, from episodes of the training tasks, of any task. Made once, so that
    another fit compiles nothing."""

    conditional: dict[str, Generator]
    meta: dict[str, Generator]
    unconditional: dict[str, Generator]


def make_cast(config, zoo, encoder: Codec) -> Cast:
    """Everyone, on the codes of one encoder."""
    flow, steps = flow_on(encoder, config.flow_steps), config.flow_steps
    conditional = {
        "random initialisation": baselines.random(zoo.init),
        "mean": baselines.mean(),
        "soup": baselines.soup(),
        "retrieval": baselines.retrieval(),
        "ridge": baselines.ridge(encoder),
        "hypernetwork": baselines.hypernetwork(encoder, num_steps=steps),
        "flow": flow,
        "flow map": flow_to_learn(encoder, with_defaults(flow_map(TimeMLP(WIDTHS)), num_steps=steps)),
    }
    loss, draw = (
        loss_of(zoo.apply),
        functools.partial(draw_episode, config.num_ways, config.shots[len(config.shots) // 2]),
    )
    options = {"inner_steps": INNER_STEPS, "batch_size": 16}
    meta = {
        name: at_best_rate(make, config.inner_rates, config.meta_steps, zoo.init, loss, draw, **options)
        for name, make in (("maml", maml), ("reptile", reptile))
    }
    unconditional = {
        "random initialisation": conditional["random initialisation"],
        "interpolation": baselines.interpolation(),
        "soup": conditional["soup"],
        "noise around a network": baselines.perturbation(),
        "gaussian": baselines.gaussian(encoder),
        "flow": flow,
    }
    chosen = lambda makers: {name: own for name, own in makers.items() if name in (*ALWAYS, *config.makers)}
    return Cast(chosen(conditional), chosen(meta), unconditional)


ALWAYS = ("random initialisation", "flow")


@functools.cache
def flow_on(encoder: Codec, num_steps: int) -> Generator:
    """Flow to learn, with a perceptron as velocity."""
    return flow_to_learn(encoder, _velocity(num_steps))


@functools.cache  # so that codes of one length share programs
def _velocity(num_steps: int) -> Flow:
    return with_defaults(flow_matching(TimeMLP(WIDTHS)), num_steps=num_steps, learning_rate=5e-3)
