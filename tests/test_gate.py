import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.forecasting.gate import choose, line_search


def test_the_best_finite_candidate_is_taken():
    candidates = jnp.array([[3.0, 0.0], [jnp.nan, 0.0], [1.0, 1.0], [0.0, 2.0]])
    chosen, index, forwards = choose(lambda w: jnp.sum(w**2), candidates)
    assert int(index) == 2
    assert forwards == 4
    np.testing.assert_array_equal(chosen, [1.0, 1.0])


def test_a_loss_that_is_not_finite_is_never_least():
    _, index, _ = choose(lambda w: jnp.where(w[0] > 0, -jnp.inf, w[1]), jnp.array([[1.0, 0.0], [0.0, 5.0]]))
    assert int(index) == 1


def test_candidates_on_the_way():
    found = line_search(jnp.array([1.0, 1.0]), jnp.array([3.0, 5.0]), (0.0, 0.5, 1.0, 1.25))
    np.testing.assert_allclose(found, [[1.0, 1.0], [2.0, 3.0], [3.0, 5.0], [3.5, 6.0]])


@pytest.mark.usefixtures("unchecked")
def test_what_there_is_no_choice_among():
    """(wrong before 0.2)"""
    with pytest.raises(ValueError, match=r"candidates: expected at least one, .* got shape \(0, 2\)"):
        choose(jnp.sum, jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"loss: expected a scalar of weights \[dim\], got shape \(2,\)"):
        choose(lambda w: w, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="fractions: expected at least one"):
        line_search(jnp.zeros(2), jnp.ones(2), ())
