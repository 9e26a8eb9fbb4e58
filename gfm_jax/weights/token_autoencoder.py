"""Learned codes by tokens: one encoder for networks of several widths."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Codec, Layout, Learner, config_of
from gfm_jax.networks import MLP, DeepSet, init_network
from gfm_jax.weights.autoencoder import DEFAULTS, Terms, autoencoder_loss, check_codec, draw_inputs, draw_networks
from gfm_jax.weights.linear import check_length, check_weights, mean_and_std
from gfm_jax.weights.tokens import from_tokens, to_tokens, tokens_of

__all__ = ["token_autoencoder"]

PLACE = 64  # numbers that tell a token's place


class Params(NamedTuple):
    """The networks, and of the weights that they were fitted to the mean for each layout, and the deviation of all."""

    networks: PyTree
    means: tuple[Float[Array, " dim"], ...]
    scale: Float[Array, ""]


def token_autoencoder(
    layouts: Sequence[Layout],
    num_codes: int = 32,
    outputs: Sequence[Callable[[Array, Array], Array]] | None = None,
    inputs: Array | None = None,
    *,
    token_size: int | None = None,
    augment: Sequence[Callable[[Array, Array], Array]] | None = None,
    widths: Sequence[int] = (512, 512),
    weights: float = 0.1,
    behaviour: float = 1.0,
    kl: float = 0.0,
    noise: float = 0.1,
    logits: bool = True,
    num_inputs: int = 64,
    batch_size: int = 128,
) -> tuple[Codec, ...]:
    r"""Codes of one length for networks of several layouts: a deep set of their tokens, and a perceptron that makes each token.

    .. math:: z = \rho\left(\frac1n \sum_i \phi(\tau_i, p_i)\right), \qquad \hat\tau_i = \psi(z, p_i)

    with :math:`\tau_i` the tokens of `tokens_of` and :math:`p_i` a learned vector for the place of each. A code can be decoded
    to any of the layouts.

    Args:
      layouts: of the flat weights, one for each kind of network, all with the same layers.
      num_codes: of a network.
      outputs: for each layout `(w [dim], inputs) -> [num, outputs]`; without it only weights count.
      inputs: examples that the behaviour is compared on.
      token_size: weights in a token; by default as many as the largest unit of all layouts has.
      augment: for each layout `(key, w) -> w`, as in `autoencoder`.
      widths, weights, behaviour, kl, noise, logits, num_inputs, batch_size: as in `autoencoder`; of the widths the encoder's
        hidden layers take the first.

    Returns:
      A codec for each layout. They share parameters: a fit of any of them takes the weights of all, a sequence of
      [num, dim], or one such array where there is one layout.

    Raises:
      ValueError: for no layout, layouts of different layers, a number of functions that differs from that of layouts, as
        `autoencoder`; in `fit` for weights of another number of kinds or another size.

    >>> layouts = [Layout(("in/kernel", "out/kernel"), ((2, width), (width, 1))) for width in (3, 4)]
    >>> small, large = token_autoencoder(layouts, 16)
    >>> dict(large.learner.config.choices)["token_size"]  # the last unit of the larger has 4 weights
    4

    Tokens for weights as in scalable hyper-representations, arXiv 2406.09997.
    """
    check_codec(num_codes, None if outputs is None else outputs[0], inputs)
    terms = Terms(weights, behaviour if outputs is not None else 0.0, kl, noise, logits, num_inputs, batch_size)
    if not layouts:
        raise ValueError("layouts: expected at least one, got none")
    if other := [layout.names for layout in layouts if layout.names != layouts[0].names]:
        raise ValueError(f"layouts: expected the same layers in all, {layouts[0].names}, got {other[0]}")
    for name, functions in (("outputs", outputs), ("augment", augment)):
        if functions is not None and len(functions) != len(layouts):
            raise ValueError(f"{name}: expected one for each of {len(layouts)} layouts, got {len(functions)}")
    size = max(tokens_of(layout).index.shape[1] for layout in layouts) if token_size is None else token_size
    kinds = tuple(tokens_of(layout, size) for layout in layouts)
    most = (max(int(getattr(kind, name).max()) for kind in kinds) + 1 for name in ("layer", "unit", "chunk"))
    module = Networks(tuple(widths), num_codes, size, tuple(most))
    coders = [
        (functools.partial(_posterior, module, k, tokens), functools.partial(_decode, module, k, tokens))
        for k, tokens in enumerate(kinds)
    ]
    none = (None,) * len(layouts)
    loss, sample = _objective(terms, coders, outputs or none, augment or none)
    examples = () if inputs is None else jnp.asarray(inputs)

    def prepare(key, weights):
        weights = (weights,) if hasattr(weights, "ndim") else tuple(weights)
        if len(weights) != len(layouts):
            raise ValueError(f"weights: expected those of {len(layouts)} kinds of networks, got {len(weights)}")
        weights = tuple(check_weights(own, 2) for own in weights)
        for own, layout in zip(weights, layouts, strict=True):
            if own.shape[1] != layout.dim:
                raise ValueError(f"weights: expected {layout.dim} for each network of its layout, got {own.shape[1]}")
        return weights, examples

    def init(key, data) -> Params:
        weights, _ = data
        networks = init_network(module, key, to_tokens(kinds[0], weights[0][0]), *_places(kinds[0]))
        means, stds = zip(*map(mean_and_std, weights), strict=True)
        scale = jnp.sqrt(sum(own.var(0).mean() for own in weights) / len(weights))
        scale = jnp.where((scale > 0) & (scale < jnp.inf), scale, jnp.stack(stds).max())
        return Params(networks, means, scale)

    config = config_of(
        "weights.token_autoencoder",
        layouts=tuple(layouts),
        num_codes=num_codes,
        token_size=size,
        widths=tuple(widths),
        outputs=outputs and tuple(outputs),
        augment=augment and tuple(augment),
        **terms._asdict(),
    )
    learner = Learner(init, sample, loss, config, DEFAULTS, prepare=prepare, frozen=("means", "scale"))
    first = lambda encode: lambda params, w: encode(params, w)[0]
    return tuple(Codec(learner, first(encode), decode) for encode, decode in coders)


class Networks(nn.Module):
    """Encoder and decoder of tokens at their places."""

    widths: tuple[int, ...]
    num_codes: int
    size: int
    most: tuple[int, ...]  # layers, units, chunks

    def setup(self) -> None:
        self.embeddings = [nn.Embed(most, PLACE) for most in self.most]
        self.encoder = DeepSet(self.widths[0], 2 * self.num_codes)
        self.decoder = MLP((*self.widths, self.size), nn.gelu)

    def place(self, *indices):
        return sum(embedding(index) for embedding, index in zip(self.embeddings, indices, strict=True))

    def encode(self, tokens, *indices):
        together = jnp.concatenate([tokens, self.place(*indices)], axis=1)
        return jnp.split(self.encoder(together), 2, axis=-1)

    def decode(self, z, *indices):
        place = self.place(*indices)
        return self.decoder(jnp.concatenate([jnp.broadcast_to(z, (len(indices[0]), len(z))), place], axis=1))

    def __call__(self, tokens, *indices):
        return self.decode(self.encode(tokens, *indices)[0], *indices)


def _places(tokens):
    return tuple(jnp.asarray(part) for part in (tokens.layer, tokens.unit, tokens.chunk))


def _posterior(module, k, tokens, params, w):
    check_length("weights", w, params.means[k])
    vectors = to_tokens(tokens, (w - params.means[k]) / params.scale)
    return module.apply(params.networks, vectors, *_places(tokens), method="encode")


def _decode(module, k, tokens, params, z):
    vectors = module.apply(params.networks, z, *_places(tokens), method="decode")
    return params.means[k] + params.scale * from_tokens(tokens, vectors)


def _objective(terms, coders, outputs, augments):
    """The mean of the loss over the kinds of networks."""

    def sample(key, data):
        weights, examples = data
        key_inputs, *keys = jax.random.split(key, 1 + len(weights))
        batches = tuple(
            draw_networks(terms, jax.random.split(key_own), own, augment)
            for key_own, own, augment in zip(keys, weights, augments, strict=True)
        )
        return batches, () if outputs[0] is None else draw_inputs(terms, key_inputs, examples)

    def loss(params, key, batch):
        weights, seen = batch
        found = [
            autoencoder_loss(terms, encode, decode, of_kind, params, own_key, own, seen)
            for own_key, own, of_kind, (encode, decode) in zip(
                jax.random.split(key, len(weights)), weights, outputs, coders, strict=True
            )
        ]
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *found)

    return loss, sample
