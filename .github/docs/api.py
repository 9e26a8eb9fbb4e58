"""Writes the API page: every public name of every room, with its arguments and its first sentence.

python .github/docs/api.py > .github/docs/api.md
"""

import importlib
import inspect

import flax.linen as nn

ROOMS = {
    "gfm_jax": "`import gfm_jax as gfm`: the names used most. `help(gfm.record)` and so on say all that there is to know.",
    "gfm_jax.runs": "Training runs as data.",
    "gfm_jax.forecasting": "Where will this run end?",
    "gfm_jax.forecasting.baselines": "Forecasts without learning.",
    "gfm_jax.forecasting.nowcast": "Published networks that forecast weights.",
    "gfm_jax.flows": "From noise to data, and back.",
    "gfm_jax.flows.metrics": "How far samples are from data.",
    "gfm_jax.weights": "Which weights for this task?",
    "gfm_jax.optimizers": "Integrators as optimizers.",
    "gfm_jax.optimizers.fields": "Optimizers as vector fields.",
    "gfm_jax.networks": "Networks of flax, of one point.",
    "gfm_jax.pretrained_models": "Forecasters that come with the library.",
    "gfm_jax.solve": "Following a flow.",
    "gfm_jax.datasets": "Data by name.",
    "gfm_jax.base": "The records that all rooms speak.",
    "gfm_jax.pytrees": "Weights as vectors.",
}


def page() -> str:
    """The whole page."""
    parts = ["# API", "Made from the docstrings by `python .github/docs/api.py > .github/docs/api.md`."]
    for room, sentence in ROOMS.items():
        module = importlib.import_module(room)
        lines = [line for name in sorted(module.__all__) if (line := _line(name, getattr(module, name)))]
        parts += [f"## {room}", sentence, "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _line(name, what) -> str | None:
    """`name(arguments)`: the first sentence; None for rooms and constants."""
    if not callable(what):
        return None
    doc = " ".join((inspect.getdoc(what) or "").split("\n\n")[0].split())
    if isinstance(what, type) and issubclass(what, Exception):
        return f"- `{name}`: {doc}"
    return f"- `{name}{_arguments(what)}`: {doc}"


def _arguments(what) -> str:
    parts, starred = [], False
    of_flax = ("parent", "name") if isinstance(what, type) and issubclass(what, nn.Module) else ()
    for parameter in inspect.signature(what).parameters.values():
        if parameter.name in of_flax:
            continue
        if parameter.kind == parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        default = "" if parameter.default is parameter.empty else f"={_shown(parameter.default)}"
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        starred = starred or prefix == "*"
        parts.append(f"{prefix}{parameter.name}{default}")
    return f"({', '.join(parts)})"


def _shown(default) -> str:
    """A default as it is written: what has a name, by its name."""
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            if getattr(module, name) is default:
                return name
    if callable(default) or type(default).__module__.startswith("gfm_jax"):
        return getattr(default, "__name__", type(default).__name__)
    return repr(default)


if __name__ == "__main__":
    print(page(), end="")
