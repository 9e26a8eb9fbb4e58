r"""Optimizers as vector fields on (weights, slots), with the sum of learning rates as their clock.

A discrete optimizer is one step of an integrator through its field, so that the field says where the optimizer goes as the
learning rate becomes small. With g the gradient, lr the learning rate, tau_i = lr / (1 - beta_i) the memory of a slot:

    sgd            w' = -g
    sign_sgd       w' = -sign(g)
    momentum       w' = -v,                                     v' = (g - (1 - beta) v) / lr        (optax's trace)
    nesterov       w' = -(g + beta v),                          v' as above
    lion           w' = -sign((1 - b1) g + b1 m) - lambda w,    m' = (g - m) / tau_2
    rmsprop        w' = -g / sqrt(s + eps),                     s' = (g^2 - s) / tau
    adam           w' = -(m / c_1) / (sqrt(s / c_2) + eps),     m' = (g - m) / tau_1,  s' = (g^2 - s) / tau_2,
                   c_i = 1 - exp(-t / tau_i)
    adamw          w' = adam's - lambda w
    nadam          adam's, with m + (lr / tau_1) (g - m) for m
    adagrad        w' = -g / sqrt(s + eps),                     s' = g^2 / lr
    adafactor      w' = -g / sqrt(r c^T / mean(r)),             r' = (mean_j g^2 - r) / tau,  c' = (mean_i g^2 - c) / tau
    muon           W' = -msign(M),                              M' = (G - M) / tau
    schedule_free  w' = -(1 - beta) g + (z - w) / t,            z' = -g

A field is that of the optimizer as long as lr times the curvature that its preconditioner leaves stays below 2; beyond, the
weights swing across valleys, and follow their mean: see central flows, arXiv 2410.24206.
"""

from gfm_jax.optimizers.fields.adaptive import adafactor, adagrad, adam, adamw, nadam, rmsprop
from gfm_jax.optimizers.fields.averages import schedule_free
from gfm_jax.optimizers.fields.clock import matched_decay, memory
from gfm_jax.optimizers.fields.generic import transformation_velocity
from gfm_jax.optimizers.fields.matrices import matrix_sign, muon
from gfm_jax.optimizers.fields.momenta import lion, momentum, nesterov, sgd, sign_sgd

__all__ = [
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "lion",
    "matched_decay",
    "matrix_sign",
    "memory",
    "momentum",
    "muon",
    "nadam",
    "nesterov",
    "rmsprop",
    "schedule_free",
    "sgd",
    "sign_sgd",
    "transformation_velocity",
]
