"""The audit of generated networks: what is planted is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfm_jax.fitting import fit
from gfm_jax.networks import MLP
from gfm_jax.pytrees import ravel, unravel
from gfm_jax.weights import act, audit, canonical, find_symmetry, nearest, random_element

NETWORK, NUM = MLP((6, 3)), 60
KEYS = jax.random.split(jax.random.key(0), 8)
INPUTS = jax.random.normal(KEYS[0], (50, 4))
LIKE = NETWORK.init(KEYS[1], INPUTS)
CENTRE = ravel(LIKE) + jax.random.normal(KEYS[2], ravel(LIKE).shape)
LABELS = NETWORK.apply(unravel(LIKE, CENTRE), INPUTS).argmax(-1)
ZOO = CENTRE + 0.3 * jax.random.normal(KEYS[3], (3 * NUM, len(CENTRE)))
TRAIN, HELD_OUT, FRESH = ZOO[:NUM], ZOO[NUM : 2 * NUM], ZOO[2 * NUM :]
SYMMETRY = find_symmetry(NETWORK.apply, LIKE, INPUTS)


def apply(w):
    return NETWORK.apply(unravel(LIKE, w), INPUTS)


def accuracy(outputs, task):
    return jnp.mean(outputs.argmax(-1) == LABELS)


def audited(samples, **options):
    return audit(samples, TRAIN, HELD_OUT, apply, accuracy, others={"mean": TRAIN.mean(0)[None]}, **options)


def test_fresh_networks_are_new():
    found = audited(FRESH)
    assert found.verdict == "new"
    assert not found.copies.any()
    for measure in found.novelty.values():
        gap = measure["samples"].mean() - measure["held_out"].mean()
        error = jnp.hypot(measure["samples"].std(), measure["held_out"].std()) / NUM**0.5
        assert abs(gap) < 4 * error
    assert found.accuracy["samples"].mean() == pytest.approx(float(found.accuracy["trained"].mean()), abs=0.05)
    assert found.accuracy["mean"].mean() > found.accuracy["trained"].mean()  # nearer to the centre
    np.testing.assert_array_equal(found.accuracy["trained"], found.accuracy["round trip of held-out networks"])


def test_copies_are_copies_however_well_they_score():
    copies = TRAIN + 0.01 * jax.random.normal(KEYS[4], TRAIN.shape)
    found = audited(copies)
    assert found.verdict == "copies"
    assert found.copies.all()
    assert found.novelty["nearest"]["samples"].max() < 0.1
    assert found.novelty["disagreement"]["samples"].mean() < 0.03
    assert abs(found.novelty["gain"]["samples"]).max() < 0.03
    assert audited(TRAIN).copies.all()


def test_copies_in_disguise_are_copies():
    """In another order of their units, and rescaled."""
    codec = canonical(SYMMETRY)
    reference, _ = fit(KEYS[5], codec, TRAIN)
    element = lambda key, w: act(SYMMETRY, random_element(key, SYMMETRY), w)
    disguised = jax.vmap(element)(jax.random.split(KEYS[6], NUM), TRAIN)
    assert audited(disguised).verdict == "new"
    assert audited(disguised, canonical=lambda w: codec.encode(reference, w)).verdict == "copies"


def test_noise_is_far_and_wrong():
    found = audited(CENTRE + 3 * jax.random.normal(KEYS[7], TRAIN.shape))
    assert found.verdict == "new"
    assert found.novelty["nearest"]["samples"].min() > 3
    assert found.novelty["dispersion"]["samples"].mean() > 3
    assert found.novelty["disagreement"]["samples"].mean() > 3 * found.novelty["disagreement"]["held_out"].mean()
    assert found.accuracy["samples"].mean() < found.accuracy["trained"].mean() - 0.2


def test_one_network_many_times_is_not_dispersed():
    found = audited(jnp.broadcast_to(TRAIN.mean(0), TRAIN.shape))
    assert found.novelty["dispersion"]["samples"].max() == 0


def test_every_network_is_scored_on_its_own_task():
    shifts = {"samples": jnp.arange(NUM) % 3, "train": jnp.zeros(NUM, int), "held_out": jnp.zeros(NUM, int)}
    shifts["mean"] = jnp.ones(1, int)
    shifted = lambda outputs, task: jnp.mean(outputs.argmax(-1) == (LABELS + task) % 3)
    found = audit(FRESH, TRAIN, HELD_OUT, apply, shifted, others={"mean": TRAIN.mean(0)[None]}, tasks=shifts)
    own = found.accuracy["samples"]
    assert own[::3].mean() > own[1::3].mean() + 0.3
    del shifts["mean"]
    with pytest.raises(ValueError, match="tasks: expected those of mean too"):
        audit(FRESH, TRAIN, HELD_OUT, apply, shifted, others={"mean": TRAIN.mean(0)[None]}, tasks=shifts)


def test_nearest_are_found_in_order():
    distance, index = nearest(FRESH, TRAIN, 3)
    every = np.linalg.norm(np.asarray(FRESH)[:, None] - np.asarray(TRAIN)[None], axis=-1)
    np.testing.assert_array_equal(index, np.argsort(every, axis=1)[:, :3])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :3], rtol=1e-5)
    with pytest.raises(ValueError, match="data: expected at least 3 points, got 2"):
        nearest(FRESH, TRAIN[:2], 3)
    with pytest.raises(ValueError, match="train: expected at least 3 networks, got 2"):
        audit(FRESH, TRAIN[:2], HELD_OUT, apply, accuracy, others={})


def test_held_out_networks_go_through_the_codec():
    """Novelty is compared at equal terms: both sides have passed the codec."""
    shrink = lambda w: CENTRE + 0.5 * (w - CENTRE)
    found = audited(FRESH, round_trip=shrink)
    back = CENTRE + 0.5 * (HELD_OUT - CENTRE)
    distance, _ = nearest(back, TRAIN, 2)
    own, _ = nearest(TRAIN, TRAIN, 2)
    expected = distance[:, 0] / np.median(own[:, 1])
    np.testing.assert_allclose(found.novelty["nearest"]["held_out"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        found.novelty["nearest"]["samples"], audited(FRESH).novelty["nearest"]["samples"], rtol=1e-5
    )


@pytest.mark.usefixtures("unchecked")
def test_audits_refuse():
    """(wrong before 0.2)"""
    with pytest.raises(ValueError, match="train: expected networks that differ"):
        audit(FRESH, jnp.tile(TRAIN[:1], (5, 1)), HELD_OUT, apply, accuracy, others={})
    with pytest.raises(ValueError, match="samples: 1 of 60 points are not finite"):
        audited(FRESH.at[0, 0].set(jnp.inf))
    with pytest.raises(ValueError, match=r"held_out: expected networks of \d+ weights"):
        audit(FRESH, TRAIN, HELD_OUT[:, :3], apply, accuracy, others={})
    with pytest.raises(ValueError, match="others: expected names of their own, got train"):
        audit(FRESH, TRAIN, HELD_OUT, apply, accuracy, others={"train": TRAIN})
    tasks = {"samples": jnp.zeros(3), "train": jnp.zeros(NUM), "held_out": jnp.zeros(NUM)}
    with pytest.raises(ValueError, match="tasks: expected 60 of samples, one a network"):
        audit(FRESH, TRAIN, HELD_OUT, apply, accuracy, others={}, tasks=tasks)
