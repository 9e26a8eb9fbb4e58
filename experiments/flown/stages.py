"""The stages of the experiment: a zoo, its symmetries, codes, networks for tasks, the audit, and what stands beside each."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.flown.audited import Exam, audit_copies, audit_samples, make_exam
from experiments.flown.codecs import codecs, judge_codec, round_trip
from experiments.flown.config import Config, check
from experiments.flown.contexts import draw_lessons, see
from experiments.flown.copying import NUM_COPIED, copying
from experiments.flown.domains import DOMAINS
from experiments.flown.families import FAMILIES
from experiments.flown.figures import figures_of
from experiments.flown.from_examples import from_examples, make_kit
from experiments.flown.held_out import episodes_of, fit_conditional, judge_tasks
from experiments.flown.judge import accuracy, at_once
from experiments.flown.learn import Cast, Codes, codec, make_cast
from experiments.flown.tuned import tuned_flows
from experiments.flown.zoo import Zoo, record_zoo, retrained
from experiments.run_folder import RunFolder
from gfm_jax.base import Codec, Generator
from gfm_jax.fitting import fit
from gfm_jax.weights import canonical, pca

__all__ = ["generate_networks"]


class Setting(NamedTuple):
    """What all fits share.

    Attributes:
      zoo, raw: in canonical form, and as it was trained.
      encoder, context, cast, exam: codes, what is seen of a support set, everyone, and what the audit asks.
      others: more codecs, by name.
      copier: the recipe that copies.
    """

    config: Config
    folder: RunFolder
    zoo: Zoo
    raw: Zoo
    encoder: Codec
    context: Callable
    cast: Cast
    exam: Exam
    others: dict[str, Codec]
    copier: Generator


def generate_networks(config, out: pathlib.Path, command: str) -> None:
    """Runs every stage, and leaves the run folder."""
    check(config)
    folder = RunFolder(out, config)
    key_canonical, key_fits, key_families = jax.random.split(jax.random.key(config.seed + 1), 3)
    arrays, fits = {}, range(config.num_fits)
    if set(config.tables) - {"sinusoid"}:
        begin = time.perf_counter()
        raw = record_zoo(config)
        trained = {split: accuracy(raw.apply, *getattr(raw, split), raw.images["test"]) for split in SPLITS}
        for split, found in trained.items():
            folder.add("zoo", split, accuracy=found.mean(), deviation=found.std(), networks=len(found))
        folder.add("zoo", "recorded and judged", seconds=time.perf_counter() - begin)
        zoo, form = _put_in_order(folder, key_canonical, raw)
        encoder, num = codec(config, zoo), min(NUM_COPIED, config.num_train)
        everyone = (
            make_cast(config, zoo, encoder),
            make_exam(zoo, form),
            codecs(config, zoo),
            copying(num, config.copying_steps),
        )
        setting = Setting(config, folder, zoo, raw, encoder, see(config, zoo), *everyone)
        arrays |= _gather(folder, [_fit(setting, k, jax.random.fold_in(key_fits, k)) for k in fits])
        arrays["trained"] = np.asarray(trained["held_out"])
        folder.add("codec", "trained networks", **{"round trip": trained["unseen"].mean()})
    if "sinusoid" in config.tables:
        kits = {name: make_kit(config, family) for name, family in FAMILIES.items()}
        told = [_families(config, folder, kits, k, jax.random.fold_in(key_families, k)) for k in fits]
        arrays |= _gather(folder, told)
    folder.finish("Networks for a task, from a few of its examples", command, arrays, figures_of(arrays))


SPLITS = ("train", "unseen", "validation", "held_out")


def _gather(folder, seeds):
    """Enters the numbers of all seeds, (rows, arrays) each; their arrays, led by the seeds."""
    for table, row in seeds[0][0]:
        metrics = {
            metric: [told[table, row].get(metric, np.nan) for told, _ in seeds] for metric in seeds[0][0][table, row]
        }
        folder.add(table, row, **metrics)
    return {name: np.stack([arrays[name] for _, arrays in seeds]) for name in seeds[0][1]}


def _put_in_order(folder, key, zoo):
    """The zoo in canonical form; what that changes, and what it is good for."""
    encoder = canonical(zoo.symmetry)
    reference, _ = fit(key, encoder, zoo.train.weights)
    form = functools.partial(encoder.encode, reference)
    put = jax.jit(jax.vmap(form))
    in_order = zoo._replace(**{
        split: getattr(zoo, split)._replace(weights=put(getattr(zoo, split).weights)) for split in SPLITS
    })  # fmt: skip
    images = zoo.images["test"].inputs
    outputs = jax.jit(lambda ws: jax.lax.map(lambda w: zoo.apply(w, images), ws, batch_size=at_once(images)))
    before, after = (outputs(networks.weights[:64]) for networks in (zoo.train, in_order.train))
    change = jnp.abs(after - before).max() / jnp.abs(before).max()
    folder.add("symmetry", "canonical form", change_of_outputs=change)
    for name, networks in {"as they were trained": zoo, "canonical form": in_order}.items():
        for num_codes in (32, 128):
            if num_codes < min(networks.train.weights.shape):
                encoder = pca(num_codes)
                found = round_trip(encoder, fit(key, encoder, networks.train.weights)[0], networks)
                folder.add("symmetry", name, **{f"round trip, {num_codes} components": found.mean()})
    return in_order, form


# --- one seed of everything that is learned: its numbers, by table and row, and the arrays of its figures -------------


def _fit(setting: Setting, number, key):
    config, zoo = setting.config, setting.zoo
    names = ("encoder", "lessons", "tasks", "audit", "codec")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    place = setting.folder.path / "checkpoints" / str(number)
    name = f"fit {number + 1} of {config.num_fits}"
    long = {"folder": place / "encoder", "progress": f"{name}, encoder"}
    params, _ = fit(keys["encoder"], setting.encoder, zoo.train.weights, **long)
    codes = Codes(setting.encoder, params, draw_lessons(keys["lessons"], config, zoo, setting.context))
    own = {"codes": float(config.num_codes), "round trip": float(round_trip(setting.encoder, params, zoo).mean())}
    rows, arrays = {("codec", f"the experiment's own, {config.num_codes}"): own}, {}
    if set(config.tables) & {"held_out_tasks", "out_of_distribution", "fine_tuning"}:
        found, curves = _on_tasks(setting, keys["tasks"], codes, place, name)
        rows, arrays = rows | found, arrays | curves
    if "unconditional" in config.tables:
        key_audit, key_copying = jax.random.split(keys["audit"])
        found, drawn = audit_samples(key_audit, config, zoo, setting.cast, codes, setting.exam, place, name)
        rows |= found | audit_copies(key_copying, config, zoo, setting.exam, setting.copier, place, name)
        arrays |= drawn
    if "codec" in config.tables:
        rows |= _on_codecs(setting, keys["codec"], codes.lessons, keys["lessons"], place, name)
    return rows, arrays


def _on_tasks(setting: Setting, key, codes: Codes, place, name):
    """Networks for contexts: on held-out tasks, elsewhere, and after the flow itself was tuned."""
    config, zoo, context = setting.config, setting.zoo, setting.context
    key_fit, key_support, key_draw, key_elsewhere, key_tuning = jax.random.split(key, 5)
    fitted = fit_conditional(key_fit, zoo, setting.cast, codes, place, name)
    judge = functools.partial(judge_tasks, key_draw, config, codes=codes, fitted=fitted)
    draw = lambda there, shots: episodes_of(jax.random.fold_in(key_support, shots), there, context, shots)
    rows, arrays, most = {}, {}, config.shots[-1]
    if "held_out_tasks" in config.tables:
        for shots in config.shots:
            found, curves = judge(zoo=zoo, episodes=draw(zoo, shots))
            rows |= {(f"held_out_tasks/{shots}", row): metrics for row, metrics in found.items()}
            arrays |= {f"curve/{shots}/{row}": curve for row, curve in curves.items()}
    keys_elsewhere = dict(zip(DOMAINS, jax.random.split(key_elsewhere, len(DOMAINS)), strict=True))

    @functools.cache
    def elsewhere(domain):
        return retrained(keys_elsewhere[domain], config, zoo, DOMAINS[domain](zoo.images, zoo.shape, config.seed))

    if "out_of_distribution" in config.tables:
        for domain in DOMAINS:
            found, _ = judge(zoo=elsewhere(domain), episodes=draw(elsewhere(domain), most))
            rows |= {(f"out_of_distribution/{domain}", row): metrics for row, metrics in found.items()}
    if "fine_tuning" in config.tables:
        for where, there, shots in (
            (f"{config.shots[0]} of a class", zoo, config.shots[0]),
            ("rotated", elsewhere("rotated"), most),
        ):
            flow = fitted.models["flow"], fitted.params["flow"]
            found = tuned_flows(key_tuning, config, there, codes, *flow, draw(there, shots))
            rows |= {(f"fine_tuning/{where}", row): metrics for row, metrics in found.items()}
    return rows, arrays


def _on_codecs(setting: Setting, key, lessons, key_lessons, place, name):
    """Codecs side by side, and one of them on networks that were not brought to canonical form."""
    config, rows = setting.config, {}
    judge = functools.partial(judge_codec, key, config, exam=setting.exam)
    for row, other in setting.others.items():
        options = {"place": place / "codecs" / row, "name": f"{name}, {row}"}
        rows["codec", row] = judge(zoo=setting.zoo, lessons=lessons, encoder=other, **options)
    row = next(row for row in setting.others if row.startswith("autoencoder"))
    unordered = draw_lessons(key_lessons, config, setting.raw, setting.context)
    options = {"place": place / "codecs" / "as trained", "name": f"{name}, {row}, as trained"}
    rows["symmetry", f"canonical form, {row} codes"] = rows["codec", row]
    rows["symmetry", f"as they were trained, {row} codes"] = judge(
        zoo=setting.raw, lessons=unordered, encoder=setting.others[row], **options
    )
    return rows


def _families(config, folder, kits, number, key):
    """Sinusoids and moons."""
    place, rows, arrays = folder.path / "checkpoints" / str(number), {}, {}
    for own, (family, kit) in zip(jax.random.split(key, len(kits)), kits.items(), strict=True):
        found = from_examples(own, config, kit, place / family, f"fit {number + 1} of {config.num_fits}, {family}")
        rows |= {(family, row): metrics for row, metrics in found.rows.items()}
        arrays |= {f"{family}/{what}": array for what, array in found.arrays.items()}
    return rows, arrays
