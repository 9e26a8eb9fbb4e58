"""Networks from a few examples of a law, with a context that is learned; beside meta-learning and training from scratch."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from experiments.flown.compute import steps_of_equal_compute
from experiments.flown.families import Family
from experiments.flown.judge import train
from experiments.flown.meta import at_best_rate
from gfm_jax.base import Codec, Generator, Network, Task
from gfm_jax.fitting import fit, with_defaults
from gfm_jax.flows import flow_matching
from gfm_jax.minimize import minimize
from gfm_jax.networks import MLP, DeepSet, TimeMLP, WithContext
from gfm_jax.pytrees import ravel, unravel
from gfm_jax.runs import record, streamed
from gfm_jax.weights import (
    Zoo,
    autoencoder,
    baselines,
    canonical,
    chain,
    find_symmetry,
    flow_to_learn,
    nearest,
    standardized,
)
from gfm_jax.weights.meta_learning import maml, reptile

__all__ = ["FromExamples", "Kit", "from_examples", "make_kit"]

NUM_QUERY = 100
SOLVER_STEPS = 25  # of Heun's method, two velocities each


class FromExamples(NamedTuple):
    """By row its metrics; and what the decision boundaries are drawn from."""

    rows: dict[str, dict[str, float]]
    arrays: dict[str, np.ndarray]


class Reader(nn.Module):
    """From the tokens of a support set, a flat vector, to codes: a deterministic hypernetwork."""

    num_tokens: int
    num_codes: int

    @nn.compact
    def __call__(self, cond):
        tokens = cond.reshape(*cond.shape[:-1], self.num_tokens, -1)
        return MLP((256, 256, self.num_codes), nn.gelu)(DeepSet()(tokens))


class Kit(NamedTuple):
    """The functions of a family, and everyone who makes its networks. Made once, so that another fit compiles nothing.

    Attributes:
      apply, init, loss, scores: `(w, x) -> outputs`, `(key) -> w`, `(w, (x, y)) -> scalar`, `(weights, (x, y)) -> [num]`.
      like: weights, as the module has them.
      task: of a run, with its law as variety.
      encoder: of the zoo's codes.
      models, meta: by name, those that are fitted to codes and contexts, and those that learn initial weights.
    """

    family: Family
    like: PyTree
    apply: Callable
    init: Callable
    loss: Callable
    scores: Callable
    task: Task
    encoder: Codec
    models: dict[str, Generator]
    meta: dict[str, Generator]


def make_kit(config, family: Family) -> Kit:
    """Everything about a family but what is drawn and fitted."""
    like = jax.eval_shape(family.module.init, jax.random.key(0), family.inputs[:1])
    network = Network(lambda key: family.module.init(key, family.inputs[:1]), family.module.apply)
    apply = lambda w, x: family.module.apply(unravel(like, w), x)
    init = lambda key: ravel(network.init(key))
    loss = lambda w, examples: family.loss(apply(w, examples[0]), examples[1])
    scores = jax.jit(jax.vmap(lambda w, examples: family.score(apply(w, examples[0]), examples[1])))
    task = streamed(network, lambda key, law: family.draw(key, law, 64), family.loss)
    shots, steps = config.family_shots, {"num_steps": config.family_fit_steps}
    codes = {"noise": 0.03, "logits": family.score is not family.loss}
    learned = autoencoder(config.family_codes, apply, family.inputs, **codes)
    encoder = chain(with_defaults(learned, **steps), standardized(by_coordinate=True))
    field = WithContext(TimeMLP((256, 256, 256)), DeepSet(), shots)
    models = {
        "random initialisation": baselines.random(init),
        "mean": baselines.mean(),
        "hypernetwork": baselines.hypernetwork(encoder, Reader(shots, config.family_codes), **steps),
        "flow": flow_to_learn(encoder, with_defaults(flow_matching(field), **steps)),
    }
    draw = functools.partial(_episode, family, shots)
    meta = {
        name: at_best_rate(
            make,
            config.family_inner_rates,
            config.family_fit_steps,
            init,
            loss,
            draw,
            inner_steps=config.family_inner_steps,
        )
        for name, make in (("maml", maml), ("reptile", reptile))
    }
    return Kit(family, like, apply, init, loss, scores, task, encoder, models, meta)


def from_examples(key, config, kit: Kit, place, name: str) -> FromExamples:
    """Records a zoo of the family, fits everyone to it, and asks for networks of laws that nobody was trained on."""
    names = ("laws", "runs", "canonical", "encoder", "support", "fit", "draw", "scratch")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    family, shots, num_held = kit.family, config.family_shots, config.family_held
    numbers = {"train": config.family_train, "validation": num_held, "held_out": num_held}
    laws = jax.vmap(family.draw_law)(jax.random.split(keys["laws"], sum(numbers.values())))
    weights = _in_order(keys["canonical"], kit, _record(keys["runs"], config, kit, laws), config.family_train)
    stops = np.cumsum(list(numbers.values()))[:-1]
    part = lambda tree, k: jax.tree.map(lambda leaf: jnp.split(leaf, stops)[k], tree)
    splits = {split: part(laws, k) for k, split in enumerate(numbers)}
    zoo, _, trained = jnp.split(weights, stops)

    draw_sets = lambda number, split, num: _draw_sets(
        family, num, jax.random.fold_in(keys["support"], number), splits[split]
    )
    support = {split: draw_sets(k, split, shots) for k, split in enumerate(SPLITS)}
    query = {split: draw_sets(2 + k, split, NUM_QUERY) for k, split in enumerate(SPLITS)}
    contexts = jnp.concatenate([_tokens(draw_sets(4 + k, "train", shots)) for k in range(config.copies)])
    lessons = jnp.concatenate([zoo] * config.copies), contexts

    long = lambda row: {"folder": place / row, "progress": f"{name}, {row}"}
    params, _ = fit(keys["encoder"], kit.encoder, zoo, **long("encoder"))
    fitted = {}
    for number, (row, model) in enumerate((kit.models | kit.meta).items()):
        own = jax.random.fold_in(keys["fit"], number)
        if row in kit.meta:
            fitted[row], _ = fit(own, model, (splits["train"], splits["validation"]), **long(row))
        else:
            options = long(row) if row in ("hypernetwork", "flow") else {}
            fitted[row], _ = fit(own, model, Zoo(*lessons, codec_params=params), **options)

    judge = functools.partial(_judge, config, kit, support, query)
    accuracy = lambda weights: float(kit.scores(weights, query["held_out"]).mean())
    rows = {"trained": {"0 steps": accuracy(trained)}}
    for row, model in (kit.models | kit.meta).items():
        key_draw = lambda split: jax.random.fold_in(keys["draw"], SPLITS.index(split))
        if row == "flow":
            drawn = {split: _samples(config, kit, fitted[row], key_draw(split), support[split]) for split in SPLITS}
            made = {split: best for split, (best, _) in drawn.items()}
            every = jax.tree.map(lambda leaf: jnp.repeat(leaf, config.num_samples, axis=0), query["held_out"])
            rows["flow, mean of its samples"] = {"0 steps": float(kit.scores(drawn["held_out"][1], every).mean())}
        else:
            generate = lambda split: model.generate(key_draw(split), fitted[row], num_held, _tokens(support[split]))  # noqa: B023
            made = {split: generate(split) for split in SPLITS}
        rows[row] = judge(made)
        if row == "flow":
            generated = made["held_out"]
    rows["best of the zoo on the examples"] = judge(
        {split: _best_of_zoo(kit.loss, zoo, support[split]) for split in SPLITS}
    )
    rows["from scratch, equal compute"] = _from_scratch(keys["scratch"], config, kit, fitted["flow"], support, query)
    return FromExamples(rows, _typical(kit, generated, zoo, support["held_out"], query["held_out"]))


SPLITS = ("validation", "held_out")


def _typical(kit, generated, zoo, support, query):
    """What the network of median score does with its inputs, and what its nearest network of the zoo does."""
    scores = np.asarray(kit.scores(generated, query))
    which = int(np.argsort(scores)[len(scores) // 2])
    _, near = nearest(generated[which : which + 1], zoo, 1)
    arrays = {
        "generated": kit.apply(generated[which], kit.family.inputs),
        "nearest": kit.apply(zoo[near[0, 0]], kit.family.inputs),
        "inputs": kit.family.inputs,
        "support": support[0][which],
        "targets": support[1][which],
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def _from_scratch(key, config, kit, flow, support, query):
    """Random weights after as many steps of Adam on the examples as the samples of the flow cost, at the rate that is best
    for so many steps on validation laws."""
    own = support["held_out"]
    one = jax.tree.map(lambda leaf: leaf[0], own)
    weights = kit.init(key)
    args = kit.models["flow"], flow, kit.encoder, _tokens(own)[0], kit.loss, weights, one
    equal = steps_of_equal_compute(*args, 2 * SOLVER_STEPS) * config.num_samples
    steps = min(equal, config.most_scratch_steps)

    def found(key, split, rate):
        start = jax.vmap(kit.init)(jax.random.split(key, len(own[0])))
        return float(kit.scores(train(kit.loss, steps, rate, start, support[split]), query[split]).mean())

    key_choose, key_held_out = jax.random.split(key)
    chosen = [found(key_choose, "validation", rate) for rate in config.tuning_rates]
    rate = config.tuning_rates[_best(kit.family, chosen)]
    says = {"steps of training": float(steps), "steps of equal compute": float(equal), "rate": rate}
    return {"0 steps": found(key_held_out, "held_out", rate)} | says


def _record(key, config, kit, laws):
    """The last weights of a run for each law."""
    rates = optax.cosine_decay_schedule(1e-2, config.family_steps)(jnp.arange(config.family_steps))
    keys, saves = jax.random.split(key, len(jax.tree.leaves(laws)[0])), (0, config.family_steps)
    options = {"keep": ("weights",), "variety": laws, "chunk": 256}
    return record(keys, kit.task, optax.adam, rates, saves, **options).weights[:, -1]


def _in_order(key, kit, weights, num_train):
    """In canonical form."""
    form = canonical(find_symmetry(kit.family.module.apply, kit.like, kit.family.inputs[:2]))
    reference, _ = fit(key, form, weights[:num_train])
    return jax.jit(jax.vmap(functools.partial(form.encode, reference)))(weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw_all(draw, num, key, laws):
    keys = jax.random.split(key, len(jax.tree.leaves(laws)[0]))
    return jax.vmap(lambda key, law: draw(key, law, num))(keys, laws)


def _draw_sets(family, num, key, laws):
    """Examples of each law: (inputs [laws, num, ...], targets [laws, num, ...])."""
    return _draw_all(family.draw, num, key, laws)


def _episode(family, shots, key, laws):
    """A support set and a query set of one of the laws."""
    key_law, key_support, key_query = jax.random.split(key, 3)
    index = jax.random.randint(key_law, (), 0, len(jax.tree.leaves(laws)[0]))
    law = jax.tree.map(lambda leaf: leaf[index], laws)
    return family.draw(key_support, law, shots), family.draw(key_query, law, shots)


def _tokens(examples):
    """What a context sees: inputs and targets of all examples, in one vector."""
    inputs, targets = examples
    return jnp.concatenate([inputs, targets], axis=-1).reshape(len(inputs), -1)


def _samples(config, kit, params, key, support):
    """Of several samples for each support set the one with the least loss on it; and all of them."""
    num, model = len(support[0]), kit.models["flow"]
    repeat = lambda leaf: jnp.repeat(leaf, config.num_samples, axis=0)
    contexts = repeat(_tokens(support))
    many = model.generate(key, params, num * config.num_samples, contexts, num_steps=SOLVER_STEPS)
    losses = jax.vmap(kit.loss)(many, jax.tree.map(repeat, support)).reshape(num, config.num_samples)
    return many.reshape(num, config.num_samples, -1)[jnp.arange(num), losses.argmin(1)], many


@functools.partial(jax.jit, static_argnums=0)
def _best_of_zoo(loss, zoo, support):
    """The network of the zoo with the least loss on each support set."""
    losses = jax.lax.map(lambda examples: jax.vmap(lambda w: loss(w, examples))(zoo), support)
    return zoo[losses.argmin(1)]


def _judge(config, kit, support, query, made):
    """The score at each number of steps downstream, by the optimizer that is best on validation laws."""
    last, family = config.family_tuning_steps[-1], kit.family
    candidates = [(optax.adam, rate) for rate in config.tuning_rates]
    candidates += [(optax.sgd, rate) for rate in config.family_inner_rates]
    path = lambda make, rate, split: _path(
        kit.scores, kit.loss, make, last, rate, made[split], support[split], query[split]
    )
    make, rate = candidates[_best(family, [float(path(*one, "validation")[-1]) for one in candidates])]
    curve = path(make, rate, "held_out")
    return {f"{k} steps": float(curve[k]) for k in config.family_tuning_steps} | {"rate": rate}


def _best(family, scores):
    """Whose score is best; one that diverged is worse than any other."""
    losses = np.array(scores) * (1 if family.score is family.loss else -1)
    return int(np.nan_to_num(losses, nan=np.inf, posinf=np.inf).argmin())


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _path(scores, loss, make, num_steps, rate, weights, support, query):
    """The mean score before and after every step."""
    one = lambda w, examples: minimize(lambda w: loss(w, examples), w, make(rate), num_steps, path=True)
    paths = jax.vmap(one)(weights, support)  # [num, steps + 1, dim]
    return jax.lax.map(lambda w: scores(w, query).mean(), jnp.swapaxes(paths, 0, 1))
