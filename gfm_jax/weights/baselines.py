"""The simple ways to make the weights of a network, beside which every generator stands.

All of them are fitted to weights [num, dim], a pair (weights, conditions), or a `Zoo`. Weights and conditions may be of any
real dtype; all is computed, and generated, in float32 or better.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Codec, Defaults, Generator, Learner, Procedure, config_of
from gfm_jax.checks import check_count
from gfm_jax.compiling import quick_jit
from gfm_jax.fitting import fit
from gfm_jax.flows import draw_gaussian, fit_gaussian
from gfm_jax.flows.flow_data import Conditions, adam_on_cosine, check_conditions, check_network
from gfm_jax.networks import MLP, init_network
from gfm_jax.weights.codes import decode_all, encode_all
from gfm_jax.weights.zoo import as_zoo

__all__ = ["gaussian", "hypernetwork", "interpolation", "mean", "perturbation", "random", "retrieval", "ridge", "soup"]


class Kept(NamedTuple):
    """The networks themselves, and the conditions they belong to, with the deviation of each number in them."""

    weights: Float[Array, "num dim"]
    cond: Float[Array, "num conditions"] | None
    scale: Float[Array, " conditions"] | None


class Coded(NamedTuple):
    """Parameters of a codec, and of what makes its codes."""

    codec: PyTree
    model: PyTree


def _keep(key, data, *, folder, progress):
    zoo = as_zoo(data)
    scale = None if zoo.cond is None else jnp.where(zoo.cond.std(0) > 0, zoo.cond.std(0), 1)
    return Kept(zoo.weights, zoo.cond, scale)


def _needed(cond, num, columns, where):
    """The conditions that `generate` follows."""
    cond = check_conditions(_given(cond, num, where), check_count("num", num), Conditions(columns))
    assert cond is not None
    return cond


def _given(cond, num, where):
    if cond is None:
        raise ValueError(f"cond: expected a vector for each of {num} networks, which {where} follows, got none")
    return cond


def _at_least_two(zoo, what):
    if len(zoo.weights) < 2:
        raise ValueError(f"weights: expected at least 2 networks, for {what}, got {len(zoo.weights)}")


def random(init: Callable[[Array], Array]) -> Generator:
    """Initial weights, `init(key) -> w [dim]`, that nobody trained."""
    generate = lambda key, zoo, num, cond=None: _init_all(init, jax.random.split(key, check_count("num", num)))
    return Generator(Procedure(_keep, config_of("weights.baselines.random", init=init)), generate)


# What draws at random some dozens of times would take ten times as long to optimise as to compile.
def _init_all(init, keys):
    return jax.vmap(init)(keys)


_init_all = quick_jit(_init_all, static_argnums=0)


def mean() -> Generator:
    """The mean of the zoo, for every context the same."""

    def generate(key, zoo, num, cond=None):
        return jnp.broadcast_to(zoo.weights.mean(0), (check_count("num", num), zoo.weights.shape[1]))

    return Generator(Procedure(_keep, config_of("weights.baselines.mean")), generate)


def soup(num_mixed: int = 16) -> Generator:
    """The mean of a few networks, drawn afresh for each.

    Raises:
      ValueError: for a number below 1; in `generate` for more than there are networks.
    """
    num_mixed = check_count("num_mixed", num_mixed)

    def generate(key, zoo, num, cond=None):
        if num_mixed > len(zoo.weights):
            raise ValueError(f"num_mixed: expected at most the {len(zoo.weights)} networks, got {num_mixed}")
        return _mix(num_mixed, jax.random.split(key, check_count("num", num)), zoo.weights)

    return Generator(Procedure(_keep, config_of("weights.baselines.soup", num_mixed=num_mixed)), generate)


@functools.partial(jax.jit, static_argnums=0)
def _mix(num_mixed, keys, weights):
    choose = lambda key: jax.random.choice(key, len(weights), (num_mixed,), replace=False)
    return jax.lax.map(lambda key: weights[choose(key)].mean(0), keys)


def interpolation() -> Generator:
    """A point on the segment between two networks, uniform on it."""

    def generate(key, zoo, num, cond=None):
        _at_least_two(zoo, "a segment between them")
        num = check_count("num", num)
        key_pair, key_share = jax.random.split(key)
        first, second = jax.random.randint(key_pair, (2, num), 0, len(zoo.weights))
        share = jax.random.uniform(key_share, (num, 1), zoo.weights.dtype)
        return (1 - share) * zoo.weights[first] + share * zoo.weights[second]

    return Generator(Procedure(_keep, config_of("weights.baselines.interpolation")), generate)


def perturbation(share: float = 0.1) -> Generator:
    """A network of the zoo and noise, of that share of the zoo's own deviation in every weight.

    Raises:
      ValueError: for a negative share; in `generate` for a zoo of one network, which has no deviation.
    """
    if not 0 <= share < np.inf:
        raise ValueError(f"share: expected at least 0, got {share}")

    def generate(key, zoo, num, cond=None):
        _at_least_two(zoo, "the deviation of each weight")
        num = check_count("num", num)
        key_which, key_noise = jax.random.split(key)
        chosen = zoo.weights[jax.random.randint(key_which, (num,), 0, len(zoo.weights))]
        return chosen + share * zoo.weights.std(0)[None] * jax.random.normal(key_noise, chosen.shape, chosen.dtype)

    return Generator(Procedure(_keep, config_of("weights.baselines.perturbation", share=share)), generate)


def retrieval() -> Generator:
    """The network of the zoo whose context is nearest, each number of it in units of its deviation."""

    def generate(key, zoo, num, cond=None):
        if zoo.cond is None:
            raise ValueError("cond: expected conditions in the fit, by which to retrieve")
        return _retrieve(zoo, _needed(cond, num, zoo.cond.shape[1], "retrieval"))

    return Generator(Procedure(_keep, config_of("weights.baselines.retrieval")), generate)


@jax.jit
def _retrieve(zoo, cond):
    near = lambda c: jnp.argmin(jnp.sum(((zoo.cond - c[None]) / zoo.scale[None]) ** 2, axis=1))
    return zoo.weights[jax.lax.map(near, cond)]


def gaussian(codec: Codec) -> Generator:
    """Codes of the Gaussian that has the zoo's mean and covariance: what a flow has to beat."""

    def fit_codes(key, data, *, folder, progress):
        params, codes = _codes(codec, key, as_zoo(data, least=2))
        return Coded(params, fit_gaussian(codes))

    def generate(key, params, num, cond=None):
        return decode_all(codec, params.codec, draw_gaussian(key, params.model, num))

    return Generator(Procedure(fit_codes, config_of("weights.baselines.gaussian", codec=codec)), generate)


def ridge(codec: Codec, strength: float = 1.0) -> Generator:
    """Codes that are linear in the context, by scikit-learn's ridge regression: one network for each context."""

    def fit_codes(key, data, *, folder, progress):
        from sklearn.linear_model import Ridge  # on first use: it takes a second

        zoo = as_zoo(data)
        _given(zoo.cond, len(zoo.weights), "ridge regression")
        params, codes = _codes(codec, key, zoo)
        found = Ridge(strength).fit(np.asarray(zoo.cond), np.asarray(codes))
        arrays = (found.coef_.reshape(codes.shape[1], -1), found.intercept_)
        return Coded(params, tuple(jnp.asarray(array, codes.dtype) for array in arrays))

    def generate(key, params, num, cond=None):
        slope, intercept = params.model
        cond = _needed(cond, num, slope.shape[1], "ridge regression")
        return decode_all(codec, params.codec, jnp.matmul(cond, slope.T, precision="highest") + intercept[None])

    return Generator(
        Procedure(fit_codes, config_of("weights.baselines.ridge", codec=codec, strength=strength)), generate
    )


def hypernetwork(
    codec: Codec, network: nn.Module | None = None, *, num_steps: int = 5000, learning_rate: float = 1e-3
) -> Generator:
    r"""Codes from the context by a perceptron: one network for each context.

    .. math:: \min_\theta E | h_\theta(y) - \mathrm{encode}(w) |^2

    Args:
      codec: from weights to codes.
      network: a module from conditions to codes; by default a perceptron of two hidden layers of 512.
      num_steps, learning_rate: of the fit, in batches of 256, by Adam on a cosine.

    Raises:
      ValueError: for a number of steps below 1 or a rate that is not positive; in `fit` and `generate` for conditions that are
        missing, of another number or of another length.
    """

    num_steps = check_count("num_steps", num_steps)
    if network is not None:
        check_network(network)

    def fit_codes(key, data, *, folder, progress):
        zoo = as_zoo(data)
        cond = _given(zoo.cond, len(zoo.weights), "a hypernetwork")
        key_codec, key_model = jax.random.split(key)
        params, codes = _codes(codec, key_codec, zoo)
        learner = _regression(network or _perceptron(codes.shape[1]))
        options = {"num_steps": num_steps, "learning_rate": learning_rate, "folder": folder, "progress": progress}
        found, _ = fit(key_model, learner, (cond, codes), **options)
        return Coded(params, (found, codes[0], cond[0]))

    def generate(key, params, num, cond=None):
        found, like, asked = params.model
        cond = _needed(cond, num, len(asked), "a hypernetwork")
        module = network or _perceptron(len(like))
        codes: Any = jax.vmap(functools.partial(module.apply, found))(cond)
        return decode_all(codec, params.codec, codes)

    return Generator(
        Procedure(
            fit_codes,
            config_of(
                "weights.baselines.hypernetwork",
                codec=codec,
                network=network,
                num_steps=num_steps,
                learning_rate=learning_rate,
            ),
        ),
        generate,
    )


def _perceptron(num_codes):
    return MLP((512, 512, num_codes), nn.gelu)


def _regression(module):
    def sample(key, data):
        rows = jax.random.randint(key, (256,), 0, len(data[0]))
        return data[0][rows], data[1][rows]

    def loss(params, key, batch):
        cond, codes = batch
        return jnp.mean((jax.vmap(functools.partial(module.apply, params))(cond) - codes) ** 2), {}

    init = lambda key, data: init_network(module, key, data[0][0])
    return Learner(init, sample, loss, config_of("hypernetwork", network=module), DEFAULTS)


DEFAULTS = Defaults(5000, 1e-3, functools.partial(adam_on_cosine, max_grad_norm=1.0))


def _codes(codec, key, zoo):
    params = fit(key, codec, zoo.weights)[0] if zoo.codec_params is None else zoo.codec_params
    return params, encode_all(codec, params, zoo.weights)
