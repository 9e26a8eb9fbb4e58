"""Runs as training leaves them, drawn at random: at rest, warming up from 0, decayed to 0, few saves, losses of any sign."""

import numpy as np

from gfm_jax.base import Horizon, Layout, Trajectory

LAYOUT = Layout(("a/bias", "a/kernel", "b/empty", "b/kernel"), ((3,), (2, 3), (0, 2), (3, 2)))


def draw_runs(rng, num_runs: int, num_saves: int, parts: tuple[str, ...]) -> tuple[Trajectory, Horizon]:
    """A batch of prefixes, each of a kind of its own, and a horizon ahead of each."""
    draws = [_draw_run(rng, num_saves) for _ in range(num_runs)]
    stacked = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    slots = {slot: stacked[slot] for slot in ("mu", "nu", "trace") if slot in parts}
    kept = {name: stacked[name] for name in ("mean_weights", "gradient", "learning_rate", "loss") if name in parts}
    prefix = Trajectory(
        stacked["step"], stacked["time"], stacked["weights"], state=slots or None, layout=LAYOUT, **kept
    )
    return prefix, Horizon(stacked["then_step"], stacked["then_time"], stacked["then_rate"])


def _draw_run(rng, num_saves):
    step = _steps(rng, num_saves)
    last = step[-1]
    ahead = int(rng.choice([1, rng.integers(1, last + 2), 10 * last, 10**6]))
    rates = _rates(rng, last)
    then_rate = rng.choice([0.0, rates[-1], rates.max()])
    clock = np.concatenate([[0], np.cumsum(rates)])
    weights = _weights(rng, step, clock[step])
    gradient = rng.normal(size=weights.shape) * rng.choice([0, 1e-6, 1, 1e6])
    dtype = rng.choice(["float32", "float16", "float64"])
    return {
        "step": step.astype(np.int32),
        "time": clock[step].astype(np.float32),
        "weights": np.clip(weights, -6e4, 6e4).astype(dtype).astype(np.float32),
        "mean_weights": (weights + 1e-3 * rng.normal(size=weights.shape)).astype(np.float32),
        "gradient": gradient.astype(np.float32),
        "mu": gradient.astype(np.float32),
        "nu": (rng.choice([0, 1]) * gradient**2).astype(np.float32),
        "trace": gradient.astype(np.float32),
        "learning_rate": np.concatenate([rates[:1], rates])[step].astype(np.float32),
        "loss": (rng.choice([-1, 0, 1, 1e8]) * rng.random(num_saves) + rng.choice([0, -3])).astype(np.float32),
        "then_step": np.float32(last + ahead),
        "then_time": np.float32(clock[last] + then_rate * ahead),
        "then_rate": np.float32(then_rate),
    }


def _steps(rng, num_saves):
    kind, most = rng.integers(4), int(rng.choice([num_saves, 60, 1000]))
    if kind == 0:
        return np.arange(num_saves) * max(most // num_saves, 1)
    if kind == 1:
        return np.unique(np.round(np.geomspace(1, 3 ** (num_saves - 1), num_saves)).astype(int)) - 1
    steps = np.sort(rng.choice(most + num_saves, num_saves, replace=False))
    return steps - steps[0] if kind == 2 else steps + 1  # the last: without step 0


def _rates(rng, last):
    share, peak = np.arange(last) / last, rng.choice([1e-4, 0.1])
    shapes = [np.ones(last), share, 1 - share, np.maximum(1 - 2 * share, 0), (share > 0.5) * 1.0, np.zeros(last)]
    shapes.append(np.where(abs(share - 0.5) < 0.2, 0, 1))  # a rate of 0 in the middle
    return peak * shapes[rng.integers(len(shapes))]


def _weights(rng, step, time):
    start, shape = rng.normal(size=LAYOUT.dim), (len(step), LAYOUT.dim)
    share = (step / step[-1])[:, None]
    moved = [
        np.zeros(shape),  # at rest for ever
        rng.normal(size=shape).cumsum(0),
        (1 - np.exp(-3 * share)) * rng.normal(size=LAYOUT.dim),
        np.where(np.arange(len(step))[:, None] == len(step) // 2, 1e3, 0) * rng.normal(size=shape),  # a spike
        np.minimum(share, 0.3) * rng.normal(size=LAYOUT.dim),  # at rest lately
        (share > 0.9) * rng.normal(size=LAYOUT.dim),  # at rest until lately
        np.where(np.arange(LAYOUT.dim) < 3, share, 0),  # one tensor alone
        time[:, None] * rng.normal(size=LAYOUT.dim),  # along the clock
    ][rng.integers(8)]
    size = rng.choice([1e-4, 1, 1e4])
    return size * (rng.choice([0, 1]) * start + moved)
