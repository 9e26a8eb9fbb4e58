"""Whether samples are copies of what a model was fitted to."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from gfm_jax.checks import as_points, check_count, check_finite, is_traced

__all__ = ["Audited", "audit", "nearest", "nearest_distance"]

COPY = 0.5  # of the distance to the second nearest: a sample that is closer to one network alone is called its copy


def nearest_distance(
    samples: Shaped[Array | np.ndarray, "num dim"], data: Shaped[Array | np.ndarray, "others dim"], chunk: int = 256
) -> Float[Array, " num"]:
    """Euclidean distance from each sample to the nearest point of a data set, as `nearest` finds it.

    >>> nearest_distance(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0], [30.0, 0.0]])).round().tolist()
    [5.0]
    """
    return nearest(samples, data, 1, chunk=chunk)[0][:, 0]


def nearest(
    samples: Shaped[Array | np.ndarray, "num dim"],
    data: Shaped[Array | np.ndarray, "others dim"],
    count: int = 2,
    *,
    chunk: int = 256,
) -> tuple[Float[Array, "num count"], Int[Array, "num count"]]:
    """Euclidean distances from each sample to the nearest points of a data set, in rising order, and which these are.

    By differences, since the expanded square loses in float32 what tells a copy from a near copy.

    Args:
      samples, data: points, of any real dtype; computed with in float32 or better.
      count: how many, at least 1 and at most as many as there are data.
      chunk: samples at a time.

    Returns:
      Distances and indices, each [num, count].

    Raises:
      ValueError: for points of different dimensions or not finite, or fewer data than are asked for.

    >>> distance, index = nearest(jnp.array([[1.0]]), jnp.array([[9.0], [0.0], [3.0]]))
    >>> distance.round().tolist(), index.tolist()
    ([[1.0, 2.0]], [[1, 2]])
    """
    samples, data = as_points("samples", samples), as_points("data", data)
    count, chunk = check_count("count", count), check_count("chunk", chunk)
    if samples.shape[1] != data.shape[1]:
        raise ValueError(f"samples, data: expected points of one dimension, got {samples.shape} and {data.shape}")
    if count > len(data):
        raise ValueError(f"data: expected at least {count} points, got {len(data)}")
    check_finite("samples", samples)
    check_finite("data", data)
    return _nearest(count, chunk, samples, data)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nearest(count, chunk, samples, data):
    candidates = max(8, 2 * count)
    centre = data.mean(0)
    largest = jnp.maximum(data.max(0) - centre, centre - data.min(0)).max()
    scale = jnp.where(largest > 0, largest, 1)
    centred = (data - centre[None]) / scale
    half_squares = jnp.sum(centred**2, 1) / 2

    def one(sample):
        # |data - sample|^2 / 2 but for |sample|^2 / 2, about the data's mean and in units of their largest deviation
        rough = half_squares - jnp.matmul(centred, (sample - centre) / scale, precision=jax.lax.Precision.HIGHEST)
        _, near = jax.lax.top_k(-rough, min(candidates, len(data)))
        distance = scale * optax.safe_norm((data[near] - sample[None]) / scale, 0.0, axis=1)
        order = jnp.argsort(distance)[:count]
        return distance[order], near[order]

    return jax.lax.map(one, samples, batch_size=min(chunk, len(samples)))


class Audited(NamedTuple):
    """What an audit found.

    Attributes:
      accuracy: by what made the weights, the score of each of its networks.
      novelty: of the samples, each beside "held_out": what the same measure says of networks that were held out, after a round
        trip through the same codec, where there is one.
      copies: of each sample, whether it is a copy: nearer than half as far to one training network than to any other.
    """

    accuracy: dict[str, Float[Array, " num"]]
    novelty: dict[str, dict[str, Float[Array, " num"]]]
    copies: Bool[Array, " num"]

    @property
    def verdict(self) -> str:
        """ "copies" where most samples are, else "new"."""
        return "copies" if float(self.copies.mean()) > 0.5 else "new"


@functools.partial(jax.jit, static_argnums=0)
def _outputs(apply, weights):
    return jax.lax.map(apply, weights, batch_size=min(64, len(weights)))


@functools.partial(jax.jit, static_argnums=0)
def _scores(score, outputs, tasks):
    return jax.vmap(score, (0, None if tasks is None else 0))(outputs, tasks)


@functools.partial(jax.jit, static_argnums=0)
def _each(function, points):
    return jax.vmap(function)(points)


@jax.jit
def _pairs_apart(points):
    """The distance of each point to another one, drawn once: its neighbour on a ring."""
    return jnp.linalg.norm(points - jnp.roll(points, 1, axis=0), axis=1)


def audit(
    samples: Shaped[Array | np.ndarray, "num dim"],
    train: Shaped[Array | np.ndarray, "zoo dim"],
    held_out: Shaped[Array | np.ndarray, "held dim"],
    apply: Callable[[Array], Array],
    score: Callable[[Array, PyTree], Array],
    *,
    others: dict[str, Shaped[Array | np.ndarray, "_ dim"]],
    tasks: dict[str, PyTree] | None = None,
    round_trip: Callable[[Array], Array] = lambda w: w,
    canonical: Callable[[Array], Array] = lambda w: w,
) -> Audited:
    r"""Everything that has to stand beside the accuracy of generated networks before it means anything.

    Accuracy: of the samples, of the networks held out ("trained"), of these after a round trip through the codec, which is the
    codec's ceiling, and of `others`, such as the baselines of `weights.baselines`.

    Novelty, each in the canonical form and beside the same of the held-out networks through the codec:

    - `nearest`: distance to the nearest training network, over the median leave-one-out distance of the zoo;
    - `ratio`: nearest over second nearest: near 1 for a fresh network, near 0 for a copy;
    - `dispersion`: distance between samples, over that between training networks;
    - `disagreement`: the fraction of predictions that differ from the nearest training network's;
    - `gain`: what averaging its outputs with the nearest's adds to the mean score of the two: a copy gains nothing.

    Args:
      samples: weights that were generated.
      train: those that the generator was fitted to, at least 3.
      held_out: of runs that it never saw.
      apply: `(w) -> outputs [inputs, ways]`, on inputs that nothing was fitted to.
      score: `(outputs, task) -> scalar`, such as the accuracy.
      others: by name, weights that stand beside the samples.
      tasks: by name ("samples", "train", "held_out" and the names of `others`), the task of each network, led by its number;
        None where the score needs none.
      round_trip: of one network through the codec.
      canonical: of one network to its canonical form: copies in another order of their units are copies.

    Returns:
      Every row; none of them is random but for what was given.

    Raises:
      ValueError: for too few networks, networks of different sizes or not finite, a zoo of copies, or tasks that are missing or
        of another number.

    >>> train, held_out = jax.random.normal(jax.random.key(0), (2, 6, 4))
    >>> apply, score = lambda w: w.reshape(2, 2), lambda outputs, task: (outputs.argmax(-1) == 0).mean()
    >>> found = audit(train, train, held_out, apply, score, others={})  # samples that are training networks
    >>> found.verdict, float(found.copies.mean())
    ('copies', 1.0)
    """
    if taken := {"samples", "train", "held_out", "trained", "round trip of held-out networks"} & set(others):
        raise ValueError(f"others: expected names of their own, got {', '.join(sorted(taken))}")
    named = {"samples": samples, "train": train, "held_out": held_out, **others}
    named = {name: as_points(name, weights) for name, weights in named.items()}
    samples, train, held_out = named["samples"], named["train"], named["held_out"]
    if len(train) < 3:
        raise ValueError(f"train: expected at least 3 networks, got {len(train)}")
    for name, weights in named.items():
        check_finite(name, weights)
        if weights.shape[1] != train.shape[1]:
            raise ValueError(f"{name}: expected networks of {train.shape[1]} weights, got shape {weights.shape}")
    tasks = dict.fromkeys(named) if tasks is None else tasks
    if missing := set(named) - set(tasks):
        raise ValueError(f"tasks: expected those of {', '.join(sorted(missing))} too")
    for name, weights in named.items():
        wrong = {leaf.shape[:1] for leaf in jax.tree.leaves(tasks[name])} - {weights.shape[:1]}
        if wrong:
            raise ValueError(
                f"tasks: expected {len(weights)} of {name}, one a network, got leading axes {sorted(wrong)}"
            )
    outputs, scores = functools.partial(_outputs, apply), functools.partial(_scores, score)
    in_order, back = functools.partial(_each, canonical), _each(round_trip, held_out)

    accuracy = {"samples": scores(outputs(samples), tasks["samples"])}
    accuracy["trained"] = scores(outputs(held_out), tasks["held_out"])
    accuracy["round trip of held-out networks"] = scores(outputs(back), tasks["held_out"])
    accuracy |= {name: scores(outputs(named[name]), tasks[name]) for name in others}

    reference = in_order(train)
    own, _ = nearest(reference, reference, 2)  # the nearest of a training network is itself
    if not is_traced(own) and not float(jnp.median(own[:, 1])) > 0:
        raise ValueError("train: expected networks that differ, got copies of one another for half of them or more")
    apart = _pairs_apart(reference).mean()
    of_train = outputs(train)

    def novelty(weights, task):
        placed = in_order(weights)
        distance, near = nearest(placed, reference, 2)
        mine, theirs = outputs(weights), of_train[near[:, 0]]
        together = scores((mine + theirs) / 2, task)
        return {
            "nearest": distance[:, 0] / jnp.median(own[:, 1]),
            "ratio": distance[:, 0] / jnp.maximum(distance[:, 1], jnp.finfo(distance.dtype).tiny),
            "dispersion": _pairs_apart(placed) / apart,
            "disagreement": jnp.mean(mine.argmax(-1) != theirs.argmax(-1), axis=-1),
            "gain": together - (scores(mine, task) + scores(theirs, task)) / 2,
        }

    found = {"samples": novelty(samples, tasks["samples"]), "held_out": novelty(back, tasks["held_out"])}
    by_measure = {measure: {name: found[name][measure] for name in found} for measure in found["samples"]}
    return Audited(accuracy, by_measure, by_measure["ratio"]["samples"] < COPY)
