"""The learned field on coordinates: a whole run and a sample of its weights are the same to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import jittered, small_runs

from gfm_jax.forecasting import FieldKind, Move, horizon_at, init_field, move, observe, prefix_of
from gfm_jax.forecasting.names import stacked

WIDTHS = (16, 8)


@pytest.fixture
def step():
    """A move of a whole run, from a displacement that is not zero."""
    run = jax.tree.map(lambda leaf: leaf[0], small_runs()._replace(layout=None))._replace(layout=small_runs().layout)
    features, now = stacked(observe(prefix_of(run, 10))), horizon_at(run, 10)
    x_s = jnp.sin(jnp.arange(features.scale.shape[0], dtype=jnp.float32))
    return Move(features, now, horizon_at(run, 14), horizon_at(run, -1), x_s)


def of_every_weight(step):
    """The same move, its features written out for every weight, as a sample of coordinates has them."""
    num = step.x_s.shape[0]
    spread = lambda leaf: jnp.broadcast_to(leaf, (num, *jnp.shape(leaf)))
    features = step.features
    features = features._replace(tensor=features.tensor[features.segment], run=spread(features.run))
    return Move(features, *(jax.tree.map(spread, moment) for moment in step[1:4]), step.x_s)


def a_field(head, step):
    """Parameters that are not zero anywhere."""
    field = init_field(jax.random.key(0), FieldKind(head), WIDTHS, of_every_weight(step))
    return field._replace(network=jittered(field.network, 0.1))


@pytest.mark.parametrize("head", ["coordinate", "tensor"])
def test_a_run_moves_as_its_weights_do(head, step):
    field = a_field(head, step)
    whole, single = (move(field, s) for s in (step, of_every_weight(step)))
    assert np.abs(whole[0]).max() > 0.1
    np.testing.assert_allclose(whole[0], single[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole[1], single[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["coordinate", "tensor"])
def test_directions_that_are_left_out_are_as_zero(head, step):
    field, directions = a_field(head, step), step.features.directions
    out = ("slope", "average", "descent")
    left_out = {name: array for name, array in directions.items() if name not in out}
    zero, other = ({name: f(directions[name]) for name in out} for f in (jnp.zeros_like, lambda array: array + 1))
    moves = [
        move(field, step._replace(features=step.features._replace(directions=d)))[0]
        for d in (left_out, directions | zero, directions | other)
    ]
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-5, atol=1e-6)
    assert np.abs(moves[0] - moves[2]).max() > 0.01


def test_only_a_coordinate_head_tells_weights_of_a_tensor_apart(step):
    for head, apart in (("coordinate", True), ("tensor", False)):
        field = a_field(head, step)
        _, log_error = move(field, step)
        spread = [np.ptp(log_error[np.asarray(step.features.segment) == k]) for k in range(4)]
        assert (max(spread) > 1e-3) == apart


@pytest.mark.parametrize("head", ["coordinate", "tensor"])
@pytest.mark.usefixtures("x64")
def test_parameters_are_of_one_precision_whatever_the_default(head, step):
    assert {leaf.dtype for leaf in jax.tree.leaves(a_field(head, step).network)} == {jnp.dtype("float32")}
