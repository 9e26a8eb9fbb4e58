"""Networks as flax modules; the rest of the house sees only their `init` and `apply`."""

from gfm_jax.networks.cnn import CNN
from gfm_jax.networks.mlp import MLP
from gfm_jax.networks.sequence import LSTM, Transformer

__all__ = ["CNN", "LSTM", "MLP", "Transformer"]
