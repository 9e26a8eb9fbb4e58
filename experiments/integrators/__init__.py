"""Optimizers as numerical integrators of the gradient flow: what order, stability and noise they have, and what that buys."""
