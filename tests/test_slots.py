"""An optimizer's slots: found in any state by their paths, and written back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gfm_jax import optimizers
from gfm_jax.pytrees import ravel
from gfm_jax.runs import optimizer_slots, with_slots

WEIGHTS = {
    "body": {"kernel": jnp.arange(6.0).reshape(3, 2) / 6, "bias": jnp.array([0.3, -0.2])},
    "head": {"kernel": jnp.array([[0.5, -1.5], [0.25, 2.0]])},
}
GRADS = jax.tree.map(lambda w: 1 + w, WEIGHTS)
BODY, HEAD = {"body": True, "head": False}, {"body": False, "head": True}

OPTIMIZERS = {  # and their slots, by their sizes in body/bias, body/kernel, head/kernel: 0 where a part has none
    "sgd": (optax.sgd(0.1), {}),
    "momentum": (optax.sgd(0.1, momentum=0.9), {"trace": (2, 6, 4)}),
    "adam": (optax.adam(0.1), {"mu": (2, 6, 4), "nu": (2, 6, 4)}),
    "chain": (optax.chain(optax.clip(1.0), optax.adamw(0.1), optax.trace(0.9)),
              {"mu": (2, 6, 4), "nu": (2, 6, 4), "trace": (2, 6, 4)}),
    "two traces": (optax.chain(optax.trace(0.9), optax.trace(0.5)), {"trace": (2, 6, 4), "trace.1": (2, 6, 4)}),
    "directions": (optimizers.taylor_sgd(0.1), {"directions": (2, 6, 4), "directions.1": (2, 6, 4)}),
    "masked": (optax.masked(optax.adam(0.1), BODY), {"mu": (2, 6, 0), "nu": (2, 6, 0)}),
    "frozen": (optax.partition({"t": optax.adam(0.1), "f": optax.set_to_zero()}, {"body": "t", "head": "f"}),
               {"mu": (2, 6, 0), "nu": (2, 6, 0)}),
    "two adams": (optax.partition({"a": optax.adam(0.1), "b": optax.adam(0.2)}, {"body": "b", "head": "a"}),
                  {"mu": (2, 6, 4), "nu": (2, 6, 4)}),
    "adam and momentum": (optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.sgd(0.2, momentum=0.5)}, {"body": {"kernel": "a", "bias": "b"}, "head": "b"}),
        {"mu": (0, 6, 0), "nu": (0, 6, 0), "trace": (2, 0, 4)}),
    "two pasts in parts": (optax.partition(
        {"a": optimizers.taylor_sgd(0.1), "b": optimizers.taylor_sgd(0.2)}, {"body": "b", "head": "a"}),
        {"directions": (2, 6, 4), "directions.1": (2, 6, 4)}),
    "muon": (optax.contrib.muon(0.1), {"mu": (2, 6, 4), "nu": (2, 0, 0)}),
    "schedule free": (optax.contrib.schedule_free_adamw(0.1), {"nu": (2, 6, 4), "z": (2, 6, 4)}),
    "injected": (optax.inject_hyperparams(optax.adam)(0.1), {"mu": (2, 6, 4), "nu": (2, 6, 4)}),
    "if finite": (optax.apply_if_finite(optax.adam(0.1), 3), {"mu": (2, 6, 4), "nu": (2, 6, 4)}),
    "accumulated": (optax.MultiSteps(optax.adam(0.1), 2),
                    {"mu": (2, 6, 4), "nu": (2, 6, 4), "acc_grads": (0, 0, 0)}),
    "adafactor": (optax.scale_by_factored_rms(min_dim_size_to_factor=2), {}),
    "flattened": (optax.flatten(optax.adam(0.1)), {"mu": (2, 6, 4), "nu": (2, 6, 4)}),
}  # fmt: skip


@functools.cache
def stepped(name):
    """The state after two steps, of which no slot is zero any more."""
    transform = OPTIMIZERS[name][0]
    state = transform.init(WEIGHTS)
    for scale in (1.0, 2.0):
        grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS)
        _, state = transform.update(grads, state, WEIGHTS)
    return state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_found_by_their_paths_and_written_back(name):
    """(wrong before 0.2)"""
    state, sizes = stepped(name), OPTIMIZERS[name][1]
    slots = optimizer_slots(state, WEIGHTS)
    present = lambda tree: tuple(int((leaf != 0).sum()) for leaf in jax.tree.leaves(tree))
    assert {slot: present(tree) for slot, tree in slots.items()} == sizes
    assert all(jax.tree.structure(tree) == jax.tree.structure(WEIGHTS) for tree in slots.values())

    other = {slot: jax.tree.map(lambda x: 3 * x, tree) for slot, tree in slots.items()}
    flat = {slot: ravel(tree) for slot, tree in other.items()}
    for given in (other, flat):
        written = jax.jit(with_slots)(state, WEIGHTS, given)
        jax.tree.map(np.testing.assert_array_equal, dict(optimizer_slots(written, WEIGHTS)), other)
        assert jax.tree.structure(written) == jax.tree.structure(state)
    unchanged = with_slots(state, WEIGHTS, jax.jit(optimizer_slots)(state, WEIGHTS))
    jax.tree.map(np.testing.assert_array_equal, unchanged, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(unchanged)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_parts_are_those_of_the_weights():
    """Slots against the state that they come from, part by part (wrong before 0.2)"""
    inner = stepped("two adams").inner_states
    mu = optimizer_slots(stepped("two adams"), WEIGHTS)["mu"]
    np.testing.assert_array_equal(mu["body"]["kernel"], inner["b"].inner_state[0].mu["body"]["kernel"])
    np.testing.assert_array_equal(mu["head"]["kernel"], inner["a"].inner_state[0].mu["head"]["kernel"])
    plain = optimizer_slots(stepped("adam"), WEIGHTS)["mu"]
    jax.tree.map(np.testing.assert_array_equal, mu, plain)  # another rate changes no slot
    first, second = (optimizer_slots(stepped("directions"), WEIGHTS)[name] for name in ("directions", "directions.1"))
    jax.tree.map(np.testing.assert_array_equal, (first, second), stepped("directions")[0].directions)


def restored(state, tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(tmp_path / "state")


@pytest.mark.filterwarnings("ignore")  # orbax says that it was given no target
@pytest.mark.parametrize("name", ["two adams", "accumulated"])
def test_slots_of_a_state_restored_without_a_target(name, tmp_path):
    """(wrong before 0.2)"""
    state = stepped(name)
    dicts = restored(state, tmp_path)
    assert jax.tree.structure(dicts) != jax.tree.structure(state)
    expected = optimizer_slots(state, WEIGHTS)
    found = optimizer_slots(dicts, WEIGHTS)
    assert set(found) == set(expected)
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(expected))
    doubled = {slot: jax.tree.map(lambda x: 2 * x, tree) for slot, tree in found.items()}
    jax.tree.map(np.testing.assert_array_equal, optimizer_slots(with_slots(dicts, WEIGHTS, doubled), WEIGHTS), doubled)


def test_lists_of_weights_and_numbers_as_strings():
    """(wrong before 0.2)"""
    weights = [jnp.ones((3, 2)), jnp.ones(2)]
    _, state = optax.adam(0.1).update(weights, optax.adam(0.1).init(weights), weights)
    as_dicts = {"0": {"count": 1, "mu": {"0": state[0].mu[0], "1": state[0].mu[1]}, "nu": state[0].nu}, "1": {}}
    for found in (optimizer_slots(state, weights), optimizer_slots(as_dicts, weights)):
        jax.tree.map(np.testing.assert_array_equal, found, {"mu": state[0].mu, "nu": state[0].nu})


@pytest.mark.parametrize("weights", [jnp.array([1.0, 2.0]), jnp.array(3.0), jnp.ones((2, 3))])
def test_weights_that_are_one_array(weights):
    transform = optax.inject_hyperparams(optax.adam)(0.1)
    state = transform.update(weights, transform.init(weights), weights)[1]
    found = optimizer_slots(state, weights)
    assert list(found) == ["mu", "nu"]
    np.testing.assert_allclose(found["mu"], 0.1 * weights, rtol=1e-6)
    written = with_slots(state, weights, {"mu": weights, "nu": 2 * weights})
    np.testing.assert_array_equal(optimizer_slots(written, weights)["nu"], 2 * weights)


def test_slots_of_nnx():
    """(wrong before 0.2)"""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    grads = nnx.state(model, nnx.Param)
    expected = 0.1 * ravel(nnx.to_pure_dict(grads))  # the first mu of Adam
    optimizer.update(model, grads)
    weights, pure = nnx.state(model, nnx.Param), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for state in (optimizer.opt_state, nnx.state(optimizer), nnx.to_pure_dict(nnx.state(optimizer))):
        for like in (weights, pure):
            found = optimizer_slots(state, like)
            assert list(found) == ["mu", "nu"]
            np.testing.assert_allclose(ravel(found["mu"]), expected, rtol=1e-6)
            new = with_slots(state, like, {"mu": expected, "nu": 2 * expected})
            np.testing.assert_array_equal(ravel(optimizer_slots(new, like)["nu"]), 2 * expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"mu": WEIGHTS}, "slots: expected mu, nu, got mu"),
        ({"mu": WEIGHTS, "nu": WEIGHTS, "z": WEIGHTS}, "slots: expected mu, nu, got mu, nu, z"),
        (
            {"mu": WEIGHTS, "nu": jnp.ones(11)},
            r"slots\['nu'\]: expected a vector \[12\] or a tree like the weights, got",
        ),
        ({"mu": WEIGHTS["body"], "nu": WEIGHTS}, r"slots\['mu'\]: expected a vector \[12\] or a tree like"),
    ],
)
def test_slots_that_do_not_fit_are_refused(slots, message):
    with pytest.raises(ValueError, match=message):
        with_slots(stepped("adam"), WEIGHTS, slots)
