"""The problems of the zoo: what is trained on what, by which optimizers, with which batches, and for how long."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.pretrain.data import CHARACTERS, characters, images, markov_chain, mixture, teacher
from experiments.pretrain.networks import ConvNet, LanguageModel, Mixer, NextCharacter, ResidualMLP, ResidualNet, Tokens
from gfm_jax.base import Task
from gfm_jax.networks import CNN, MLP
from gfm_jax.runs import classification, minibatch_indices

__all__ = ["HELD_OUT", "OPTIMIZERS", "PROBLEMS", "Problem"]

MOMENTUM = functools.partial(optax.sgd, momentum=0.9)
NESTEROV = functools.partial(optax.sgd, momentum=0.9, nesterov=True)
ADAMW = functools.partial(optax.adamw, weight_decay=0.05)
OPTIMIZERS = {  # name: (function of the learning rate, range of the peaks for a network of some thousand weights)
    "sgd": (optax.sgd, (0.02, 0.6)),
    "momentum": (MOMENTUM, (0.003, 0.08)),
    "nesterov": (NESTEROV, (0.003, 0.08)),
    "adam": (optax.adam, (5e-4, 1.5e-2)),
    "adamw": (ADAMW, (5e-4, 1.5e-2)),
    "rmsprop": (optax.rmsprop, (3e-4, 4e-3)),
    "lion": (optax.lion, (1e-4, 1.5e-3)),
}


class Problem(NamedTuple):
    """Runs of one network.

    Attributes:
      make: `() -> task`, once it is asked for: the data are loaded then.
      optimizers: names of `OPTIMIZERS`.
      num_steps: of every run.
      saves: how many, and how they lie: "even", "log", "random", or "late" (evenly, but none of the first tenth).
      in_function_space: whether it is learned from there too.
      variety: ranges of what differs from run to run beside the learning rate and its schedule.
      examples: of the training set, that the loss and its curvature are known on.
    """

    make: Callable[[], Task]
    optimizers: tuple[str, ...]
    num_steps: int
    saves: tuple[int, str]
    in_function_space: bool = False
    variety: Mapping[str, tuple[float, float]] = MappingProxyType({})
    examples: int = 512


def flat(module: nn.Module) -> nn.Module:
    """A network of vectors as one of images."""
    return nn.Sequential([lambda x: x.reshape(len(x), -1), module])


def _task(network, data, batch_size, num_classes=None):
    return classification(network, data(), batch_size, num_classes=num_classes)


def _sequence_task(module, data, batch_size):
    """Next characters at every place of a window."""
    data = jax.tree.map(jnp.asarray, data())
    inputs, num = data["train"][0][:1], len(data["train"][0])

    def cross_entropy(weights, inputs, labels):
        logits = module.apply(weights, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    def evaluate(weights, split):
        loss, logits = cross_entropy(weights, *split)
        return {"loss": loss, "accuracy": jnp.mean(logits.argmax(-1) == split[1])}

    return Task(
        data,
        lambda key, variety=None: module.init(key, inputs),
        lambda key, num_steps, variety=None: minibatch_indices(key, num, batch_size, num_steps),
        lambda weights, data, draw: cross_entropy(weights, *(part[draw] for part in data["train"]))[0],
        evaluate,
    )


def _of(network, data, batch_size, **options):
    return functools.partial(_task, network, data, batch_size, **options)


digits, of = functools.partial(images, "digits"), functools.partial
NOISY = {"label_noise": (0.0, 0.3)}
PROBLEMS = {
    "digits_mlp": Problem(
        _of(flat(MLP((32, 10))), of(digits, 1437), 16), ("sgd", "momentum", "adam", "rmsprop"), 900, (32, "even"), True
    ),
    "digits_tanh": Problem(
        _of(flat(MLP((24, 24, 10), nn.tanh)), of(digits, 1024), 64), ("momentum", "adamw"), 800, (24, "log"), True
    ),
    "digits_cnn": Problem(
        _of(CNN((8, 16)), of(digits, 1437), 16), ("momentum", "adam", "lion"), 900, (30, "even"), True, NOISY
    ),
    "digits_residual": Problem(
        _of(ResidualMLP(24, 2), of(digits, 1437), 32), ("nesterov", "adamw"), 800, (25, "random"), True
    ),
    "digits_tokens": Problem(
        _of(nn.Sequential([lambda x: x[..., 0], Tokens(10, width=16, num_layers=1)]), of(digits, 1437), 32),
        ("momentum", "adam"),
        700,
        (28, "even"),
        True,
    ),
    "mnist_mlp": Problem(
        _of(flat(MLP((24, 10), nn.gelu)), of(images, "mnist", 12_000, 2), 8),
        ("sgd", "momentum", "adam"),
        1500,
        (32, "even"),
        True,
    ),
    "mnist_cnn": Problem(
        _of(ConvNet((8, 16)), of(images, "mnist", 24_000, 2), 16), ("momentum", "adam"), 1200, (24, "even"), True
    ),
    "mnist_lenet": Problem(
        _of(ConvNet((8, 16), (64,)), of(images, "mnist", 20_000, 2), 32), ("momentum", "nesterov"), 1000, (20, "even")
    ),
    "fashion_mlp": Problem(
        _of(flat(MLP((32, 32, 10))), of(images, "fashion_mnist", 30_000, 2), 32),
        ("sgd", "momentum", "adamw"),
        1000,
        (30, "late"),
        True,
        NOISY,
    ),
    "fashion_wide": Problem(
        _of(flat(ResidualMLP(48, 2)), of(images, "fashion_mnist", 20_000), 64),
        ("momentum", "adam"),
        700,
        (22, "random"),
    ),
    "cifar_cnn": Problem(
        _of(ConvNet((16, 24), activation=nn.gelu), of(images, "cifar10", 30_000, 4), 32),
        ("momentum", "adam"),
        1200,
        (30, "even"),
        True,
    ),
    "cifar_batch_norm": Problem(
        _of(ConvNet((8, 16, 24), batch_norm=True), of(images, "cifar10", 20_000, 2), 32),
        ("momentum", "adamw"),
        500,
        (26, "even"),
        examples=128,
    ),
    "cifar_mlp": Problem(
        _of(flat(MLP((64, 10))), of(images, "cifar10", 30_000, 4), 16),
        ("momentum", "adam", "rmsprop"),
        1200,
        (32, "even"),
    ),
    "teacher": Problem(
        _of(MLP((32, 8)), of(teacher, 16_000), 16), ("sgd", "momentum", "adam"), 1000, (40, "even"), True, NOISY
    ),
    "mixture": Problem(_of(MLP((10,)), of(mixture, 8000), 8), ("sgd", "momentum", "adam"), 1000, (20, "log"), True),
    "text_perceptron": Problem(
        _of(NextCharacter(len(CHARACTERS), 48), of(characters, 20_000, 8), 32, num_classes=len(CHARACTERS)),
        ("momentum", "adam", "adamw"),
        1200,
        (32, "even"),
        True,
    ),
    "markov_tokens": Problem(
        _of(Tokens(12, 12, 16, 1), of(markov_chain, 20_000), 32), ("adam", "adamw"), 1000, (28, "even"), True
    ),
}
HELD_OUT = {
    "residual_fashion": Problem(
        _of(ResidualNet((16, 32)), of(images, "fashion_mnist", 48_000, num_test=5000), 32),
        ("momentum",),
        1500,
        (32, "even"),
    ),
    "mixer_cifar": Problem(
        _of(Mixer(), of(images, "cifar10", 48_000, num_test=5000), 32), ("adam",), 1500, (32, "even")
    ),
    "characters": Problem(
        functools.partial(
            _sequence_task, LanguageModel(len(CHARACTERS)), of(characters, 48_000, 32, every=True, num_test=2000), 32
        ),
        ("adamw",),
        1500,
        (32, "even"),
    ),
}
