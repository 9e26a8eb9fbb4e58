"""The stages of the experiment: a zoo, its symmetries, codes, networks for held-out tasks, and the audit."""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.flown.audited import audit_samples, make_exam
from experiments.flown.config import check
from experiments.flown.contexts import draw_lessons, see
from experiments.flown.figures import FIGURES
from experiments.flown.held_out import on_held_out_tasks
from experiments.flown.judge import accuracy
from experiments.flown.learn import Codes, codec
from experiments.flown.zoo import record_zoo
from experiments.run_folder import RunFolder
from gfm_jax.encoders import canonical, pca

__all__ = ["generate_networks"]


def generate_networks(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage, and leaves the run folder."""
    check(config)
    folder = RunFolder(out, config)
    key_canonical, key_fits = jax.random.split(jax.random.key(config.seed + 1))
    begin = time.perf_counter()
    zoo = record_zoo(config)
    trained = {split: accuracy(zoo.apply, *getattr(zoo, split), zoo.images["test"]) for split in SPLITS}
    for split, found in trained.items():
        folder.add("zoo", split, accuracy=found.mean(), deviation=found.std(), networks=len(found))
    folder.add("zoo", "recorded and judged", seconds=time.perf_counter() - begin)
    zoo, form = _put_in_order(folder, key_canonical, zoo)
    encoder, context, exam = codec(config, zoo), see(config, zoo), make_exam(zoo, form)
    seeds = [
        _fit(config, folder, k, jax.random.fold_in(key_fits, k), zoo, exam, encoder, context)
        for k in range(config.num_fits)
    ]
    for table, row in seeds[0][0]:
        metrics = {metric: [told[table, row][metric] for told, _ in seeds] for metric in seeds[0][0][table, row]}
        folder.add(table, row, **metrics)
    folder.add("codec", "trained networks", round_trip=trained["unseen"].mean())
    arrays = {name: np.stack([arrays[name] for _, arrays in seeds]) for name in seeds[0][1]}
    arrays["trained"] = np.asarray(trained["held_out"])
    folder.finish("Networks for a task, from a few of its examples", command, arrays, FIGURES)


SPLITS = ("train", "unseen", "validation", "held_out")


def _put_in_order(folder, key, zoo):
    """The zoo in canonical form; what that changes, and what it is good for."""
    encoder = canonical(zoo.symmetry)
    reference = encoder.fit(key, zoo.train.weights)
    form = functools.partial(encoder.encode, reference)
    put = jax.jit(jax.vmap(form))
    in_order = zoo._replace(**{
        split: getattr(zoo, split)._replace(weights=put(getattr(zoo, split).weights)) for split in SPLITS
    })  # fmt: skip
    outputs = jax.jit(jax.vmap(lambda w: zoo.apply(w, zoo.images["test"].inputs)))
    before, after = (outputs(networks.weights[:64]) for networks in (zoo.train, in_order.train))
    change = jnp.abs(after - before).max() / jnp.abs(before).max()
    folder.add("symmetry", "canonical form", change_of_outputs=change)
    for name, networks in {"as they were trained": zoo, "canonical form": in_order}.items():
        for num_codes in (32, 128):
            if num_codes < min(networks.train.weights.shape):
                found = _round_trip(pca(num_codes), key, networks)
                folder.add("symmetry", name, **{f"round trip, {num_codes} components": found.mean()})
    return in_order, form


def _round_trip(encoder, key, zoo, params=None):
    """The accuracy of runs that were not learned from, after a round trip."""
    params = encoder.fit(key, zoo.train.weights) if params is None else params
    back = jax.jit(jax.vmap(lambda w: encoder.decode(params, encoder.encode(params, w))))
    return accuracy(zoo.apply, back(zoo.unseen.weights), zoo.unseen.classes, zoo.images["test"])


def _fit(config, folder, number, key, zoo, exam, encoder, context):
    """One seed of everything that is learned: its numbers, by table and row."""
    key_encoder, key_lessons, key_held_out, key_audit = jax.random.split(key, 4)
    place, name = folder.path / "checkpoints" / str(number), f"fit {number + 1} of {config.num_fits}"
    params = encoder.fit(key_encoder, zoo.train.weights, folder=place / "encoder", progress=f"{name}, encoder")
    ceiling = _round_trip(encoder, key, zoo, params)
    lessons = draw_lessons(key_lessons, config, zoo, context)
    codes = Codes(encoder, params, lessons)
    found = on_held_out_tasks(key_held_out, config, zoo, codes, context, place, name)
    audited, arrays = audit_samples(key_audit, config, zoo, codes, exam, place, name)
    return {
        ("codec", "autoencoder"): {"round_trip": float(ceiling.mean())}
    } | found.rows | audited, found.curves | arrays
