"""How far each layer has come, and how far it is forecast to go."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gfm_jax.base import Forecast, Trajectory
from gfm_jax.layers import layer_of, natural_order

__all__ = ["Drift", "drift_by_layer"]


class Drift(NamedTuple):
    """Distances in the weights of each layer, in the order in which layers usually follow one another.

    Attributes:
      layers: their names.
      num_weights: how many weights each has, [layers].
      size: the norm of its last observed weights, [layers].
      path: how far it was from its first observed weights at every save, [layers, saves].
      ahead: how far its forecast is from its last observed weights, [layers].
      end: how far its forecast is from its first observed weights, [layers].
      half_width: the norm of the half widths of the forecast's intervals, [layers]; None where it has none.
    """

    layers: tuple[str, ...]
    num_weights: Int[np.ndarray, " layers"]
    size: Float[np.ndarray, " layers"]
    path: Float[np.ndarray, "layers saves"]
    ahead: Float[np.ndarray, " layers"]
    end: Float[np.ndarray, " layers"]
    half_width: Float[np.ndarray, " layers"] | None


def drift_by_layer(run: Trajectory, forecast: Forecast) -> Drift:
    """How far each layer has come, and how far it is forecast to go: what one looks at before one believes a forecast.

    .. math:: d_l(k) = |w_{l,k} - w_{l,0}|, \\qquad a_l = |\\hat w_l - w_{l,n}|

    Args:
      run: one run, [saves, dim], with a layout; its weights may lie in a mapped file, of which a tensor at a time is read.
      forecast: of its weights, [dim].

    Raises:
      ValueError: for a batch of runs, a run without weights or layout, or a forecast of another size.

    >>> import jax.numpy as jnp
    >>> from gfm_jax.base import Layout
    >>> layout = Layout(("a/kernel", "b/kernel"), ((1,), (2,)))
    >>> run = Trajectory(step=jnp.arange(2), weights=jnp.array([[0.0, 0.0, 0.0], [1.0, 3.0, 4.0]]), layout=layout)
    >>> drift = drift_by_layer(run, Forecast(jnp.array([3.0, 3.0, 4.0])))
    >>> drift.layers, drift.path[:, -1].tolist(), drift.ahead.tolist()
    (('a', 'b'), [1.0, 5.0], [2.0, 0.0])
    """
    if run.weights is None or np.ndim(run.weights) != 2 or run.layout is None:
        raise ValueError("run: expected one run, weights [saves, dim], with a layout")
    if np.shape(forecast.weights) != (run.layout.dim,):
        raise ValueError(f"forecast: expected shape ({run.layout.dim},), got {np.shape(forecast.weights)}")
    rows = [layer_of(name) for name in run.layout.names]
    layers = natural_order(rows)
    squares = {name: np.zeros(len(layers)) for name in ("size", "ahead", "end", "half_width")}
    num_weights, path = np.zeros(len(layers), np.int64), np.zeros((len(layers), len(run.weights)))
    begin = 0
    for layer, size in zip(rows, run.layout.sizes, strict=True):
        row, part = layers.index(layer), slice(begin, begin + size)
        weights = np.asarray(run.weights[:, part], np.float32)
        num_weights[row] += size
        squares["size"][row] += _square(weights[-1])
        then = np.asarray(forecast.weights[part], np.float32)
        squares["ahead"][row] += _square(then - weights[-1])
        squares["end"][row] += _square(then - weights[0])
        if forecast.upper is not None and forecast.lower is not None:
            squares["half_width"][row] += _square(np.asarray(forecast.upper[part] - forecast.lower[part]) / 2)
        path[row] += [_square(save - weights[0]) for save in weights]
        begin += size
    root = {name: np.sqrt(square) for name, square in squares.items()}
    half_width = None if forecast.upper is None else root["half_width"]
    return Drift(tuple(layers), num_weights, root["size"], np.sqrt(path), root["ahead"], root["end"], half_width)


def _square(array):
    return float(np.sum(np.square(array, dtype=np.float64)))
