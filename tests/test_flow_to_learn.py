"""Generating weights: the flow between codes, and the simple ways beside it."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.fitting import fit, with_defaults
from gfm_jax.flows import flow_map, flow_matching, guide, sample, unit_gaussian
from gfm_jax.networks import TimeMLP
from gfm_jax.weights import Zoo, autoencoder, baselines, flow_to_learn, identity, pca, standardized
from gfm_jax.weights.flow_to_learn import FlowToLearnParams, Origin

NUM, DIM = 400, 6
NET = TimeMLP((32, 32))
FAST = {"num_steps": 400, "learning_rate": 5e-3, "ema_decay": 0.98}
VELOCITY, MAP = (with_defaults(flow(NET), **FAST) for flow in (flow_matching, flow_map))


def fitted(key, model, *zoo):
    return fit(key, model, Zoo(*zoo))[0]


@pytest.fixture(scope="module")
def zoo():
    """Weights around a centre that is linear in the condition, along two directions."""
    keys = jax.random.split(jax.random.key(7), 4)
    cond = jax.random.normal(keys[0], (NUM, 2))
    centre = 3.0 + cond @ jax.random.normal(keys[1], (2, DIM))
    return centre + 0.3 * jax.random.normal(keys[2], (NUM, 2)) @ jax.random.normal(keys[3], (2, DIM)), cond


def init(key):
    return jax.random.normal(key, (DIM,))


FLOWS = {
    "velocity": flow_to_learn(standardized(), VELOCITY),
    "fitted": flow_to_learn(pca(4), VELOCITY, source="fitted"),
    "initial": flow_to_learn(standardized(), VELOCITY, source=init),
    "transport": flow_to_learn(pca(4), VELOCITY, coupling="optimal_transport"),
    "map": flow_to_learn(pca(4), MAP),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_learn_the_law_of_the_weights(name, zoo, key):
    weights, _ = zoo
    generator = FLOWS[name]
    params = fitted(key, generator, weights)
    found = sample(key, generator, params, 2000)
    np.testing.assert_allclose(found.mean(0), weights.mean(0), atol=0.35)
    np.testing.assert_allclose(found.std(0), weights.std(0), rtol=0.35)
    np.testing.assert_array_equal(generator.generate(key, params, 2000), found)
    assert generator.velocity(params, jnp.float32(0.5), generator_code(params)).shape == generator_code(params).shape


def generator_code(params):
    return jnp.zeros_like(params.flow.std_0)


@pytest.mark.parametrize("coupling", ["independent", "optimal_transport"])
def test_conditions_are_followed_whatever_the_coupling(coupling, zoo, key):
    weights, cond = zoo
    groups = np.asarray(cond[:, 0] > 0)
    generator = flow_to_learn(pca(3), VELOCITY, coupling=coupling)
    params = fitted(key, generator, weights, cond, groups)
    found = generator.generate(key, params, NUM, cond)
    explained = 1 - jnp.sum((found - weights) ** 2) / jnp.sum((weights - weights.mean(0)) ** 2)
    assert explained > 0.7  # of which 2 x .09 x |directions|^2 is noise
    cold = generator.generate(key, params, NUM, cond, temperature=0.0)
    assert jnp.sum((cold - weights) ** 2) < jnp.sum((found - weights) ** 2)


def test_guidance_moves_away_from_what_has_no_condition(zoo, key):
    weights, cond = zoo
    flow = flow_matching(NET, condition_dropout=0.3)
    params, _ = fit(key, flow, (weights - weights.mean(0), cond), **FAST)
    at = jnp.broadcast_to(jnp.array([1.0, 0.0]), (300, 2))
    ends = {g: sample(key, guide(flow, g), params, 300, at).mean(0) for g in (0.0, 1.0, 2.0)}
    nothing = sample(key, flow, params, 300, jnp.zeros((300, 2))).mean(0)
    np.testing.assert_allclose(ends[0.0], nothing, atol=1e-4)
    np.testing.assert_allclose(ends[1.0], sample(key, flow, params, 300, at).mean(0), atol=1e-4)
    along = ends[1.0] - ends[0.0]
    params = FlowToLearnParams((), params, unit_gaussian(weights[0]), Origin("gaussian", "independent"))
    start = jax.random.normal(key, (300, DIM))
    codes = {g: flow_to_learn(identity(), guide(flow, g)) for g in (1.0, 2.0)}
    through = {g: sample(key, codes[g], params, 300, at, x_0=start) for g in codes}
    np.testing.assert_array_equal(through[2.0], sample(key, guide(flow, 2.0), params.flow, 300, at, x_0=start))
    assert jnp.abs(through[2.0] - through[1.0]).max() > 0.1
    assert 1.3 < (ends[2.0] - ends[0.0]) @ along / (along @ along) < 3


def test_a_fit_is_taken_up_where_it_was_left(zoo, key, tmp_path):
    params, again = (fit(key, FLOWS["velocity"], zoo[0], folder=tmp_path)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert {path.name for path in tmp_path.iterdir()} == {"flow"}  # the codec is in closed form


@pytest.mark.filterwarnings("ignore")
def test_killed_then_resumed(zoo, key, tmp_path):
    """kill -9 when the codec is fitted and the flow half; what resumes generates the same as what was never stopped."""
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import jax
        from gfm_jax import fitting
        import test_flow_to_learn
        save = fitting.save
        def once(folder, checkpoint):
            save(folder, checkpoint)
            if folder.name == "flow":
                os.kill(os.getpid(), signal.SIGKILL)
        fitting.save = once
        take = fitting.fit.__kwdefaults__
        take.update(chunk=100, save_every=0.0)
        test_flow_to_learn.small_fit({str(tmp_path)!r})
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    generator, resumed = small_fit(tmp_path)
    _, straight = small_fit(None)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    np.testing.assert_array_equal(generator.generate(key, resumed, 5), generator.generate(key, straight, 5))


def small_fit(folder):
    """A learned codec and a flow on its codes."""
    weights = jnp.sin(jnp.arange(60.0)).reshape(10, 6)
    codec = with_defaults(autoencoder(2, widths=(8,)), num_steps=200)
    generator = flow_to_learn(codec, with_defaults(flow_matching(TimeMLP((8,))), num_steps=300))
    return generator, fit(jax.random.key(5), generator, weights, folder=folder)[0]


BASELINES = {
    "random": baselines.random(init),
    "mean": baselines.mean(),
    "soup": baselines.soup(4),
    "interpolation": baselines.interpolation(),
    "perturbation": baselines.perturbation(),
    "retrieval": baselines.retrieval(),
    "gaussian": baselines.gaussian(pca(4)),
    "ridge": baselines.ridge(pca(4)),
    "hypernetwork": baselines.hypernetwork(standardized(), num_steps=300),
}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_the_contract(name, zoo, key):
    weights, cond = zoo
    generator = BASELINES[name]
    params, info = fit(key, generator, zoo)
    assert info is None
    found = generator.generate(key, params, 10, cond[:10])
    assert found.shape == (10, DIM)
    assert found.dtype == weights.dtype
    np.testing.assert_array_equal(generator.generate(key, params, 10, cond[:10]), found)
    if name not in ("mean", "retrieval", "ridge", "hypernetwork"):  # they draw nothing
        other = generator.generate(jax.random.fold_in(key, 1), params, 10, cond[:10])
        assert jnp.abs(other - found).min(1).max() > 0


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of orbax before 0.12
@pytest.mark.parametrize("name", ["fitted", "map", "gaussian", "hypernetwork"])
def test_parameters_are_kept_by_orbax_as_they_are(name, zoo, key, tmp_path):
    """And what comes back generates the same."""
    import orbax.checkpoint as ocp

    generator, (weights, cond) = (FLOWS | BASELINES)[name], zoo
    params = fitted(key, generator, weights, cond)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        back = checkpointer.restore(tmp_path / "params", jax.eval_shape(lambda: params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    np.testing.assert_array_equal(
        generator.generate(key, back, 10, cond[:10]), generator.generate(key, params, 10, cond[:10])
    )


def made(name, zoo, key, num=2000, cond=None):
    return BASELINES[name].generate(key, fitted(key, BASELINES[name], *zoo), num, cond)


def test_what_baselines_make(zoo, key):
    weights, cond = zoo
    np.testing.assert_allclose(made("mean", zoo, key)[0], weights.mean(0), atol=1e-5)
    np.testing.assert_allclose(made("soup", zoo, key).std(0), weights.std(0) / 2, rtol=0.1)
    np.testing.assert_allclose(made("perturbation", zoo, key).std(0), 1.01**0.5 * weights.std(0), rtol=0.1)
    np.testing.assert_allclose(np.cov(made("gaussian", zoo, key).T), np.cov(weights.T), atol=0.6)
    np.testing.assert_array_equal(made("retrieval", zoo, key, 50, cond[:50]), weights[:50])
    pairs = made("interpolation", zoo, key)
    assert (
        jnp.linalg.norm(pairs - weights.mean(0), axis=1) < jnp.linalg.norm(weights - weights.mean(0), axis=1).max()
    ).all()
    noise = jnp.sum((weights - weights.mean(0)) ** 2) / 10
    for name in ("ridge", "hypernetwork"):
        assert jnp.sum((made(name, zoo, key, NUM, cond) - weights) ** 2) < noise


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, w, c: flow_to_learn(identity(), f, source="normal"), "source: expected 'gaussian', 'fitted'"),
        (lambda f, w, c: flow_to_learn(identity(), f, coupling="ot"), "coupling: expected one of independent"),
        (lambda f, w, c: fit_to(flow_to_learn(identity(), f), w, c, [1]), "groups: expected one"),
        (
            lambda f, w, c: fit_to(flow_to_learn(identity(), f, coupling="optimal_transport"), w, c),
            "groups: expected with conditions",
        ),
        (lambda f, w, c: fit_to(flow_to_learn(pca(500), f), w), "expected those of at least 501 networks"),
        (lambda f, w, c: made("retrieval", (w,), jax.random.key(0), 3, c[:3]), "cond: expected conditions in the fit"),
        (
            lambda f, w, c: baselines.soup(900).generate(jax.random.key(0), fit_to(baselines.soup(900), w), 3),
            "num_mixed: expected at most the 400 networks",
        ),
        (lambda f, w, c: guide(f, 2.0), "flow: expected one with condition_dropout or max_guidance"),
        (lambda f, w, c: baselines.hypernetwork(identity(), num_steps=0), "num_steps: expected at least 1, got 0"),
        (
            lambda f, w, c: fit(jax.random.key(0), flow_to_learn(identity(), f), w, num_steps=3),
            "num_steps: expected None for a method that is not fitted by one descent",
        ),
    ],
)
def test_bad_input(call, message, zoo):
    with pytest.raises(ValueError, match=message):
        call(flow_matching(NET), *zoo)


def fit_to(model, *zoo):
    return fitted(jax.random.key(0), model, *zoo)


def test_a_codec_that_is_fitted_already_is_taken(zoo, key):
    """Its parameters stand where those of the fit would."""
    codec, (weights, cond) = pca(2), zoo
    of_half, _ = fit(key, codec, weights[: NUM // 2])
    for model in (flow_to_learn(codec, with_defaults(VELOCITY, num_steps=3)), baselines.ridge(codec)):
        params = fitted(key, model, weights, cond, None, of_half)
        jax.tree.map(np.testing.assert_array_equal, params.codec, of_half)
        assert jnp.abs(fitted(key, model, weights, cond).codec.mean - of_half.mean).max() > 1e-3


def test_retrieval_has_conditions_on_one_scale(key):
    """The second number is in thousands: it does not drown the first."""
    weights, cond = jnp.eye(3), jnp.array([[0.0, 1000.0], [1.0, 1000.0], [0.0, 1700.0]])
    model = baselines.retrieval()
    found = model.generate(key, fitted(key, model, weights, cond), 2, jnp.array([[0.9, 1500.0], [0.1, 1600.0]]))
    np.testing.assert_array_equal(found, weights[jnp.array([1, 2])])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_of_any_dtype(name, key):
    """Bytes wrapped (wrong before 0.2)."""
    rng = np.random.default_rng(0)
    weights, cond = rng.integers(0, 255, (30, DIM)).astype(np.uint8), rng.integers(0, 255, (30, 2)).astype(np.uint8)
    model = BASELINES[name]
    found, expected = (
        model.generate(key, fitted(key, model, w, c), 4, c[:4])
        for w, c in ((weights, cond), (weights.astype(np.float32), cond.astype(np.float32)))
    )
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["retrieval", "ridge", "hypernetwork"])
def test_baselines_that_follow_conditions_need_them(name, zoo, key):
    """(wrong before 0.2)"""
    (weights, cond), model = zoo, BASELINES[name]
    params = fitted(key, model, weights, cond)
    with pytest.raises(ValueError, match=r"cond: expected a vector for each of 3 networks, which .* follows, got none"):
        model.generate(key, params, 3)
    with pytest.raises(ValueError, match=r"cond: expected a vector for each of 3 samples, got shape \(5, 2\)"):
        model.generate(key, params, 3, cond[:5])
    with pytest.raises(ValueError, match="cond: expected 2 numbers for each sample"):
        model.generate(key, params, 3, cond[:3, :1])
    with pytest.raises(ValueError, match="cond: expected a vector for each of 400 networks"):
        fitted(key, model, weights, cond[:5])
    if name != "retrieval":
        with pytest.raises(ValueError, match="cond: expected a vector for each of 400 networks, which"):
            fitted(key, model, weights)


@pytest.mark.usefixtures("unchecked")
def test_a_zoo_of_one_network(key):
    """(wrong before 0.2)"""
    one = jnp.ones((1, DIM))
    for name in ("interpolation", "perturbation", "gaussian"):
        with pytest.raises(ValueError, match="weights: expected at least 2"):
            made(name, (one,), key, 2)
    np.testing.assert_array_equal(made("mean", (one,), key, 2), jnp.ones((2, DIM)))
    with pytest.raises(ValueError, match="num_mixed: expected at least 1, got 0"):
        baselines.soup(0)
    with pytest.raises(ValueError, match=r"weights: expected points \[num, dim\], got shape \(6,\)"):
        fitted(key, BASELINES["mean"], one[0])


def test_a_temperature_needs_a_gaussian(zoo, key):
    generator = flow_to_learn(identity(), with_defaults(VELOCITY, num_steps=10), source=init)
    params = fitted(key, generator, zoo[0])
    with pytest.raises(ValueError, match="temperature: expected at least 0, and 1 but for a Gaussian source"):
        generator.generate(key, params, 3, temperature=0.5)
