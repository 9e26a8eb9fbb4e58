import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import put, run_of, small_runs

from gfm_jax.base import Horizon, Layout, Trajectory
from gfm_jax.forecasting import (
    check_forecast,
    cut,
    draw_pairs,
    draw_windows,
    horizon_at,
    line_weights,
    merge,
    observe,
    prefix_of,
    save_at,
    thin,
)
from gfm_jax.forecasting.names import COORDINATE, DIRECTIONS, MOTION, RUN, TENSOR, named, stack, stacked


def first(runs):
    return jax.tree.map(lambda leaf: leaf[0], runs)


def test_the_scale_is_the_least_of_three_paces():
    """A run that stood still after a spike is measured by its late steps, one that spiked late by its way so far."""
    calm = np.arange(33.0)  # one a save: 16 in half the prefix, whichever pace is taken
    spike = np.where(np.arange(33) < 20, 100.0 * np.arange(33), 1900 + 0.5 * np.arange(33))
    late = calm + 50.0 * (np.arange(33) == 32)
    bounce = 0.1 * calm + 5 * (np.arange(33) % 2)  # the last two saves agree to .2
    scales = [float(observe(run_of(w[:, None])).scale[0]) for w in (calm, spike, late, bounce)]
    np.testing.assert_allclose(scales, [16, 8, 66, 1.6], rtol=1e-4)
    short = observe(run_of(np.array([[0.0], [1.0], [3.0]])))  # too short for an eighth: the last save is its own
    np.testing.assert_allclose(short.scale, 1.5, rtol=1e-5)


def test_nothing_after_the_last_observed_save_is_read():
    run, last = first(small_runs()), 8
    poison = lambda leaf: put(leaf, np.s_[last + 1 :], jnp.nan) if leaf.ndim and leaf.dtype.kind == "f" else leaf
    poisoned = jax.tree.map(poison, run._replace(step=run.step.astype(float)))
    clean, seen = observe(run, last), observe(poisoned, last)
    chex.assert_trees_all_equal(clean, seen)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(seen))


def test_a_prefix_and_a_mask_see_the_same():
    run, last = first(small_runs()), 8
    chex.assert_trees_all_close(observe(prefix_of(run, last)), observe(run, last), rtol=1e-4, atol=1e-4)


def test_directions_are_what_they_are_called():
    rng = np.random.default_rng(0)
    run = run_of(rng.normal(size=(9, 5)).cumsum(0))
    seen = observe(run)
    moved = {name: np.asarray(direction * seen.scale) for name, direction in seen.directions.items()}
    weights = np.asarray(run.weights)
    for j in range(8):
        np.testing.assert_allclose(moved[f"since_{j}_8"], weights[-1] - weights[j], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["since_last"], weights[-1] - weights[-2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["average"], 0 * weights[-1], atol=1e-5)  # the last eighth is the last save alone
    inside = np.arange(9) >= 4
    slope = np.polyfit(np.arange(9)[inside] / 8, weights[inside], 1)[0]
    np.testing.assert_allclose(moved["slope"], slope, rtol=1e-3, atol=1e-4)
    log_clock, inside = np.log(np.maximum(np.arange(9), 1)), np.arange(9) >= 2
    slope = np.polyfit(log_clock[inside], weights[inside], 1)[0]
    np.testing.assert_allclose(moved["log_slope"], slope, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen.scale, np.sqrt(np.mean((weights[-1] - weights[4]) ** 2)), rtol=1e-5)


def test_the_unit_of_length_does_not_matter():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(9, 6)).cumsum(0)
    small, large = observe(run_of(weights)), observe(run_of(1000 * weights))
    for part in ("coordinate", "tensor", "run", "directions"):
        chex.assert_trees_all_close(getattr(small, part), getattr(large, part), rtol=2e-3, atol=2e-3)


def test_every_feature_has_a_name_that_the_network_reads():
    seen = observe(run_of(np.ones((3, 2))))
    read = {"coordinate": COORDINATE, "tensor": TENSOR, "run": RUN, "directions": DIRECTIONS}
    for part, names in read.items():
        assert sorted(names) == sorted(getattr(seen, part))
        again = named(stack(getattr(seen, part), names), names)
        chex.assert_trees_all_equal(again, getattr(seen, part))
    assert stacked(seen).tensor.shape == (1, len(TENSOR))


def test_the_names_of_hidden_units_do_not_matter():
    """Permuting the hidden units of a network permutes what is known of its weights, and nothing else."""
    rng = np.random.default_rng(4)
    layout = Layout(("a/bias", "a/kernel", "b/kernel"), ((4,), (3, 4), (4, 2)))
    order = np.array([2, 0, 3, 1])
    index = np.concatenate([np.arange(4)[order], 4 + np.arange(12).reshape(3, 4)[:, order].ravel(),
                            16 + np.arange(8).reshape(4, 2)[order].ravel()])  # fmt: skip
    weights = rng.normal(size=(17, layout.dim)).cumsum(0)
    plain, permuted = (observe(run_of(w)._replace(layout=layout)) for w in (weights, weights[:, index]))
    for part in ("coordinate", "directions", "scale"):
        expected = jax.tree.map(lambda leaf: leaf[index], getattr(plain, part))
        chex.assert_trees_all_close(getattr(permuted, part), expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(plain.tensor, permuted.tensor, rtol=1e-3, atol=1e-4)


def test_a_unit_is_seen_in_all_its_weights():
    """Only the weights into one hidden unit move: those out of it, and the other units, can tell."""
    layout = Layout(("a/kernel",), ((3, 4),))
    weights = np.zeros((17, 3, 4))
    weights[:, :2, 1] = np.arange(17)[:, None]  # two of the three weights into unit 1
    seen = observe(run_of(weights.reshape(17, 12))._replace(layout=layout))
    moved = lambda name: np.sinh(seen.coordinate[f"{name}_unit_since_4_8"]).reshape(3, 4)
    scale = np.sqrt(2 / 12)  # root mean square over the tensor of a displacement of one
    np.testing.assert_allclose(moved("rms_into")[:, 1], np.sqrt(2 / 3) / scale, rtol=1e-4)
    np.testing.assert_allclose(moved("mean_into")[:, 1], 2 / 3 / scale, rtol=1e-4)
    np.testing.assert_allclose(moved("rms_into")[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(moved("rms_out_of")[0], 0.5 / scale, rtol=1e-4)
    np.testing.assert_allclose(moved("mean_out_of")[0], 0.25 / scale, rtol=1e-4)
    np.testing.assert_allclose(moved("rms_out_of")[2], 0, atol=1e-6)


def test_oscillation_shows():
    """Successive steps agree on a straight path and are opposed on one that turns round at every save."""
    straight, turning = (observe(run_of(np.outer(path, [1.0, 2.0]))) for path in (np.arange(33), np.arange(33) % 2))
    assert straight.tensor["agreement"] == pytest.approx(1, abs=0.1)
    assert turning.tensor["agreement"] == pytest.approx(-1, abs=0.1)


def test_the_whole_moves_as_a_lone_tensor_does():
    run = run_of(np.random.default_rng(5).normal(size=(17, 6)).cumsum(0))
    lone, parted = observe(run), observe(run._replace(layout=Layout(("a", "b"), ((2,), (4,)))))
    for name in MOTION:
        np.testing.assert_allclose(parted.run[name], lone.tensor[name].squeeze(), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(parted.run, lone.run, rtol=1e-4, atol=1e-5)


def test_turns_and_noise_in_numbers():
    weights = np.random.default_rng(7).normal(size=(17, 6)).cumsum(0)
    rms = lambda x: np.sqrt(np.mean(np.square(x)))
    quarters = np.diff(weights[::4], axis=0)
    lengths = np.array([rms(quarter) for quarter in quarters])
    steps = np.diff(weights[8:], axis=0)
    noise = rms(steps - steps.mean(0)) / rms(weights[16] - weights[8])
    seen = {name: feature.squeeze() for name, feature in observe(run_of(weights)).tensor.items()}
    found = [seen[f"length_{k + 1}_to_{k}"] for k in (1, 2, 3)]
    np.testing.assert_allclose(found, np.log(lengths[1:] / lengths[:-1]), atol=5e-3)  # their floor is a thousandth
    cosine = np.mean(quarters[3] * quarters[2]) / lengths[3] / lengths[2]
    np.testing.assert_allclose(seen["turn_quarters"], cosine, rtol=1e-4)
    np.testing.assert_allclose(seen["noise"], np.log(noise), atol=5e-3)


def test_levels_of_the_loss():
    """A loss that halves at every save falls by log 2 times the distance of the shares' middles; nothing later is read."""
    weights = np.random.default_rng(6).normal(size=(33, 4)).cumsum(0)
    loss = jnp.where(jnp.arange(33) <= 16, 100 * 2.0 ** -jnp.arange(33.0), jnp.nan)
    run = run_of(weights)._replace(loss=loss)
    seen = observe(run, 16)
    chex.assert_tree_all_finite(seen.run)
    # Saves 5-8, 9-12, 13-14 and 15-16 of 16, in the middle at 6.5, 10.5, 13.5 and 15.5.
    levels = np.diff(-np.log(2) * np.array([6.5, 10.5, 13.5, 15.5]))
    found = [seen.run[f"loss_to_{share}"] for share in ("third_quarter", "seventh_eighth", "last_eighth")]
    np.testing.assert_allclose(found, levels, rtol=1e-3)


def test_weights_alone_are_enough():
    run = first(small_runs())
    bare = run._replace(mean_weights=None, gradient=None, state=None, learning_rate=None, loss=None)
    seen, full = observe(bare), observe(run)
    chex.assert_trees_all_equal_shapes(seen, full)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(seen))


def test_line_weights_are_the_least_squares_slope():
    rng = np.random.default_rng(2)
    clock, values, inside = rng.normal(size=20), rng.normal(size=20), (rng.random(20) > 0.3) * 1.0
    slope = line_weights(jnp.asarray(clock), jnp.asarray(inside)) @ values
    expected = np.polyfit(clock[inside > 0], values[inside > 0], 1)[0]
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_windows_hold_what_they_say(key):
    runs = small_runs()
    windows = cut(runs, (0.2, 0.5))
    assert windows.run.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert windows.last.tolist() == [4] * 6 + [10] * 6
    expected = ((np.asarray(runs.weights[2]) - np.asarray(runs.weights[2, 10])) ** 2).sum(-1)
    np.testing.assert_allclose(windows.distance[8], expected, rtol=1e-4, atol=1e-6)
    pairs = draw_pairs(key, windows, 4000, now_probability=0.5, final_probability=0.3)
    run, last, coordinate = pairs.place
    save_s = np.round(np.asarray(pairs.s.step) / 3).astype(int)  # these runs are saved every three steps
    save_t = np.round(np.asarray(pairs.t.step) / 3).astype(int)
    assert (last <= save_s).all()
    assert (save_s < save_t).all()
    assert (save_t <= 20).all()
    assert (save_s == last).mean() > 0.4
    assert (save_t == 20).mean() > 0.25
    np.testing.assert_allclose(pairs.t.step - pairs.before.step, 3.0)
    weights = np.asarray(runs.weights)
    displacement = weights[run, save_t, coordinate] - weights[run, last, coordinate]
    np.testing.assert_allclose(pairs.x_t * pairs.features.scale, displacement, rtol=1e-4, atol=1e-6)
    # The weights make the mean over coordinates the relative squared error of a run: that of persistence is 1.
    assert abs(float(jnp.mean(pairs.weight * pairs.x_t**2)) - 1) < 0.15


def test_adjacent_pairs_are_segments(key):
    windows = cut(small_runs(), (0.5,))
    pairs = draw_pairs(key, windows, 1000, now_probability=0.5, final_probability=0.3, adjacent=True)
    np.testing.assert_allclose(pairs.t.step - pairs.s.step, 3.0)
    assert float(pairs.s.step.min()) == 30.0
    assert float(pairs.t.step.max()) == 60.0


def test_drawn_horizons_lie_ahead(key):
    windows = cut(small_runs(), (0.2, 0.5))
    window, ahead = draw_windows(key, windows, 1000, 0.3)
    assert (ahead > windows.last[window]).all()
    assert int(ahead.max()) == 20


def test_merge_keeps_runs_apart():
    windows = [cut(small_runs(), (0.5,)), cut(small_runs(), (0.5,))]
    together = merge(windows, [np.array([0, 5]), np.array([1])])
    assert together.run.tolist() == [0, 5, 7]
    np.testing.assert_array_equal(together.weights[7], windows[1].weights[1])
    np.testing.assert_array_equal(together.features.scale[2], windows[1].features.scale[1])
    every = np.arange(6)
    for order in (every, every[::-1]):
        together = merge(windows, [every, order])
        assert together.run.tolist() == [*every, *(6 + order)]
        np.testing.assert_array_equal(together.features.scale[6:], windows[1].features.scale[order])


def test_thin_windows_are_a_sample(key):
    windows = cut(small_runs(), (0.2, 0.5))
    dim = windows.layout.dim
    sample = thin(windows, dim // 3)
    assert sample.weights.shape == (6, 21, dim // 3)
    assert sample.features.directions.shape[:2] == (12, dim // 3)
    # Which ones they are, their origins tell; all that is known of them belongs to them.
    kept = [int(np.flatnonzero(windows.features.origin[0] == origin)[0]) for origin in sample.features.origin[0]]
    assert len(set(kept)) == dim // 3
    for part in ("coordinate", "directions", "scale", "segment"):
        expected = getattr(windows.features, part)[:, np.array(kept)]
        np.testing.assert_array_equal(getattr(sample.features, part), expected)
    np.testing.assert_array_equal(sample.weights, windows.weights[..., np.array(kept)])
    # Samples of all sizes estimate the same relative error; that of persistence is 1.
    errors = []
    for seed in range(20):
        pairs = draw_pairs(key, thin(windows, dim // 3, seed), 2000, now_probability=1.0, final_probability=0.3)
        errors.append(float(jnp.mean(pairs.weight * pairs.x_t**2)))
    assert abs(np.mean(errors) - 1) < 0.1
    chex.assert_trees_all_equal(thin(windows, 2 * dim), windows)
    with pytest.raises(ValueError, match="num: expected at least one"):
        thin(windows, 0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 0.001, 0.999])
def test_bad_fractions(fraction):
    with pytest.raises(ValueError, match="fraction"):
        save_at(small_runs(), fraction)


def test_bad_prefixes():
    run = first(small_runs())
    prefix, final = prefix_of(run, 8), horizon_at(run, -1)
    with pytest.raises(ValueError, match="one snapshot"):
        check_forecast(prefix_of(run, 0), final)
    with pytest.raises(ValueError, match="one snapshot"):
        observe(prefix_of(run, 0))
    with pytest.raises(ValueError, match="horizon: expected a step beyond"):
        check_forecast(prefix, horizon_at(run, 8))
    with pytest.raises(ValueError, match="horizon: expected a step beyond"):
        check_forecast(prefix, Horizon(*(jnp.float32(0) for _ in range(3))))
    with pytest.raises(ValueError, match="finite weights"):
        check_forecast(prefix._replace(weights=put(prefix.weights, (2, 1), jnp.nan)), final)
    one_tensor = check_forecast(prefix._replace(layout=None), final)[0].layout  # of what was fitted to no run
    assert one_tensor.shapes == (prefix.weights.shape[-1:],)
    with pytest.raises(ValueError, match="no layout"):
        check_forecast(prefix._replace(layout=None), final, [Layout(("w",), ((7,),))])
    assert check_forecast(prefix._replace(layout=None), final, [prefix.layout])[0].layout == prefix.layout
    with pytest.raises(ValueError, match="layout describes 7 weights"):
        check_forecast(prefix._replace(layout=Layout(("w",), ((7,),))), final)


def test_a_horizon_at_a_save_that_is_not_known():
    """Inside `jax.jit`; the rate is 1 where none was recorded."""
    run = Trajectory(step=jnp.arange(5), time=0.1 * jnp.arange(5.0), weights=jnp.ones((5, 2)))
    found = jax.jit(lambda save: horizon_at(run, save))(2)
    np.testing.assert_allclose(found, [2, 0.2, 1], rtol=1e-6)


def test_features_that_are_dropped_are_not_seen():
    runs = small_runs()
    windows = cut(runs, (0.2, 0.5, 0.7), feature_dropout=(("mu",), ("state", "gradient")))
    assert windows.run.tolist() == [0, 1, 2, 3, 4, 5] * 5
    assert windows.last.tolist() == [4] * 6 + [10] * 6 + [14] * 6 + [4] * 6 + [10] * 6
    told = named(windows.features.run, RUN)
    flags = np.stack([told[f"has_{slot}"] for slot in ("mu", "nu", "trace")], axis=1)
    np.testing.assert_array_equal(flags[[0, 6, 18, 24]], [[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    hidden = runs._replace(state=None, gradient=None)
    expected = cut(hidden, (0.5,)).features
    for part in ("directions", "coordinate"):
        found = getattr(windows.features, part)[24:]
        np.testing.assert_allclose(found, getattr(expected, part), rtol=1e-5, atol=1e-5)
