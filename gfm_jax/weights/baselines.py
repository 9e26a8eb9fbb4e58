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


def _from_zoo(name, draw, *, least=1, **config):
    """A generator that keeps the zoo, of at least so many networks, by `draw(key, zoo, num, cond)`."""

    def keep(key, data, *, folder, progress):
        zoo = as_zoo(data, least)
        scale = None if zoo.cond is None else jnp.where(zoo.cond.std(0) > 0, zoo.cond.std(0), 1)
        return Kept(zoo.weights, zoo.cond, scale)

    generate = lambda key, zoo, num, cond=None: draw(key, zoo, check_count("num", num), cond)
    return Generator(Procedure(keep, config_of(f"weights.baselines.{name}", **config)), generate)


def _needed(cond, num, columns, where):
    """The conditions that `generate` follows."""
    cond = check_conditions(_given(cond, num, where), check_count("num", num), Conditions(columns))
    assert cond is not None
    return cond


def _given(cond, num, where):
    if cond is None:
        raise ValueError(f"cond: expected a vector for each of {num} networks, which {where} follows, got none")
    return cond


def random(init: Callable[[Array], Array]) -> Generator:
    """Initial weights, `init(key) -> w [dim]`, that nobody trained.

    Args:
      init: the law of initial weights.

    >>> generator, zoo = random(lambda key: jax.random.normal(key, (3,))), jax.random.normal(jax.random.key(2), (8, 3))
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> generator.generate(jax.random.key(1), params, 5).shape
    (5, 3)
    """
    return _from_zoo("random", lambda key, zoo, num, cond: _init_all(init, jax.random.split(key, num)), init=init)


# What draws at random some dozens of times would take ten times as long to optimise as to compile.
@functools.partial(quick_jit, static_argnums=0)
def _init_all(init, keys):
    return jax.vmap(init)(keys)


def mean() -> Generator:
    """The mean of the zoo, for every condition the same.

    >>> generator, zoo = mean(), jnp.array([[0.0, 4.0], [2.0, 0.0]])
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> generator.generate(jax.random.key(1), params, 2).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    return _from_zoo("mean", lambda key, zoo, num, cond: jnp.tile(zoo.weights.mean(0), (num, 1)))


def soup(num_mixed: int = 16) -> Generator:
    """The mean of a few networks, drawn afresh for each.

    Args:
      num_mixed: how many, all different, at least 1.

    Raises:
      ValueError: for a number below 1; in `generate` for more than there are networks.

    >>> generator, zoo = soup(2), jnp.array([[0.0, 4.0], [2.0, 0.0]])
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> generator.generate(jax.random.key(1), params, 1).tolist()
    [[1.0, 2.0]]
    """
    num_mixed = check_count("num_mixed", num_mixed)

    def draw(key, zoo, num, cond):
        if num_mixed > len(zoo.weights):
            raise ValueError(f"num_mixed: expected at most the {len(zoo.weights)} networks, got {num_mixed}")
        return _mix(num_mixed, jax.random.split(key, num), zoo.weights)

    return _from_zoo("soup", draw, num_mixed=num_mixed)


@functools.partial(jax.jit, static_argnums=0)
def _mix(num_mixed, keys, weights):
    choose = lambda key: jax.random.choice(key, len(weights), (num_mixed,), replace=False)
    return jax.lax.map(lambda key: weights[choose(key)].mean(0), keys)


def interpolation() -> Generator:
    """A point on the segment between two networks, uniform on it; of a zoo of at least 2.

    >>> generator, zoo = interpolation(), jnp.array([[1.0, 2.0], [3.0, 6.0]])
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> w = generator.generate(jax.random.key(1), params, 3)
    >>> (w[:, 1] / w[:, 0]).round().tolist()
    [2.0, 2.0, 2.0]
    """

    def draw(key, zoo, num, cond):
        key_pair, key_place = jax.random.split(key)
        first, second = jax.random.randint(key_pair, (2, num), 0, len(zoo.weights))
        place = jax.random.uniform(key_place, (num, 1), zoo.weights.dtype)
        return (1 - place) * zoo.weights[first] + place * zoo.weights[second]

    return _from_zoo("interpolation", draw, least=2)


def perturbation(scale: float = 0.1) -> Generator:
    """A network of the zoo and noise, whose deviation in every weight is `scale` times the zoo's own; of a zoo of at least 2.

    Args:
      scale: at least 0; 0 for the networks as they are.

    Raises:
      ValueError: for a negative scale; in `fit` for a zoo of one network, which has no deviation.

    >>> generator, zoo = perturbation(0.1), jnp.array([[0.0, 5.0], [2.0, 5.0]])  # the last weight never varies
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> w = generator.generate(jax.random.key(1), params, 3)
    >>> w.shape, w[:, 1].tolist()
    ((3, 2), [5.0, 5.0, 5.0])
    """
    if not 0 <= scale < np.inf:
        raise ValueError(f"scale: expected at least 0, got {scale}")

    def draw(key, zoo, num, cond):
        key_which, key_noise = jax.random.split(key)
        chosen = zoo.weights[jax.random.randint(key_which, (num,), 0, len(zoo.weights))]
        return chosen + scale * zoo.weights.std(0)[None] * jax.random.normal(key_noise, chosen.shape, chosen.dtype)

    return _from_zoo("perturbation", draw, least=2, scale=scale)


def retrieval() -> Generator:
    """The network of the zoo whose condition is nearest, each number of it in units of its deviation.

    Raises:
      ValueError: in `generate` where the fit had no conditions, or for conditions that are missing, of another number or of
        another length.

    >>> generator, zoo = retrieval(), (jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[0.0], [1.0], [2.0]]))
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> generator.generate(jax.random.key(1), params, 1, jnp.array([[1.8]])).tolist()
    [[5.0]]
    """

    def draw(key, zoo, num, cond):
        if zoo.cond is None:
            raise ValueError("cond: expected conditions in the fit, by which to retrieve")
        return _retrieve(zoo, _needed(cond, num, zoo.cond.shape[1], "retrieval"))

    return _from_zoo("retrieval", draw)


@jax.jit
def _retrieve(zoo, cond):
    near = lambda c: jnp.argmin(jnp.sum(((zoo.cond - c[None]) / zoo.scale[None]) ** 2, axis=1))
    return zoo.weights[jax.lax.map(near, cond)]


def gaussian(codec: Codec) -> Generator:
    """Codes of the Gaussian that has the zoo's mean and covariance: what a flow has to beat.

    Args:
      codec: from weights to codes.

    Raises:
      ValueError: in `fit` for a zoo of one network.

    >>> from gfm_jax.weights import identity
    >>> generator, zoo = gaussian(identity()), jax.random.normal(jax.random.key(2), (8, 3))
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> generator.generate(jax.random.key(1), params, 5).shape
    (5, 3)
    """

    def fit_codes(key, data, *, folder, progress):
        params, codes = _codes(codec, key, as_zoo(data, least=2))
        return Coded(params, fit_gaussian(codes))

    def generate(key, params, num, cond=None):
        return decode_all(codec, params.codec, draw_gaussian(key, params.model, num))

    return Generator(Procedure(fit_codes, config_of("weights.baselines.gaussian", codec=codec)), generate)


def ridge(codec: Codec, strength: float = 1.0) -> Generator:
    """Codes that are linear in the condition, by scikit-learn's ridge regression: one network for each condition.

    Args:
      codec: from weights to codes.
      strength: of the penalty on squared coefficients, at least 0.

    Raises:
      ValueError: in `fit` and `generate` for conditions that are missing, of another number or of another length.

    >>> from gfm_jax.weights import identity
    >>> generator, zoo = ridge(identity(), strength=0.0), (jnp.array([[1.0], [3.0], [5.0]]), jnp.array([[0.0], [1.0], [2.0]]))
    >>> params, _ = fit(jax.random.key(0), generator, zoo)
    >>> generator.generate(jax.random.key(1), params, 1, jnp.array([[3.0]])).round().tolist()
    [[7.0]]
    """

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

    config = config_of("weights.baselines.ridge", codec=codec, strength=strength)
    return Generator(Procedure(fit_codes, config), generate)


def hypernetwork(
    codec: Codec, network: nn.Module | None = None, *, num_steps: int = 5000, learning_rate: float = 1e-3
) -> Generator:
    r"""Codes from the condition by a perceptron: one network for each condition.

    .. math:: \min_\theta E | h_\theta(y) - \mathrm{encode}(w) |^2

    Args:
      codec: from weights to codes.
      network: a module from conditions to codes; by default a perceptron of two hidden layers of 512.
      num_steps, learning_rate: of the fit, in batches of 256, by Adam on a cosine.

    Raises:
      ValueError: for a number of steps below 1 or a rate that is not positive; in `fit` and `generate` for conditions that are
        missing, of another number or of another length.

    >>> from gfm_jax.weights import identity
    >>> generator = hypernetwork(identity(), MLP((8, 3)), num_steps=2)
    >>> zoo, cond = jax.random.normal(jax.random.key(0), (8, 3)), jnp.eye(8)
    >>> params, _ = fit(jax.random.key(1), generator, (zoo, cond))
    >>> generator.generate(jax.random.key(2), params, 8, cond).shape
    (8, 3)
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

    config = {"codec": codec, "network": network, "num_steps": num_steps, "learning_rate": learning_rate}
    return Generator(Procedure(fit_codes, config_of("weights.baselines.hypernetwork", **config)), generate)


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
