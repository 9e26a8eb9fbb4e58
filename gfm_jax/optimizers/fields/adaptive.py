"""Fields of optimizers that divide by what gradients have lately been."""

import jax.numpy as jnp

from gfm_jax.base import OptimizerField
from gfm_jax.optimizers.fields.leaves import Decay, check_decays, field_of_leaves, zeros

__all__ = ["adafactor", "adagrad", "adam", "adamw", "nadam", "rmsprop"]


def rmsprop(decay: Decay = 0.9, eps: float = 1e-8) -> OptimizerField:
    r"""RMSprop: w' = -g / sqrt(s + eps), s' = (1 - rho)(g^2 - s) / lr, with optax's `nu` as s.

    Args:
      decay: rho of the mean of squares, in [0, 1).
      eps: added to that mean, from 0 on.

    >>> field, w = rmsprop(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, {"nu": 4 * w}, jnp.array(2.0), 0.1)[0]), 4)
    -1.0
    """
    check_decays(decay=decay)

    def velocity(time, w, slots, g, lr):
        s = slots["nu"]
        return -g / jnp.sqrt(s + eps), {"nu": (1 - decay) * (g**2 - s) / lr}

    return field_of_leaves({"nu": zeros}, velocity)


def adam(b1: Decay = 0.9, b2: Decay = 0.999, eps: float = 1e-8) -> OptimizerField:
    r"""Adam, with optax's `mu` and `nu`.

    .. math:: w' = -\frac{m / c_1}{\sqrt{s / c_2} + \epsilon}, \quad m' = \frac{g - m}{\tau_1}, \quad
       s' = \frac{g^2 - s}{\tau_2}, \quad c_i = 1 - e^{-t/\tau_i}, \quad \tau_i = \frac{lr}{1 - \beta_i}

    Args:
      b1, b2: decays of the means of gradients and of their squares, in [0, 1).
      eps: added to the root of the second moment, from 0 on.

    >>> field, w = adam(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.0
    """
    return _adam(b1, b2, eps, weight_decay=0.0)


def adamw(b1: Decay = 0.9, b2: Decay = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4) -> OptimizerField:
    r"""Adam with decoupled weight decay: w' = adam's - lambda w.

    Args:
      b1, b2: decays of the means of gradients and of their squares, in [0, 1).
      eps: added to the root of the second moment, from 0 on.
      weight_decay: lambda, from 0 on.

    >>> field, w = adamw(weight_decay=0.5), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.5
    """
    return _adam(b1, b2, eps, weight_decay)


def nadam(b1: Decay = 0.9, b2: Decay = 0.999, eps: float = 1e-8) -> OptimizerField:
    r"""Adam with Nesterov's momentum: adam's, with m + (lr / tau_1)(g - m) in the place of m.

    Args:
      b1, b2: decays of the means of gradients and of their squares, in [0, 1).
      eps: added to the root of the second moment, from 0 on.

    >>> field, w = nadam(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.0
    """
    return _adam(b1, b2, eps, weight_decay=0.0, nesterov=True)


def _adam(b1, b2, eps, weight_decay, nesterov=False):
    check_decays(b1=b1, b2=b2)

    def velocity(time, w, slots, g, lr):
        m, s = slots["mu"], slots["nu"]
        tau_1, tau_2 = lr / (1 - b1), lr / (1 - b2)
        # c_i ~ t / tau_i as t -> 0, where m and s vanish in the same way: their ratio starts at the first gradient.
        c_1, c_2 = -jnp.expm1(-time / tau_1), -jnp.expm1(-time / tau_2)
        started = time > 0
        m_hat = jnp.where(started, m / jnp.where(started, c_1, 1.0), g)
        s_hat = jnp.where(started, s / jnp.where(started, c_2, 1.0), g**2)
        if nesterov:
            m_hat = m_hat + (1 - b1) * (g - m_hat)
        d_w = -m_hat / (jnp.sqrt(s_hat) + eps) - weight_decay * w
        return d_w, {"mu": (g - m) / tau_1, "nu": (g**2 - s) / tau_2}

    return field_of_leaves({"mu": zeros, "nu": zeros}, velocity)


def adagrad(initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> OptimizerField:
    r"""AdaGrad, with optax's `sum_of_squares` as s.

    .. math:: w' = -\frac{g}{\sqrt{s + \epsilon}}, \qquad s' = \frac{g^2}{lr}

    Its own clock is T = sum lr^2, in which S = lr^2 s has dw/dT = -g / sqrt(S), dS/dT = g^2: to halve the learning rate is to
    take four times the steps to the same place, with S and so lr^2 times the initial accumulator as before.

    Args:
      initial_accumulator_value: s at first, from 0 on.
      eps: added to s, from 0 on.

    >>> field, w = adagrad(4.0), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.0
    """
    start = lambda leaf: jnp.full_like(leaf, initial_accumulator_value)
    velocity = lambda time, w, slots, g, lr: (
        -g / jnp.sqrt(slots["sum_of_squares"] + eps),
        {"sum_of_squares": g**2 / lr},
    )
    return field_of_leaves({"sum_of_squares": start}, velocity)


def adafactor(decay_rate: float = 0.8, min_dim_size_to_factor: int = 128, eps: float = 1e-30) -> OptimizerField:
    r"""Adafactor's second moments: of a large matrix by rows and columns, optax's `v_row` and `v_col`; else in full, its `v`.

    .. math:: w'_{ij} = -\frac{g_{ij}}{\sqrt{\hat r_i \hat c_j / \mathrm{mean}\, \hat r}}, \quad
       r_i' = \frac{\mathrm{mean}_j\, g_{ij}^2 - r_i}{\tau}, \quad c_j' = \frac{\mathrm{mean}_i\, g_{ij}^2 - c_j}{\tau}, \quad
       \tau = lr \, \big(\tfrac{1}{2} + \tfrac{t}{lr}\big)^{\alpha}

    where r-hat is r over its weight so far, 1 - exp(-int dt / tau), moved by lr / tau towards the present. It is the core,
    `optax.scale_by_factored_rms`, of a memory that grows with time; clipping and the scale of the weights, which optax puts
    around it, are other transformations.

    Args:
      decay_rate: alpha, in (0, 1).
      min_dim_size_to_factor: the least number of rows and of columns of a large matrix.
      eps: added to the squares, from 0 on.

    >>> field, w = adafactor(), jnp.ones(())
    >>> round(float(field.velocity(0.0, w, field.init(w), jnp.array(2.0), 0.1)[0]), 4)
    -1.0
    """
    if not 0 < decay_rate < 1:
        raise ValueError(f"decay_rate: expected an exponent in (0, 1), got {decay_rate}")

    def velocity(time, w, slots, g, lr):
        age = 0.5 + time / lr  # halfway through the update
        tau = lr * age**decay_rate
        weight = -jnp.expm1((0.5 ** (1 - decay_rate) - age ** (1 - decay_rate)) / (1 - decay_rate))
        squares = g**2 + eps
        nothing = {name: jnp.zeros_like(slot) for name, slot in slots.items()}

        def mean(name, now):
            known = jnp.where(time > 0, slots[name] / jnp.where(time > 0, weight, 1.0), now)
            return known + lr / tau * (now - known), (now - slots[name]) / tau

        if not factored(w):
            v, d_v = mean("v", squares)
            return -g / jnp.sqrt(v), nothing | {"v": d_v}
        along_rows, along_columns = _axes(w.shape)
        r, d_r = mean("v_row", squares.mean(along_rows))
        c, d_c = mean("v_col", squares.mean(along_columns))
        v = jnp.expand_dims(r / r.mean(), along_rows) * jnp.expand_dims(c, along_columns)
        return -g / jnp.sqrt(v), nothing | {"v_row": d_r, "v_col": d_c}

    factored = lambda leaf: leaf.ndim == 2 and min(leaf.shape) >= min_dim_size_to_factor
    nothing_of = lambda leaf: jnp.zeros(1, leaf.dtype)
    of_matrix = lambda which: (
        lambda leaf: zeros(leaf).sum(_axes(leaf.shape)[which]) if factored(leaf) else nothing_of(leaf)
    )
    of_others = lambda leaf: nothing_of(leaf) if factored(leaf) else zeros(leaf)
    return field_of_leaves({"v_row": of_matrix(0), "v_col": of_matrix(1), "v": of_others}, velocity)


def _axes(shape):
    """The axes over which optax takes the means that it calls of rows and of columns."""
    return (1, 0) if shape[0] <= shape[1] else (0, 1)
