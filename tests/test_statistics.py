"""Running statistics of replaced weights, for BatchNorm of linen and of NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gfm_jax as gfm


class Net(nn.Module):
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(nn.Dense(4)(x))
        return nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(2)(nn.relu(x)))


def update_of(net, params):
    @jax.jit
    def update(statistics, batch):
        variables = {"params": params, "batch_stats": statistics}
        return net.apply(variables, batch, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    return update


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_the_mean_over_batches_whatever_the_momentum(key, momentum):
    net, batches = Net(momentum), 3 + 2 * jax.random.normal(key, (5, 32, 3))
    variables = net.init(key, batches[0])
    found = gfm.refresh_statistics(update_of(net, variables["params"]), variables["batch_stats"], batches)
    hidden = batches @ variables["params"]["Dense_0"]["kernel"] + variables["params"]["Dense_0"]["bias"]
    np.testing.assert_allclose(found["BatchNorm_0"]["mean"], hidden.mean((0, 1)), rtol=2e-3)
    np.testing.assert_allclose(found["BatchNorm_0"]["var"], hidden.var(1).mean(0), rtol=2e-3)
    assert jax.tree.structure(found) == jax.tree.structure(variables["batch_stats"])


def test_they_are_those_that_a_long_pass_comes_to(key):
    net, x = Net(), jax.random.normal(key, (64, 3))
    variables = net.init(key, x)
    update = update_of(net, variables["params"])
    by_hand = variables["batch_stats"]
    for _ in range(2000):
        by_hand = update(by_hand, x)
    found = gfm.refresh_statistics(update, variables["batch_stats"], [x])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, by_hand)
    outputs = [net.apply({"params": variables["params"], "batch_stats": each}, x) for each in (found, by_hand)]
    np.testing.assert_allclose(*outputs, rtol=1e-2, atol=1e-3)


def test_nnx(key):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))

    model, x = Model(nnx.Rngs(0)), jax.random.normal(key, (16, 3))
    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def update(statistics, batch):
        model = nnx.merge(graph, params, statistics, rest)
        model.train()
        model(batch)
        return nnx.state(model, nnx.BatchStat)

    found = gfm.refresh_statistics(update, statistics, [x])
    hidden = x @ model.linear.kernel[...] + model.linear.bias[...]
    np.testing.assert_allclose(jax.tree.leaves(found)[0], hidden.mean(0), rtol=1e-3, atol=1e-4)


def test_what_no_batch_moves_stays():
    """A counter, and a statistic of a layer that is frozen."""
    statistics = {"count": jnp.array(7), "frozen": jnp.full(2, 5.0), "mean": jnp.zeros(2)}

    def update(old, x):
        return {"count": old["count"] + 1, "frozen": old["frozen"], "mean": 0.5 * old["mean"] + 0.5 * x.mean(0)}

    found = gfm.refresh_statistics(update, statistics, [jnp.ones((3, 2)), jnp.full((3, 2), 3.0)])
    assert jax.tree.map(lambda leaf: leaf.tolist(), found) == {"count": 7, "frozen": [5.0, 5.0], "mean": [2.0, 2.0]}


def test_without_a_batch():
    with pytest.raises(ValueError, match="batches: expected at least one batch, got none"):
        gfm.refresh_statistics(lambda s, x: s, {"mean": jnp.zeros(2)}, [])
