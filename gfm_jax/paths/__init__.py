"""Paths between points: what a velocity is regressed on."""

from gfm_jax.paths.interpolants import interpolate, linear

__all__ = ["interpolate", "linear"]
