"""Forecasters that come with the library, each a file of parameters and a card that says what it was fitted to."""

import functools
import json
import pathlib
from typing import Any

from jaxtyping import PyTree

from gfm_jax.base import Forecaster
from gfm_jax.forecasting.names import fingerprint_of_names
from gfm_jax.saving import load

__all__ = ["card", "pretrained"]

FOLDER = pathlib.Path(__file__).parent


def pretrained(name: str = "general") -> tuple[Forecaster, PyTree]:
    """A fitted forecaster that comes with the library, for runs that it has never seen.

    Use it where there is nothing to fit to: it was fitted to runs of many networks, data sets and optimizers, and needs two
    saves or more of a run. Its forecasts are near in weights; an average of the last saves can be the better network, and
    `card(name)` has both. Where you have some ten finished runs like the one to forecast,
    `fit(key, forecaster, runs, start=params)` goes on from it.

    Args:
      name: "general", the only one there is.

    Returns:
      The forecaster and its parameters, as `gfm.forecast` takes them.

    Raises:
      ValueError: for a name that there is not, or where this version of the library reads other features from a run than the
        forecaster was fitted with.

    >>> import gfm_jax as gfm, jax.numpy as jnp
    >>> step = jnp.arange(0, 90, 10)
    >>> run = gfm.Trajectory(step=step, time=0.1 * step, weights=jnp.sqrt(step)[:, None] * jnp.ones(3))
    >>> forecast = gfm.forecast(*gfm.pretrained("general"), run, until=160)
    >>> bool(jnp.all(forecast.weights > run.weights[-1]))
    True
    """
    about = card(name)
    if about["features_sha256"] != fingerprint_of_names():
        raise ValueError(
            f"name: the features of {name!r} are {about['features_sha256'][:12]}, those of this version of gfm_jax "
            f"{fingerprint_of_names()[:12]}; python -m experiments.pretrain fits it anew"
        )
    return _loaded(name)


@functools.cache  # one forecaster a name, so that a second call compiles nothing
def _loaded(name):
    return load(FOLDER / f"{name}.safetensors")


def card(name: str = "general") -> dict[str, Any]:
    """What a pretrained forecaster was fitted to, what it is worth on families of runs that it never saw, and its limits.

    Args:
      name: as `pretrained` has it.

    Returns:
      The card: `zoo`, `metrics` of every held-out family beside the simple ways, `limits`, `licence`, `commit`, and more.

    Raises:
      ValueError: for a name that there is not.

    >>> card("general")["licence"]
    'Apache-2.0'
    """
    path = FOLDER / f"{name}.json"
    names = sorted(file.stem for file in FOLDER.glob("*.json"))
    if name not in names:
        raise ValueError(f"name: expected one of {', '.join(names)}, got {name!r}")
    return json.loads(path.read_text())
