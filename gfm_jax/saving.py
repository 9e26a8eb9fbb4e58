"""`save` and `load`: fitted parameters in one safetensors file, with the method that they are of. No pickle."""

import importlib
import inspect
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import gfm_jax
from gfm_jax.base import Config
from gfm_jax.files import replacing
from gfm_jax.fingerprint import differences

__all__ = ["load", "save"]

FORMAT = 1
FILE = "params.safetensors"  # in a folder
ROOMS = ("flows", "forecasting", "weights")  # whose methods a file may hold
PACKAGES = ("gfm_jax", "flax", "jax")  # whose functions and classes a file may name


def save(path: str | os.PathLike, method: Any, params: PyTree) -> pathlib.Path:
    """Writes fitted parameters and the choices of their method to one file, which `load` reads in another process.

    Args:
      path: of the file, or a folder that exists, for `params.safetensors` in it. A file of that name is replaced once the new
        one is whole.
      method: what the parameters were fitted for, such as `flow_map(network)`.
      params: as `fit` returns them: arrays in dicts, lists, tuples and the records of this library.

    Returns:
      The path of the file.

    Raises:
      ValueError: for a method without a config, or parameters that are no arrays.
      OSError: naming the folder, where the disk is full.

    >>> import gfm_jax as gfm, jax, pathlib, tempfile
    >>> flow = gfm.flow_matching(gfm.networks.TimeMLP((8,)))
    >>> params, info = gfm.fit(jax.random.key(0), flow, jax.random.normal(jax.random.key(1), (20, 2)), num_steps=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = gfm.save(pathlib.Path(folder) / "flow.safetensors", flow, params)
    ...     again, same = gfm.load(path)
    >>> gfm.sample(jax.random.key(2), again, same, 3).shape
    (3, 2)
    """
    from safetensors.flax import save as to_bytes

    tensors: dict[str, jax.Array] = {}
    metadata = {
        "gfm_jax": gfm_jax.__version__,
        "format": str(FORMAT),
        "method": json.dumps(_describe(_config(method))),
        "structure": json.dumps(_take_apart(params, "params", tensors)),
    }
    path = _file(path)
    with replacing(path) as file:
        file.write(to_bytes(tensors, metadata))
    return path


def load(path: str | os.PathLike, method: Any = None) -> tuple[Any, PyTree]:
    """Reads what `save` wrote: the method and its parameters.

    Args:
      path: of the file, or of its folder.
      method: the method itself, where it was made of functions or modules of your own, which no file can hold; its other
        choices are compared with those of the file.

    Returns:
      The method and the parameters.

    Raises:
      ValueError: for what is no such file or is damaged, for one of another format, for a method with other choices, naming
        them, and for a method that has to be given.

    >>> import gfm_jax as gfm, tempfile
    >>> codec, weights = gfm.pca(2), jax.random.normal(jax.random.key(0), (10, 4))
    >>> params, _ = gfm.fit(jax.random.key(1), codec, weights)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again, same = gfm.load(gfm.save(folder, codec, params))
    >>> again.encode(same, weights[0]).shape
    (2,)
    """
    from safetensors import SafetensorError, safe_open

    path = _file(path)
    if not path.is_file():
        raise ValueError(f"path: expected a file that gfm_jax.save wrote, got {path}, which does not exist")
    try:
        with safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"path: {path} is no whole safetensors file ({error})") from error
    if "structure" not in metadata or "method" not in metadata:
        raise ValueError(f"path: expected a file that gfm_jax.save wrote, got other tensors in {path}")
    if metadata.get("format") != str(FORMAT):
        raise ValueError(
            f"path: expected format {FORMAT}, got {metadata.get('format')} in {path}, written by gfm_jax "
            f"{metadata.get('gfm_jax')}; this is {gfm_jax.__version__}"
        )
    config = json.loads(metadata["method"])
    if method is None:
        method = _rebuild(config, path)
    elif differ := _differences(config, _describe(_config(method))):
        raise ValueError(f"method: {path} holds another one: {differ}")
    return method, _put_together(json.loads(metadata["structure"]), tensors)


def _file(path):
    path = pathlib.Path(path).expanduser()
    return path / FILE if path.is_dir() else path


# --- methods as JSON --------------------------------------------------------------------------------------------------


def _config(method) -> Config:
    config = getattr(getattr(method, "learner", method), "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"method: expected one of gfm_jax with a config, got {type(method).__name__}")
    return config


def _describe(value: Any) -> Any:
    """A choice as JSON; what only its own code can make is told by its name alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "learner"):
        return {"of": _describe(_config(value))}
    if isinstance(value, Config):
        return {"method": value.method, "choices": {name: _describe(part) for name, part in value.choices}}
    if isinstance(value, dict):
        return {"dict": {key: _describe(part) for key, part in value.items()}}
    if name := _public_name(value):
        return {"name": name}
    if type(value) in (list, tuple):
        return {"tuple": [_describe(part) for part in value]}
    if fields := _fields(value):
        return {"record": _name(type(value)), "fields": {key: _describe(part) for key, part in fields.items()}}
    return {"own": getattr(value, "__qualname__", type(value).__name__)}


def _fields(value) -> dict[str, Any] | None:
    """The fields of a NamedTuple, a dataclass or a flax module of the packages that a file may name."""
    if type(value).__module__.partition(".")[0] not in PACKAGES:
        return None
    if hasattr(value, "_fields"):
        return value._asdict()
    names = getattr(value, "__dataclass_fields__", None)
    return names and {name: getattr(value, name) for name in names if name not in ("parent", "name")}


def _public_name(value) -> str | None:
    """`module:name` of a function, class or value that a module of the packages shows under that name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and module.partition(".")[0] in PACKAGES:
        found = _look_up(f"{module}:{name}")
        return f"{module}:{name}" if found is value else None
    if not hasattr(value, "_fields"):
        return None
    ours = [(key, of) for key, of in sys.modules.items() if key.startswith("gfm_jax.")]
    for key, of in ours:
        for own in getattr(of, "__all__", ()):
            found = getattr(of, own, ())
            if type(found) is type(value) and all(a is b for a, b in zip(found, value, strict=True)):
                return f"{key}:{own}"
    return None


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _look_up(name: str) -> Any:
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in PACKAGES:
        raise ValueError(f"path: expected names of {', '.join(PACKAGES)}, got {name}")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


def _rebuild(config, path) -> Any:
    room, _, name = config["method"].rpartition(".")
    shown = room.partition(".")[0] in ROOMS and name in getattr(_look_up("gfm_jax:" + room), "__all__", ())
    make = _look_up(f"gfm_jax.{room}:{name}") if shown else None
    if make is None:
        raise ValueError(f"path: {path} holds a method of another version, {config['method']}")
    arguments = {name: _value(choice, name, path) for name, choice in config["choices"].items()}
    kinds = inspect.signature(make).parameters
    if unknown := arguments.keys() - kinds.keys():
        raise ValueError(f"path: {path} holds choices of another version of {name}: {', '.join(sorted(unknown))}")
    several = [name for name in arguments if kinds[name].kind is inspect.Parameter.VAR_POSITIONAL]
    positional = [part for name in several for part in arguments.pop(name)]
    return make(*positional, **arguments)


def _value(told, name, path) -> Any:
    inside = lambda part: _value(part, name, path)
    if not isinstance(told, dict):
        return told
    if "own" in told:
        raise ValueError(f"method: {path} was made with {name} {told['own']}, which no file holds; load(path, method)")
    if "of" in told:
        return _rebuild(told["of"], path)
    if "tuple" in told:
        return tuple(inside(part) for part in told["tuple"])
    if "dict" in told:
        return {key: inside(part) for key, part in told["dict"].items()}
    if "record" in told:
        return _record(told, inside)
    if (found := _look_up(told["name"])) is None:
        raise ValueError(f"path: {path} names {told['name']}, which this version does not have")
    return found


def _record(told, inside) -> Any:
    """A NamedTuple, a dataclass or a flax module from its fields; nothing else is called."""
    kind = _look_up(told["record"])
    known = getattr(kind, "_fields", getattr(kind, "__dataclass_fields__", ()))
    if not isinstance(kind, type) or not known or not told["fields"].keys() <= set(known):
        raise ValueError(f"path: expected a record of this version, got {told['record']}")
    return kind(**{key: inside(part) for key, part in told["fields"].items()})


def _differences(before, now) -> str:
    return differences(_flat("", before), _flat("", now))


def _flat(at: str, told: Any) -> dict[str, str]:
    """Every choice under its path."""
    if not isinstance(told, dict | list):
        return {at: str(told)}
    parts = enumerate(told) if isinstance(told, list) else told.items()
    skip = ("choices", "dict", "of", "tuple", "fields", "name", "record")
    inside = lambda key: at if key in skip else f"{at}.{key}".strip(".")
    return {path: text for key, part in parts for path, text in _flat(inside(key), part).items()}


# --- parameters as named arrays ---------------------------------------------------------------------------------------


def _take_apart(node: Any, at: str, tensors: dict) -> Any:
    """The structure of a pytree as JSON, its arrays by name in `tensors`."""
    inside: Callable[[dict], dict] = lambda parts: {
        key: _take_apart(part, f"{at}/{key}", tensors) for key, part in parts.items()
    }
    if node is None:
        return None
    if isinstance(node, dict):
        if others := [key for key in node if not isinstance(key, str) or "/" in key]:
            raise ValueError(f"params: expected names without / as keys, got {others[0]!r} at {at}")
        return {"dict": inside(node)}
    if isinstance(node, list | tuple) and not hasattr(node, "_fields"):
        return {
            "list" if isinstance(node, list) else "tuple": [
                *inside({str(i): part for i, part in enumerate(node)}).values()
            ]
        }
    if hasattr(node, "_fields") and (fields := _fields(node)) is not None:
        return {"record": _name(type(node)), "fields": inside(fields)}
    if not jax.tree.leaves(node):  # a static part, such as a layout
        return {"static": _describe(node)}
    if not hasattr(node, "dtype") and not isinstance(node, int | float):
        raise ValueError(f"params: expected arrays, got {type(node).__name__} at {at}")
    tensors[at] = jnp.asarray(node)
    return {"array": at}


def _put_together(told: Any, tensors: dict) -> Any:
    inside = lambda part: _put_together(part, tensors)
    if told is None:
        return None
    if "array" in told:
        if told["array"] not in tensors:
            raise ValueError(f"path: expected the array {told['array']}, which the file does not hold")
        return tensors[told["array"]]
    if "static" in told:
        return _value(told["static"], "params", "the file")
    if "dict" in told:
        return {key: inside(part) for key, part in told["dict"].items()}
    if "list" in told:
        return [inside(part) for part in told["list"]]
    if "tuple" in told:
        return tuple(inside(part) for part in told["tuple"])
    return _record(told, inside)
