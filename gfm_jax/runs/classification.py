"""Classification by any network, trained on minibatches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from gfm_jax.base import Network, Task
from gfm_jax.runs.examples import as_inputs, check_logits, check_splits
from gfm_jax.runs.minibatches import minibatch_indices

__all__ = ["classification"]


def classification(
    network: Network | nn.Module, data: PyTree, batch_size: int, *, num_classes: int | None = None
) -> Task:
    r"""The cross-entropy of a classifier, on minibatches drawn without replacement within each epoch.

    .. math:: L(w) = -\frac{1}{B} \sum_b \log \mathrm{softmax}(f_w(x_b))_{y_b}

    Its `variety`: `label_noise`, the fraction of training labels replaced, once a run, by random ones; `data_noise`, the
    standard deviation of Gaussian noise added to inputs at each step; `init_scale`, a factor on the initial weights.

    Inputs that are Booleans or integers of 8 or 16 bits (`uint8` images as `load_dataset` gives them) are stored as they
    are, and reach the network as float32 of the same numbers: 0..255, not scaled. Wider integers reach it as they are,
    as indices for an embedding, unless noise is added.

    Args:
      network: a flax module `(inputs) -> logits [batch, num_classes]`, or any `Network` of `init(key)` and
        `apply(weights, inputs)`.
      data: (inputs [num, ...], labels int [num]) to train on, or `{split: (inputs, labels)}` with a split "train".
      batch_size: examples a step, at most the size of the training split.
      num_classes: number of classes; None for one more than the largest label.

    Returns:
      The task; `evaluate` gives `loss` and `accuracy` over a split.

    Raises:
      ValueError: for a batch larger than the training split, inputs that are not finite, labels that are no integers or out of
        range; in the loss, for a network with less outputs than classes.

    >>> import gfm_jax as gfm
    >>> net = nn.Sequential([lambda x: x.reshape(len(x), -1) / 255, nn.Dense(10)])
    >>> task = classification(net, gfm.load_dataset("digits"), batch_size=64)
    >>> weights = task.init(jax.random.key(0))
    >>> sorted(task.evaluate(weights, task.data["train"]))
    ['accuracy', 'loss']
    """
    data = data if isinstance(data, dict) else {"train": data}
    num_classes = check_splits(data, num_classes)
    num_train = len(data["train"][0])
    if not 1 <= batch_size <= num_train:
        raise ValueError(f"batch_size: expected 1..{num_train}, the size of the training split, got {batch_size}")

    if isinstance(network, nn.Module):
        module, example = network, as_inputs(jnp.asarray(data["train"][0][:1]))
        network = Network(lambda key: module.init(key, example), module.apply)

    def init(key, variety=None):
        scale = (variety or {}).get("init_scale", 1.0)
        return jax.tree.map(lambda w: scale * w, network.init(key))

    def draws(key, num_steps, variety=None):
        key_order, key_labels, key_noise = jax.random.split(key, 3)
        drawn = {"index": minibatch_indices(key_order, num_train, batch_size, num_steps)}
        if variety and "label_noise" in variety:
            key_which, key_what = jax.random.split(key_labels)
            replaced = jax.random.bernoulli(key_which, variety["label_noise"], (num_train,))
            wrong = jax.random.randint(key_what, (num_train,), 0, num_classes)
            drawn["label_shift"] = jnp.where(replaced, wrong, 0)[drawn["index"]]
        if variety and "data_noise" in variety:
            drawn["noise_key"] = jax.random.split(key_noise, num_steps)
            drawn["noise"] = jnp.full(num_steps, variety["data_noise"])
        return drawn

    def loss(weights, data, draw):
        inputs, labels = (part[draw["index"]] for part in data["train"])
        if "label_shift" in draw:
            labels = (labels + draw["label_shift"]) % num_classes
        inputs = as_inputs(inputs)
        if "noise" in draw:
            inputs = inputs if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs.astype(jnp.float32)
            inputs += (draw["noise"] * jax.random.normal(draw["noise_key"], inputs.shape)).astype(inputs.dtype)
        logits = network.apply(weights, inputs)
        check_logits(logits, num_classes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def evaluate(weights, split):
        inputs, labels = split
        logits = network.apply(weights, as_inputs(jnp.asarray(inputs)))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return {"loss": cross_entropy, "accuracy": jnp.mean(logits.argmax(-1) == labels)}

    as_labels = lambda labels: jnp.asarray(labels).astype(jnp.int32)
    data = {split: (jnp.asarray(inputs), as_labels(labels)) for split, (inputs, labels) in data.items()}
    return Task(data, init, draws, loss, evaluate)
