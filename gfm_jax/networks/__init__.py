"""Networks as flax modules; the rest of the house sees only their `init` and `apply`."""

import gfm_jax.serialization  # noqa: F401
from gfm_jax.networks.cnn import CNN
from gfm_jax.networks.initial import init_network
from gfm_jax.networks.mlp import MLP, TimeMLP
from gfm_jax.networks.sequence import LSTM, Transformer
from gfm_jax.networks.sets import DeepSet, SetTransformer, WithContext
from gfm_jax.networks.statistics import refresh_statistics
from gfm_jax.networks.unet import UNet

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "DeepSet",
    "SetTransformer",
    "TimeMLP",
    "Transformer",
    "UNet",
    "WithContext",
    "init_network",
    "refresh_statistics",
]
