"""Whatever a run looks like, a forecast of it is finite, and the same eager, mapped and jitted."""

import functools

import jax
import numpy as np
import pytest
from drawn import LAYOUT, draw_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forecasters import FORECASTERS, fitted

from gfm_jax.trajectories import observe

ALL = ("mean_weights", "gradient", "learning_rate", "loss", "mu", "nu", "trace")
SHAPES = [(2, ()), (9, ALL)]  # saves, and what was recorded beside the weights
NUM_RUNS = 32  # of an example: 512 runs through every forecaster
EXAMPLES = settings(max_examples=8, deadline=None, derandomize=True)
ALONE = ("exponential", "rank1", "dmd")  # decompositions wait for one another's threads in one program on a CPU
GROUPS = {name: (name,) for name in ALONE} | {"others": tuple(name for name in FORECASTERS if name not in ALONE)}


@functools.cache
def programs(names):
    """Two forecasts of a batch by every forecaster: as users call it, and mapped and jitted by hand."""
    params = {name: fitted(name) for name in names}
    asked = {name: FORECASTERS[name].forecast for name in names}

    @jax.jit
    def mapped(prefix, horizon):
        one = lambda prefix, horizon: {name: asked[name](params[name], prefix, horizon).weights for name in names}
        return jax.vmap(one)(prefix, horizon)

    eager = lambda prefix, horizon: {name: asked[name](params[name], prefix, horizon).weights for name in names}
    return eager, mapped


@pytest.mark.parametrize(("num_saves", "parts"), SHAPES, ids=["2 saves", "9 saves"])
@pytest.mark.parametrize("group", GROUPS)
def test_forecasts_are_finite_and_one(group, num_saves, parts):
    """The same as users call it and mapped and jitted by hand (wrong before 0.2)."""
    eager, mapped = programs(GROUPS[group])

    @given(st.integers(0, 2**32 - 1))
    @EXAMPLES
    def check(seed):
        prefix, horizon = draw_runs(np.random.default_rng(seed), NUM_RUNS, num_saves, parts)
        first, second = eager(prefix, horizon), mapped(prefix, horizon)
        for name in GROUPS[group]:
            a, b = np.asarray(first[name]), np.asarray(second[name])
            assert np.isfinite(a).all(), f"{name}: not finite, runs {np.flatnonzero(~np.isfinite(a).all(1))}"
            # Relative to how far the run and its forecast move, and to the spacing of float32.
            origin = prefix.weights[:, -1:]
            moved = np.abs(prefix.weights - origin).max((1, 2)) + np.abs(a - origin[:, 0]).max(1)
            off = np.abs(a - b).max(1) / (moved + 1e-3 * np.abs(prefix.weights).max((1, 2)) + 1e-30)
            assert off.max() < 2e-3, f"{name}: {off.max():.2g} apart, run {off.argmax()}"

    check()


@pytest.mark.parametrize("num_saves", [2, 9])
def test_features_are_finite_and_one(num_saves):
    """(wrong before 0.2)"""
    together = jax.jit(jax.vmap(observe))

    @given(st.integers(0, 2**32 - 1))
    @EXAMPLES
    def check(seed):
        prefix, _ = draw_runs(np.random.default_rng(seed), NUM_RUNS, num_saves, ALL)
        seen = together(prefix)
        for name, part in seen._asdict().items():
            assert np.isfinite(part).all(), f"{name}: not finite"
        one = jax.tree.map(lambda leaf: leaf[3], prefix._replace(layout=None))._replace(layout=LAYOUT)
        for name, part in observe(one)._asdict().items():
            np.testing.assert_allclose(getattr(seen, name)[3], part, rtol=2e-3, atol=2e-3, err_msg=name)

    check()
