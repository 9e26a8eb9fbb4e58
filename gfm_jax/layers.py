"""Layers from the names of tensors: which tensors form a layer, in which order layers follow, and which axis is the output.

Names are paths such as "Block_2/Dense_0/kernel" (flax, NNX, haiku) or "layer1.0.conv1.weight" (torch, equinox).
"""

import math
import re
from collections.abc import Sequence

__all__ = ["layer_of", "natural_key", "natural_order", "output_axis", "parts_of"]

# What the tensors of one layer are called where no path tells the layer: "w1" and "b1" are of layer 1.
ROLES = {"w", "b", "weight", "weights", "bias", "biases", "kernel", "scale", "gamma", "beta", "embedding", "g"}
# Words in the names of layers that tell roughly where in a network they are applied.
FIRST = {
    "emb",
    "embed",
    "embedder",
    "embedding",
    "embeddings",
    "wte",
    "wpe",
    "pos",
    "position",
    "token",
    "tokens",
    "cls",
}
FIRST |= {"stem", "patch", "patchify", "input", "inputs", "in", "init"}
EARLY = {"encoder", "enc", "down", "backbone", "trunk"}
DENSE = {"dense", "linear", "lin", "fc", "mlp", "proj", "ff", "ffn", "feedforward"}
LATE = {"decoder", "dec", "up"}
LAST = {"head", "heads", "out", "output", "outputs", "o", "logit", "logits", "classifier", "final", "readout", "lnf"}
NORM = {"norm", "normalization", "bn", "ln", "gn", "batchnorm", "layernorm", "groupnorm", "rmsnorm", "instancenorm"}


def parts_of(name: str) -> tuple[str, ...]:
    """The components of a tensor's name."""
    return tuple(part for part in re.split(r"[/.]", name) if part)


def layer_of(name: str) -> str:
    """The layer of a tensor: its name less the last component; of a name without components the number at its end.

    "Dense_0/kernel" is of "Dense_0", "layer1.0.weight" of "layer1/0", "w2" of "2", "w" of "", "stem" of "stem".

    >>> layer_of("Dense_0/kernel"), layer_of("layer1.0.weight"), layer_of("w2")
    ('Dense_0', 'layer1/0', '2')
    """
    parts = parts_of(name)
    if len(parts) > 1:
        return "/".join(parts[:-1])
    text, number = _numbered(name)
    return name if text.lower() not in ROLES else "" if number is None else str(number)


def natural_order(layers: Sequence[str]) -> list[str]:
    """Layers in the order in which networks usually apply them, as far as their names tell.

    Numbers count as numbers: "Block_2" comes before "Block_10". On one level of the names embeddings and stems come first,
    then encoders, then what is numbered, by number (a norm after the other layers of its number, a block after single
    layers), then dense layers where others are beside them, then decoders; heads and outputs come last.

    Args:
      layers: names as `layer_of` gives them.

    Returns:
      The same names without repetition, the first layer first.

    >>> natural_order(["head", "Block_10", "Block_2", "embed"])
    ['embed', 'Block_2', 'Block_10', 'head']
    """
    return ["/".join(path) for path in _sorted(list(dict.fromkeys(tuple(parts_of(layer)) for layer in layers)))]


def _sorted(paths):
    below: dict[str, list] = {}
    for path in paths:
        if path:
            below.setdefault(path[0], []).append(path[1:])
    words = {name: _words(_numbered(name)[0]) for name in below}
    counted = {text for text, number in map(_numbered, below) if number is not None}
    is_block = {name: any(rests) for name, rests in below.items()}
    plain = [name for name in below if not words[name] & (FIRST | EARLY | DENSE | LATE | LAST | NORM)]
    norms_end = bool(plain) and all(is_block[name] for name in plain)  # of blocks, the norm beside them is the last one

    def place(name):
        own, (text, number) = words[name], _numbered(name)
        is_norm = bool(own & NORM)
        if own & (FIRST | LAST):
            group = 5 if own & LAST else 0
        elif own & (EARLY | LATE) and not own & DENSE:
            group = 4 if own & LATE else 1
        else:
            group = 3 if plain and own & DENSE else 2
        if number is None:
            number = -1 if text in counted else math.inf
        if group == 5:
            return group, not is_norm, number, 0, 0, natural_key(name)
        return group, is_norm and norms_end, number, is_block[name], is_norm, natural_key(name)

    found = [()] if () in paths else []
    for name in sorted(below, key=place):
        found += [(name, *rest) for rest in _sorted(below[name])]
    return found


def _numbered(name):
    """A name and the number at its end, None where there is none: "Block_10" is ("Block", 10)."""
    text, digits, _ = re.split(r"[_\- ]*(\d*)\Z", name, maxsplit=1)
    return text, int(digits) if digits else None


def _words(text):
    """The words of a name in lower case, and all of them as one: "BatchNorm" is batch, norm, batchnorm."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)
    return {word.lower() for word in words} | {"".join(words).lower()}


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key to sort names by, in which digits compare as numbers, and before letters.

    >>> sorted(["step_10", "step_5"], key=natural_key)
    ['step_5', 'step_10']
    """
    return tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.findall(r"\d+|\D+", name))


def output_axis(name: str, shape: tuple[int, ...], convention: str | None = None) -> int:
    """The axis of a tensor that runs over the outputs of its layer, as the convention of its library has it.

    Args:
      name: of the tensor.
      shape: of the tensor.
      convention: "flax" ([in, out], HWIO), also haiku's and Keras's; "torch" ([out, in], OIHW), also equinox's; None: by
        the name, where "weight" is torch's word and all others are taken for flax's.

    Returns:
      0 or -1. Embeddings [tokens, features] have their outputs last in both; for vectors it is -1.

    Raises:
      ValueError: for an unknown convention.

    >>> output_axis("Dense_0/kernel", (3, 4)), output_axis("fc.weight", (4, 3))
    (-1, 0)
    """
    if convention not in (None, "flax", "torch"):
        raise ValueError(f'convention: expected "flax", "torch" or None, got {convention!r}')
    parts = parts_of(name)
    if len(shape) < 2 or convention == "flax" or (convention is None and not (parts and "weight" in parts[-1])):
        return -1
    words = {word for part in parts for word in _words(_numbered(part)[0])}
    is_embedding = len(shape) == 2 and bool(
        words & {"emb", "embed", "embedding", "embeddings", "embedder", "wte", "wpe"}
    )
    return -1 if is_embedding else 0
