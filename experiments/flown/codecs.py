"""Codecs side by side: what each leaves of networks, and what a Gaussian and a flow make of its codes."""

import functools

import jax

from experiments.flown.judge import accuracy
from experiments.flown.learn import SOLVER_STEPS, flow_on, shuffled
from gfm_jax.base import Codec
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.weights import Zoo, autoencoder, baselines, chain, low_rank, pca, standardized, token_autoencoder
from gfm_jax.weights.codes import decode_all, encode_all

__all__ = ["codecs", "judge_codec", "round_trip"]

SHARE = 0.5  # of the steps of the experiment's own encoder and flow


def codecs(config, zoo) -> dict[str, Codec]:
    """By name, codecs beside the experiment's own."""
    images, shuffle = zoo.images["train"].inputs, shuffled(config, zoo)
    steps, num = max(1, round(SHARE * config.encoder_steps)), config.num_codes
    short = functools.partial(with_defaults, num_steps=steps)
    learned = lambda num, **options: short(autoencoder(num, zoo.apply, images, augment=shuffle, **options))
    unit = lambda encoder: chain(encoder, standardized(by_coordinate=True))
    [tokens] = token_autoencoder([zoo.layout], num, [zoo.apply], images, augment=[shuffle])
    return {
        f"principal components, {num}": pca(num),
        f"principal components, {4 * num}": pca(4 * num),
        f"adapters of the mean, rank {RANK}": unit(low_rank(zoo.layout, zoo.train.weights.mean(0), RANK)),
        f"autoencoder, {num}": unit(learned(num)),
        f"autoencoder by weights alone, {num}": unit(short(autoencoder(num, augment=shuffle))),
        f"variational, {num}": unit(learned(num, kl=1e-3)),
        f"tokens, {num}": unit(short(tokens)),
        f"autoencoder without noise, {4 * num}": unit(learned(4 * num, noise=0.0, weights=0.3)),
    }


RANK = 2


def round_trip(encoder: Codec, params, zoo):
    """The accuracy of runs that were not learned from, after a round trip."""
    back = decode_all(encoder, params, encode_all(encoder, params, zoo.unseen.weights))
    return accuracy(zoo.apply, back, zoo.unseen.classes, zoo.images["test"])


def judge_codec(key, config, zoo, exam, lessons, encoder: Codec, place, name: str) -> dict[str, float]:
    """Of networks of any task: held-out ones through the codec, and those of a Gaussian and of a flow on its codes."""
    key_encoder, *keys = jax.random.split(key, 5)
    params, _ = fit(key_encoder, encoder, zoo.train.weights, folder=place / "encoder", progress=name)
    made = {}
    flow = flow_on(encoder, max(1, round(SHARE * config.flow_steps)))
    models = ("gaussian", baselines.gaussian(encoder)), ("flow", flow)
    for number, (row, model) in enumerate(models):
        long = {"folder": place / row, "progress": f"{name}, {row}"} if row == "flow" else {}
        fitted, _ = fit(keys[2 * number], model, Zoo(lessons.weights, codec_params=params), **long)
        options = {"num_steps": SOLVER_STEPS} if row == "flow" else {}
        made[row] = model.generate(keys[2 * number + 1], fitted, config.num_generated, **options)
    codes = encoder.encode(params, zoo.train.weights[0])
    return {
        "codes": float(len(codes)),
        "round trip": float(round_trip(encoder, params, zoo).mean()),
        **{row: float(exam.accuracy(weights).mean()) for row, weights in made.items()},
    }
