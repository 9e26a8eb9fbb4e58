"""Points of any event shape: images come out as images, with the numbers of their pixels as a vector."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gfm_jax as gfm
from gfm_jax.base import PathSample
from gfm_jax.flows import EmpiricalTargets, FlowData, empirical_path, posterior
from gfm_jax.networks import TimeMLP, UNet

NETWORK = TimeMLP((8,))


def images(num=40, shape=(4, 2, 1)):
    return jax.random.normal(jax.random.key(0), (num, *shape)) + 2


def nearest(key, x_0, x_1):
    """A coupling that asks for vectors."""
    return jnp.argmin(jnp.sum((x_0[:, None] - x_1[None]) ** 2, -1), axis=1)


FLOWS = {
    "velocity": gfm.flow_matching(NETWORK, batch_size=16),
    "coupled": gfm.flow_matching(NETWORK, coupling=nearest, batch_size=16),
    "empirical": gfm.flow_matching(NETWORK, targets=EmpiricalTargets(20), batch_size=16),
    "one set each": gfm.flow_matching(NETWORK, targets=EmpiricalTargets(5, "per_sample"), batch_size=16),
    "flow map": gfm.flow_map(NETWORK, learned_weight=True, batch_size=16),
}


@pytest.mark.parametrize("name", FLOWS)
def test_images_have_the_numbers_of_vectors(name):
    x, flow = images(), FLOWS[name]
    params, info = gfm.fit(jax.random.key(1), flow, x, num_steps=3)
    flat, same = gfm.fit(jax.random.key(1), flow, x.reshape(len(x), -1), num_steps=3)
    np.testing.assert_allclose(info.losses, same.losses, rtol=1e-5)
    drawn = gfm.sample(jax.random.key(2), flow, params, 6, num_steps=2)
    assert drawn.shape == (6, 4, 2, 1)
    expected = gfm.sample(jax.random.key(2), flow, flat, x_0=x[:5].reshape(5, -1), num_steps=2)
    again = gfm.sample(None, flow, params, x_0=x[:5], num_steps=2)
    np.testing.assert_allclose(again.reshape(5, -1), expected, rtol=2e-4, atol=2e-5)


def test_conditions_and_sources_of_images():
    x, cond = images(), jnp.eye(3)[jnp.arange(40) % 3]
    flow = gfm.flow_map(UNet((4, 2, 1), channels=(8,), num_heads=0), batch_size=8, max_guidance=2.0)
    params, _ = gfm.fit(jax.random.key(1), flow, FlowData(x, cond, x_0=x + 1), num_steps=2)
    three = gfm.sample(jax.random.key(2), flow, params, cond=jnp.tile(cond[:1], (3, 1)))
    np.testing.assert_array_equal(gfm.sample(jax.random.key(2), flow, params, 3, cond=cond[0]), three)
    assert three.shape == (3, 4, 2, 1)
    with pytest.raises(ValueError, match=r"vector for each of 3 samples, got shape \(3,\); labels .* jax.nn.one_hot"):
        gfm.sample(jax.random.key(2), flow, params, cond=cond[0])
    pair, _ = gfm.fit(jax.random.key(1), flow, (x, cond), num_steps=2)
    assert pair.std_0.shape == (4, 2, 1)


def test_the_closed_form_of_images():
    x, at = images(), images(1)[0] / 2
    flat = x.reshape(len(x), -1)
    for of_images, of_vectors in (
        (gfm.closed_form_velocity(x)(0.5, at), gfm.closed_form_velocity(flat)(0.5, at.ravel())),
        (posterior(x, 0.5, at).mean, posterior(flat, 0.5, at.ravel()).mean),
    ):
        assert of_images.shape == at.shape
        np.testing.assert_array_equal(of_images.ravel(), of_vectors)
    jitted = jax.jit(jax.vmap(functools.partial(gfm.closed_form_velocity(x), 0.5)))
    np.testing.assert_allclose(jitted(x[:3])[1], gfm.closed_form_velocity(x)(0.5, x[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_other_events_are_refused():
    x = images()
    with pytest.raises(ValueError, match=r"data: expected points \[num, dim\] or \[num, \*event\], got shape \(3,\)"):
        gfm.fit(jax.random.key(0), FLOWS["velocity"], jnp.ones(3))
    with pytest.raises(ValueError, match=r"as x has, got \(40, 4, 2, 1\)"):
        posterior(x, 0.5, jnp.zeros(8))
    with pytest.raises(ValueError, match=r"expected at least one point of shape \(8,\)"):
        gfm.closed_form_velocity(x)(0.5, jnp.zeros(8))
    params, _ = gfm.fit(jax.random.key(1), FLOWS["velocity"], x, num_steps=1)
    with pytest.raises(ValueError, match=r"x_0: expected a start for each sample, \(3, 4, 2, 1\), got shape \(3, 8\)"):
        gfm.sample(None, FLOWS["velocity"], params, x_0=jnp.zeros((3, 8)))
    path = PathSample(jnp.full(5, 0.5), x[:5], x[:5], x[:5], x[:5])
    with pytest.raises(ValueError, match=r"expected \[batch, M, 4, 2, 1\] or \[M, 4, 2, 1\], got shape \(40, 8\)"):
        empirical_path(path, x.reshape(40, 8))
