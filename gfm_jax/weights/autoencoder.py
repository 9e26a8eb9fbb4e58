"""Learned codes, by an autoencoder that is asked for what networks do, not only for what their weights are."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Codec, Defaults, Learner, config_of
from gfm_jax.networks import MLP, init_network
from gfm_jax.weights.linear import check_length, check_weights, mean_and_std
from gfm_jax.weights.reconstruction import behavioural, gaussian_kl

__all__ = ["DEFAULTS", "Terms", "autoencoder", "autoencoder_loss", "check_codec", "draw_inputs", "draw_networks"]


class Terms(NamedTuple):
    """What the loss of an autoencoder consists of, as `autoencoder` has them."""

    weights: float
    behaviour: float
    kl: float
    noise: float
    logits: bool
    num_inputs: int
    batch_size: int


class Params(NamedTuple):
    """The networks, and the mean and the scale of the weights that they were fitted to."""

    networks: PyTree
    mean: Float[Array, " dim"]
    scale: Float[Array, ""]


def autoencoder(
    num_codes: int = 32,
    outputs: Callable[[Array, Array], Array] | None = None,
    inputs: Array | None = None,
    *,
    augment: Callable[[Array, Array], Array] | None = None,
    widths: Sequence[int] = (512, 512),
    weights: float = 0.1,
    behaviour: float = 1.0,
    kl: float = 0.0,
    noise: float = 0.1,
    logits: bool = True,
    num_inputs: int = 64,
    batch_size: int = 128,
) -> Codec:
    r"""Codes from which a perceptron makes networks that do what the originals do.

    .. math:: \min \; \lambda_f \frac{E|f_w(x) - f_{\hat w}(x)|^2}{E|f_w(x)|^2} + \lambda_w \frac{|w - \hat w|^2}{\sigma^2} +
       \lambda_{KL} \, KL(q(z|w) \,|\, N(0, 1)), \qquad \hat w = D(z), \; z \sim q(z | w)

    Use it where networks of equal behaviour differ in their weights; `pca` is faster, and is enough for small networks.

    Args:
      num_codes: codes of a network, at least 1.
      outputs: `(w [dim], inputs [num, ...]) -> [num, outputs]`; without it only weights count.
      inputs: examples that the behaviour is compared on, [num, ...].
      augment: `(key, w) -> w`, another network that might as well have been among the data, drawn afresh at every step.
      widths: of the hidden layers of the encoder, and in reverse of the decoder.
      weights, behaviour, kl: weights of the three terms of the loss, at least 0.
      noise: deviation of noise on the codes where kl is 0; else every code learns its own, which makes this a variational one.
      logits: whether outputs are logits, whose mean over classes does not count; False for regression.
      num_inputs: examples on which a batch of networks is compared.
      batch_size: networks in a batch.

    Returns:
      A codec, fitted to weights [num, dim]; `encode` gives the mean of q(z | w).

    Raises:
      ValueError: for fewer than one code, outputs without inputs or the other way round.

    >>> import gfm_jax as gfm, jax
    >>> codec, zoo = gfm.autoencoder(2, widths=(8,)), jax.random.normal(jax.random.key(0), (20, 5))
    >>> params, info = gfm.fit(jax.random.key(1), codec, zoo, num_steps=3)
    >>> codec.decode(params, codec.encode(params, zoo[0])).shape
    (5,)
    """
    check_codec(num_codes, outputs, inputs)
    terms = Terms(weights, behaviour if outputs is not None else 0.0, kl, noise, logits, num_inputs, batch_size)
    widths, examples = tuple(widths), () if inputs is None else jnp.asarray(inputs)
    networks_of = lambda dim: Networks(widths, num_codes, dim)

    def init(key, data):
        zoo, _ = data
        return Params(init_network(networks_of(zoo.shape[1]), key, zoo[0]), *mean_and_std(zoo))

    def posterior(params, w):
        check_length("weights", w, params.mean)
        scaled = (w - params.mean) / params.scale
        return networks_of(len(params.mean)).apply(params.networks, scaled, method="encode")

    def decode(params, z):
        found = networks_of(len(params.mean)).apply(params.networks, z, method="decode")
        return params.mean + params.scale * found

    def sample(key, data):
        key_which, key_augment, key_inputs = jax.random.split(key, 3)
        zoo, examples = data
        w = draw_networks(terms, (key_which, key_augment), zoo, augment)
        return w, () if outputs is None else draw_inputs(terms, key_inputs, examples)

    loss = lambda params, key, batch: autoencoder_loss(terms, posterior, decode, outputs, params, key, *batch)
    config = config_of(
        "weights.autoencoder", num_codes=num_codes, widths=widths, outputs=outputs, augment=augment, **terms._asdict()
    )
    prepare = lambda key, zoo: (check_weights(zoo, 2), examples)
    learner = Learner(init, sample, loss, config, DEFAULTS, prepare=prepare, frozen=("mean", "scale"))
    return Codec(learner, lambda params, w: posterior(params, w)[0], decode)


def check_codec(num_codes: int, outputs, inputs) -> None:
    """Raises ValueError for fewer than one code, outputs without inputs or the other way round."""
    if num_codes < 1:
        raise ValueError(f"num_codes: expected at least 1, got {num_codes}")
    if (outputs is None) != (inputs is None):
        given, missing = ("inputs", "outputs") if outputs is None else ("outputs", "inputs")
        raise ValueError(f"{missing}: expected beside {given}, got none")


class Networks(nn.Module):
    """Encoder and decoder."""

    widths: tuple[int, ...]
    num_codes: int
    dim: int

    def setup(self) -> None:
        self.encoder = MLP((*self.widths, 2 * self.num_codes), nn.gelu)
        self.decoder = MLP((*self.widths[::-1], self.dim), nn.gelu)

    def encode(self, w):
        return jnp.split(self.encoder(w), 2, axis=-1)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, w):
        return self.decode(self.encode(w)[0])


def draw_networks(terms: Terms, keys: Sequence[Array] | Array, weights: Array, augment) -> Array:
    """A batch of networks, each augmented by itself."""
    key_which, key_augment = keys
    w = weights[jax.random.randint(key_which, (terms.batch_size,), 0, len(weights))]
    return w if augment is None else jax.vmap(augment)(jax.random.split(key_augment, terms.batch_size), w)


def draw_inputs(terms: Terms, key: Array, examples: Array) -> Array:
    """Examples on which a batch of networks is compared."""
    return examples[jax.random.randint(key, (terms.num_inputs,), 0, len(examples))]


def autoencoder_loss(terms: Terms, encode, decode, outputs, params, key, weights, seen) -> tuple[Any, dict[str, Array]]:
    """What a round trip of a batch loses, by term: `encode(params, w) -> mean, log_std`, `decode(params, z) -> w`."""

    def one(key, w):
        mean, log_std = encode(params, w)
        std = jnp.exp(log_std) if terms.kl else terms.noise
        found = decode(params, mean + std * jax.random.normal(key, mean.shape, mean.dtype))
        lost = {"weights": jnp.mean((found - w) ** 2) / params.scale**2}
        if outputs is not None:
            lost["behaviour"] = behavioural(outputs, found, w, seen, logits=terms.logits)
        if terms.kl:
            lost["kl"] = gaussian_kl(mean, log_std)
        return lost

    lost = jax.tree.map(jnp.mean, jax.vmap(one)(jax.random.split(key, len(weights)), weights))
    return sum(getattr(terms, name) * term for name, term in lost.items()), lost


def codec_optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Adam on a cosine, with clipped gradients."""
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(num_steps // 50, 1), num_steps + 1)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


DEFAULTS = Defaults(num_steps=3000, learning_rate=1e-3, optimizer=codec_optimizer)
