"""Learned codes, by an autoencoder that is asked for what networks do, not only for what their weights are."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Encoder
from gfm_jax.checks import check_choices
from gfm_jax.fitting import fit as minimise
from gfm_jax.networks import MLP, init_network
from gfm_jax.weights.linear import check_size, check_weights, mean_and_std
from gfm_jax.weights.reconstruction import behavioural, gaussian_kl, relative_square

__all__ = ["AutoencoderRecipe", "autoencoder"]


class AutoencoderRecipe(NamedTuple):
    """How an autoencoder is fitted.

    Attributes:
      num_codes: codes of a network.
      widths: of the hidden layers of the encoder, and in reverse of the decoder.
      weights, behaviour, kl: weights of the three terms of the loss.
      noise: deviation of noise on the codes where kl is 0; else every code learns its own, which makes this a variational one.
      logits: whether outputs are logits, whose mean over classes does not count; False for regression.
      num_inputs: examples on which a batch of networks is compared.
      num_steps, batch_size, peak_rate, clip, average: of the fit, by Adam on a cosine; the average is over parameters.
    """

    num_codes: int = 32
    widths: tuple[int, ...] = (512, 512)
    weights: float = 0.1
    behaviour: float = 1.0
    kl: float = 0.0
    noise: float = 0.1
    logits: bool = True
    num_inputs: int = 64
    num_steps: int = 3000
    batch_size: int = 128
    peak_rate: float = 1e-3
    clip: float = 1.0
    average: float = 0.999


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
    **choices,
) -> Encoder:
    r"""Codes from which a perceptron makes networks that do what the originals do.

    .. math:: \min \; \lambda_f \frac{E|f_w(x) - f_{\hat w}(x)|^2}{E|f_w(x)|^2} + \lambda_w \frac{|w - \hat w|^2}{\sigma^2} +
       \lambda_{KL} \, KL(q(z|w) \,|\, N(0, 1)), \qquad \hat w = D(z), \; z \sim q(z | w)

    Args:
      num_codes: of a network.
      outputs: `(w [dim], inputs [num, ...]) -> [num, outputs]`; without it only weights count.
      inputs: examples that the behaviour is compared on, [num, ...].
      augment: `(key, w) -> w`, another network that might as well have been among the data, drawn afresh at every step.
      **choices: any other field of `AutoencoderRecipe`.

    Returns:
      An encoder: `fit(key, weights, *, folder=None, progress=None)`; `encode` gives the mean of q(z | w).

    Raises:
      ValueError: for an unknown choice, fewer than one code, outputs without inputs or the other way round.
    """
    recipe = autoencoder_recipe(num_codes, outputs, inputs, choices)
    examples = () if inputs is None else jnp.asarray(inputs)

    def fit(key, weights, *, folder=None, progress=None) -> Params:
        weights = check_weights(weights, 2)
        key_init, key_fit = jax.random.split(key)
        networks = init_network(_networks(recipe, weights.shape[1]), key_init, weights[0])
        params = Params(networks, *mean_and_std(weights))
        loss, sample, optimizer = _objective(recipe, outputs, augment)
        options = {"average": recipe.average, "folder": folder, "progress": progress}
        data = (weights, examples)
        return minimise(key_fit, loss, params, data, sample, optimizer, recipe.num_steps, **options).params

    return Encoder(fit, functools.partial(_encode, recipe), functools.partial(_decode, recipe))


def autoencoder_recipe(num_codes: int, outputs, inputs, choices: dict) -> AutoencoderRecipe:
    """The recipe, of weights alone where there are no outputs to compare.

    Raises:
      ValueError: for an unknown choice, fewer than one code, outputs without inputs or the other way round.
    """
    check_choices(AutoencoderRecipe, choices)
    if num_codes < 1:
        raise ValueError(f"num_codes: expected at least 1, got {num_codes}")
    if (outputs is None) != (inputs is None):
        given, missing = ("inputs", "outputs") if outputs is None else ("outputs", "inputs")
        raise ValueError(f"{missing}: expected beside {given}, got none")
    recipe = AutoencoderRecipe(num_codes, **choices)
    return recipe._replace(behaviour=0.0) if outputs is None else recipe


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


def _networks(recipe, dim):
    return Networks(recipe.widths, recipe.num_codes, dim)


def _posterior(recipe, params, w):
    check_size(w, params.mean)
    networks = _networks(recipe, len(params.mean))
    return networks.apply(params.networks, (w - params.mean) / params.scale, method="encode")


def _encode(recipe, params, w):
    return _posterior(recipe, params, w)[0]


def _decode(recipe, params, z):
    networks = _networks(recipe, len(params.mean))
    return params.mean + params.scale * networks.apply(params.networks, z, method="decode")


@functools.lru_cache(maxsize=16)  # so that a second fit compiles nothing
def _objective(recipe: AutoencoderRecipe, outputs, augment):
    def sample(key, data):
        key_which, key_augment, key_inputs = jax.random.split(key, 3)
        weights, examples = data
        w = weights[jax.random.randint(key_which, (recipe.batch_size,), 0, len(weights))]
        if augment is not None:
            w = jax.vmap(augment)(jax.random.split(key_augment, recipe.batch_size), w)
        if outputs is None:
            return w, ()
        return w, examples[jax.random.randint(key_inputs, (recipe.num_inputs,), 0, len(examples))]

    def loss(params, key, batch):
        weights, seen = batch
        params = params._replace(mean=jax.lax.stop_gradient(params.mean), scale=jax.lax.stop_gradient(params.scale))
        encode, decode = functools.partial(_posterior, recipe), functools.partial(_decode, recipe)
        return autoencoder_loss(recipe, encode, decode, outputs, params, key, weights, seen)

    return loss, sample, encoder_optimizer(recipe)


def autoencoder_loss(recipe: AutoencoderRecipe, encode, decode, outputs, params, key, weights, seen):
    """What a round trip of a batch loses, by term: `encode(params, w) -> mean, log_std`, `decode(params, z) -> w`."""

    def one(key, w):
        mean, log_std = encode(params, w)
        std = jnp.exp(log_std) if recipe.kl else recipe.noise
        found = decode(params, mean + std * jax.random.normal(key, mean.shape, mean.dtype))
        terms = {"weights": relative_square(found, w, params.scale)}
        if outputs is not None:
            terms["behaviour"] = behavioural(outputs, found, w, seen, logits=recipe.logits)
        if recipe.kl:
            terms["kl"] = gaussian_kl(mean, log_std)
        return terms

    terms = jax.tree.map(jnp.mean, jax.vmap(one)(jax.random.split(key, len(weights)), weights))
    return sum(getattr(recipe, name) * term for name, term in terms.items()), terms


def encoder_optimizer(recipe: AutoencoderRecipe) -> optax.GradientTransformation:
    """Adam on a cosine, with clipped gradients."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.peak_rate, max(recipe.num_steps // 50, 1), recipe.num_steps + 1
    )
    return optax.chain(optax.clip_by_global_norm(recipe.clip), optax.adam(rate, b2=0.99))
