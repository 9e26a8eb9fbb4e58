"""Explicit Butcher tableaus that diffrax lacks. They stand apart, since diffrax takes half a second to import."""

import diffrax
import numpy as np

__all__ = ["EXTRAGRADIENT", "RK4"]

RK4 = diffrax.ButcherTableau(
    c=np.array([1 / 2, 1 / 2, 1]),
    a_lower=(np.array([1 / 2]), np.array([0, 1 / 2]), np.array([0, 0, 1])),
    b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    b_error=np.zeros(4),  # no rule of a lower order is embedded
)
EXTRAGRADIENT = diffrax.ButcherTableau(
    c=np.array([1.0]), a_lower=(np.array([1.0]),), b_sol=np.array([0.0, 1.0]), b_error=np.zeros(2)
)
