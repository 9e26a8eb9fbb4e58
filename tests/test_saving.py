"""Fitted parameters on disk: every method comes back from its file, and nothing else is taken for one."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gfm_jax as gfm
from gfm_jax.fitting import with_defaults
from gfm_jax.forecasting import baselines as simple
from gfm_jax.forecasting import flow_map, nowcast
from gfm_jax.weights import baselines

KEY = jax.random.key(0)
NET = gfm.networks.MLP((2, 1))
LIKE = NET.init(KEY, jnp.zeros((1, 3)))
ZOO = jax.random.normal(KEY, (30, gfm.pytrees.ravel(LIKE).size))
CONTEXTS = jax.random.normal(jax.random.key(1), (30, 2))
SMALL = gfm.networks.TimeMLP((4,))
SHORT = {"num_steps": 2}


def flow(*args, **kwargs):
    return with_defaults(gfm.flow_map(SMALL, *args, **kwargs), **SHORT)


def own_residual(v, s, t, x):
    return v(s, t, x)


def recorded():
    task = gfm.linear_regression(jax.random.key(0), 20, 3)
    keys, rates = jax.random.split(jax.random.key(1), 4), jnp.full((4, 40), 0.1)
    return gfm.record(keys, task, optax.sgd, rates, gfm.save_steps(40, 20))


METHODS = {
    "pca": (lambda: gfm.pca(2), ZOO),
    "autoencoder": (lambda: with_defaults(gfm.autoencoder(2, widths=(4,)), **SHORT), ZOO),
    "chain": (lambda: gfm.chain(canonical(), gfm.pca(2)), ZOO),
    "mean": (baselines.mean, ZOO),
    "ridge": (lambda: baselines.ridge(gfm.pca(2)), (ZOO, CONTEXTS)),
    "hypernetwork": (lambda: baselines.hypernetwork(gfm.pca(2), gfm.networks.MLP((4, 2)), **SHORT), (ZOO, CONTEXTS)),
    "weights by a flow map": (lambda: gfm.flow_to_learn(gfm.pca(2), flow(gfm.flows.shortcut)), (ZOO, CONTEXTS)),
    "guided flow map": (lambda: flow(max_guidance=2.0), (ZOO, CONTEXTS)),
    "velocity": (
        lambda: with_defaults(gfm.flow_matching(SMALL, interpolant=gfm.flows.trigonometric), **SHORT),
        (ZOO, CONTEXTS),
    ),
    "forecaster": (lambda: with_defaults(flow_map(widths=(8,), batch_size=32), **SHORT), None),
    "nowcaster": (lambda: with_defaults(nowcast.wnn(batch_size=32), **SHORT), None),
    "fitted pair": (lambda: simple.lfd2(every=1), None),
    "log time": (lambda: simple.log_time(clock="step"), None),
}


def canonical():
    return gfm.canonical(gfm.find_symmetry(NET.apply, LIKE, jnp.zeros((1, 3))))


def answer(method, params, data):
    """What is asked of the method."""
    if hasattr(method, "forecast"):
        return gfm.forecast(method, params, data, observed=0.5).weights
    if hasattr(method, "encode"):
        return method.decode(params, method.encode(params, data[0]))
    return gfm.sample(KEY, method, params, 3, data[1][:3] if isinstance(data, tuple) else None)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_and_its_parameters_come_back(name, tmp_path):
    make, data = METHODS[name]
    data, method = recorded() if data is None else data, make()
    params, _ = gfm.fit(KEY, method, data)
    again, same = gfm.load(gfm.save(tmp_path / "a.safetensors", method, params))
    assert jax.tree.structure(same) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    np.testing.assert_array_equal(answer(again, same, data), answer(method, params, data))
    _, same = gfm.load(tmp_path / "a.safetensors", method)  # its choices are found to be equal
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_another_process_reads_it(tmp_path):
    method = flow()
    params, _ = gfm.fit(KEY, method, ZOO)
    path = gfm.save(tmp_path, method, params)
    assert path == tmp_path / "params.safetensors"
    lines = (
        f"import gfm_jax as gfm, jax; print(gfm.sample(jax.random.key(3), *gfm.load({str(tmp_path)!r}), 2).tolist())"
    )
    found = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout
    np.testing.assert_array_equal(np.float32(json.loads(found)), gfm.sample(jax.random.key(3), method, params, 2))


def test_bfloat16_and_empty_parts(tmp_path):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": None, "c": [jnp.int8(3), ()]}
    _, same = gfm.load(gfm.save(tmp_path / "x", gfm.pca(2), params))
    assert jax.tree.structure(same) == jax.tree.structure(params)
    assert [leaf.dtype for leaf in jax.tree.leaves(same)] == [leaf.dtype for leaf in jax.tree.leaves(params)]


def test_what_is_another_method_is_refused_by_name(tmp_path):
    method = flow()
    params, _ = gfm.fit(KEY, method, ZOO)
    path = gfm.save(tmp_path / "a", method, params)
    with pytest.raises(
        ValueError, match=r"another one: residual gfm_jax.flows.residuals:lsd, here gfm_jax.flows.residuals:esd"
    ):
        gfm.load(path, flow(gfm.flows.esd))
    with pytest.raises(ValueError, match=r"method flows.flow_map, here weights.pca"):
        gfm.load(path, gfm.pca(2))


def test_what_a_file_cannot_hold_has_to_be_given(tmp_path):
    method = flow(own_residual)
    params, _ = gfm.fit(KEY, method, ZOO)
    path = gfm.save(tmp_path / "a", method, params)
    with pytest.raises(ValueError, match=r"made with residual own_residual, which no file holds; load\(path, method\)"):
        gfm.load(path)
    again, same = gfm.load(path, method)
    np.testing.assert_array_equal(answer(again, same, ZOO[None]), answer(method, params, ZOO[None]))


def test_refusals(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(ValueError, match=r"path: expected a file that gfm_jax.save wrote, got .* does not exist"):
        gfm.load(tmp_path / "none")
    with pytest.raises(ValueError, match="method: expected one of gfm_jax with a config, got dict"):
        gfm.save(tmp_path / "a", {}, {})
    for key in (0, "b/c"):  # an array of that name would come back under another, or in the place of another
        with pytest.raises(ValueError, match=r"params: expected names without / as keys, got .* at params/a"):
            gfm.save(tmp_path / "a", gfm.pca(2), {"a": {key: jnp.ones(2)}})
    with pytest.raises(ValueError, match="params: expected arrays, got str at params/a"):
        gfm.save(tmp_path / "a", gfm.pca(2), {"a": "text"})
    assert not (tmp_path / "a").exists()
    save_file({"x": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="got other tensors"):
        gfm.load(tmp_path / "other")
    path = gfm.save(tmp_path / "whole", gfm.pca(2), gfm.fit(KEY, gfm.pca(2), ZOO)[0])
    half = path.read_bytes()[:-8]
    path.write_bytes(half)
    with pytest.raises(ValueError, match="no whole safetensors file"):
        gfm.load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "2"}, "expected format 1, got 2"),
        ({"method": json.dumps({"method": "os.system", "choices": {}})}, "a method of another version, os.system"),
        ({"method": json.dumps({"method": "saving.load", "choices": {}})}, "a method of another version"),
        ({"method": json.dumps({"method": "weights.pca", "choices": {"rank": 2}})}, "another version of pca: rank"),
        ({"structure": json.dumps({"array": "params/a"})}, "expected the array params/a"),
        (
            {"structure": json.dumps({"record": "gfm_jax.base:Layout", "fields": {"sides": None}})},
            "expected a record of this version, got gfm_jax.base:Layout",
        ),
        (
            {"structure": json.dumps({"record": "numpy:load", "fields": {}})},
            "expected names of gfm_jax, flax, jax, got numpy:load",
        ),
        (
            {"structure": json.dumps({"record": "jax.numpy:load", "fields": {}})},
            "expected a record of this version, got jax.numpy:load",
        ),
    ],
)
def test_a_file_calls_nothing_but_methods_and_records(metadata, message, tmp_path):
    from safetensors.numpy import save_file

    told = {"format": "1", "structure": "null", "gfm_jax": "9"}
    told["method"] = json.dumps({"method": "weights.pca", "choices": {"num_codes": 2, "whiten": True}})
    save_file({"x": np.zeros(3)}, tmp_path / "made", told | metadata)
    with pytest.raises(ValueError, match=message):
        gfm.load(tmp_path / "made")
