"""Layouts in `flax.serialization`: imported wherever flax is, so that `to_bytes` and `from_bytes` know them."""

from flax import serialization

from gfm_jax.base import Layout
from gfm_jax.pytrees import layout_from_dict, layout_to_dict

__all__: list[str] = []

# override: a module that is loaded twice registers twice
serialization.register_serialization_state(
    Layout, layout_to_dict, lambda target, state: layout_from_dict(state), override=True
)
