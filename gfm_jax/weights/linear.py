"""Codes that are linear in the weights: the weights themselves, standardized, or their principal components."""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfm_jax.base import Codec, Procedure, config_of
from gfm_jax.checks import check_finite
from gfm_jax.fitting import fit

__all__ = ["chain", "identity", "pca", "standardized"]


class Standard(NamedTuple):
    """The mean of the weights and one deviation for all of them, or one for each."""

    mean: Float[Array, " dim"]
    std: Float[Array, "*dim"]


class Components(NamedTuple):
    """The mean of the weights, and directions of unit length, rows, each with the deviation along it."""

    mean: Float[Array, " dim"]
    directions: Float[Array, "codes dim"]
    std: Float[Array, " codes"]


def identity() -> Codec:
    """The weights themselves as codes: z = w.

    >>> identity().encode((), jnp.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """

    def fit_to(key, weights, *, folder, progress):
        check_weights(weights, 1)
        return ()

    return Codec(Procedure(fit_to, config_of("weights.identity")), lambda params, w: w, lambda params, z: z)


def standardized(by_coordinate: bool = False) -> Codec:
    r"""Weights of mean zero and deviation one.

    .. math:: z = (w - \mu) / \sigma

    Args:
      by_coordinate: a deviation for every weight, so that those that hardly vary count as much as others; else one for all.

    Returns:
      A codec; its fit raises ValueError for fewer than two networks.

    >>> codec, zoo = standardized(), jnp.array([[1.0], [5.0]])  # of mean 3 and deviation 2
    >>> params, _ = fit(jax.random.key(0), codec, zoo)
    >>> codec.encode(params, zoo[1]).round().tolist()
    [1.0]
    """

    def fit_to(key, weights, *, folder, progress):
        return Standard(*mean_and_std(check_weights(weights, 2), by_coordinate))

    def encode(at, w):
        check_length("weights", w, at.mean)
        return (w - at.mean) / at.std

    def decode(at, z):
        check_length("codes", z, at.mean)
        return at.mean + at.std * z

    return Codec(Procedure(fit_to, config_of("weights.standardized", by_coordinate=by_coordinate)), encode, decode)


def pca(num_codes: int, *, whiten: bool = True) -> Codec:
    r"""The coordinates along the first principal components, by scikit-learn.

    .. math:: z = \Lambda^{-1/2} U (w - \mu), \qquad \hat w = \mu + U^\top \Lambda^{1/2} z

    Args:
      num_codes: how many components, fewer than networks.
      whiten: give every code deviation one: a flow from unit noise then moves all of them alike.

    Returns:
      A codec; its fit raises ValueError for no more networks than components, or fewer weights.

    >>> codec, zoo = pca(1), jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, 6.0]])  # on a line
    >>> params, _ = fit(jax.random.key(0), codec, zoo)
    >>> code = codec.encode(params, zoo[2])
    >>> code.shape, codec.decode(params, code).round().tolist()
    ((1,), [3.0, 6.0])
    """
    if num_codes < 1:
        raise ValueError(f"num_codes: expected at least 1 component, got {num_codes}")

    def fit_to(key, weights, *, folder, progress):
        weights = check_weights(weights, num_codes + 1, f" for {num_codes} components")
        if num_codes > weights.shape[1]:
            raise ValueError(
                f"num_codes: expected at most the {weights.shape[1]} weights of a network, got {num_codes}"
            )
        from sklearn.decomposition import PCA  # on first use: it takes a second

        seed = int(jax.random.randint(key, (), 0, 2**31 - 1))  # of the randomised solver
        size = np.asarray(power_of_two(weights))
        with np.errstate(invalid="ignore", divide="ignore"):  # parts of a variance that is zero, which nobody reads
            found = PCA(num_codes, random_state=seed).fit(np.asarray(weights) / size)
        std = size * np.sqrt(found.explained_variance_) if whiten else np.ones(num_codes)
        arrays = (size * found.mean_, found.components_, np.where(std > 0, std, 1))
        return Components(*(jnp.asarray(array, weights.dtype) for array in arrays))

    def encode(at, w):
        check_length("weights", w, at.mean)
        return jnp.matmul(at.directions, w - at.mean, precision="highest") / at.std

    def decode(at, z):
        check_length("codes", z, at.std)
        return at.mean + jnp.matmul(at.std * z, at.directions, precision="highest")

    return Codec(Procedure(fit_to, config_of("weights.pca", num_codes=num_codes, whiten=whiten)), encode, decode)


def chain(*codecs: Codec) -> Codec:
    """One codec after the other, each fitted to the codes of those before it.

    >>> codec, zoo = chain(identity(), standardized()), jnp.array([[1.0], [5.0]])  # of mean 3 and deviation 2
    >>> params, _ = fit(jax.random.key(0), codec, zoo)
    >>> codec.encode(params, zoo[1]).round().tolist()
    [1.0]
    """

    def fit_all(key, weights, *, folder, progress):
        params, last = [], len(codecs) - 1
        for number, (codec, key_own) in enumerate(zip(codecs, jax.random.split(key, len(codecs)), strict=True)):
            own = None if folder is None else pathlib.Path(folder) / str(number)
            params.append(fit(key_own, codec, weights, folder=own, progress=progress)[0])
            if number < last:
                weights = jax.jit(jax.vmap(functools.partial(codec.encode, params[-1])))(weights)
        return tuple(params)

    def encode(params, w):
        for codec, own in zip(codecs, params, strict=True):
            w = codec.encode(own, w)
        return w

    def decode(params, z):
        for codec, own in zip(reversed(codecs), reversed(params), strict=True):
            z = codec.decode(own, z)
        return z

    return Codec(Procedure(fit_all, config_of("weights.chain", codecs=codecs)), encode, decode)


def check_length(name: str, vector: Array, like: Array) -> None:
    """Raises ValueError for weights, or codes, of another number than those that a codec was fitted to."""
    if vector.shape != like.shape:
        raise ValueError(f"{name}: expected {like.shape[0]} of a network, as in the fit, got shape {vector.shape}")


def check_weights(weights, least: int, why: str = "") -> Array:
    """The weights of several networks in float32 or better.

    Raises:
      ValueError: for weights that are not an array [num, dim] of real and finite numbers, or of fewer networks than needed.
    """
    if not (hasattr(weights, "ndim") and hasattr(weights, "dtype")):
        raise ValueError(
            f"weights: expected an array [num, dim], got a {type(weights).__name__}; jnp.stack makes one of rows"
        )
    if weights.ndim != 2 or len(weights) < least:
        raise ValueError(f"weights: expected those of at least {least} networks{why}, [num, dim], got {weights.shape}")
    weights = wide(weights)
    check_finite("weights", weights)
    return weights


def wide(weights: Array | np.ndarray) -> Array:
    """In float32 or better: sums and squares of bytes wrap, and those of bfloat16 stand still.

    Raises:
      ValueError: for complex weights.
    """
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise ValueError(
            f"weights: expected real numbers, got {weights.dtype}; write complex weights as two real arrays"
        )
    return jnp.asarray(weights, jnp.promote_types(weights.dtype, jnp.float32))


def power_of_two(weights: Array) -> Array:
    """Of the size of the largest entry, to divide by without rounding before anything is squared."""
    exponent = jnp.frexp(jnp.abs(weights).max())[1] - 1
    return jnp.ldexp(jnp.ones((), weights.dtype), jnp.clip(exponent, -120, 120))


def mean_and_std(weights: Float[Array, "num dim"], by_coordinate: bool = False) -> tuple[Array, Array]:
    """The mean of the weights, and their deviation, one for all or one for each; 1 where nothing varies."""
    size = power_of_two(weights)
    scaled = weights / size
    std = scaled.std(0) if by_coordinate else jnp.sqrt(scaled.var(0).mean())
    return size * scaled.mean(0), jnp.where(std > 0, size * std, 1)
