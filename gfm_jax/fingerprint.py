"""What a function or a pytree consists of, as text that another process tells in the same words."""

import dataclasses
import dis
import enum
import functools
import pathlib
import sys
import sysconfig
import types
import zlib
from collections.abc import Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["describe", "differences"]

PLAIN = (type(None), bool, int, float, complex, type(Ellipsis), range, slice)
LONG = 64  # values of a list, or four times as many characters of a string, beyond which a checksum stands for them


def describe(name: str, value: Any) -> dict[str, str]:
    """Every number, array and function that `value` consists of, each under its path.

    Use it to tell whether two objects would compute the same: an optimizer of rate .001 and one of .002 differ in one entry.
    Functions are followed into what they close over, their defaults, and, outside of installed packages, the constants and the
    global values that their code names; arrays are told by dtype, shape and checksum. No address, hash or bytecode enters, so
    that another process tells the same.

    Args:
      name: of the value, with which all paths begin.
      value: functions, partial functions, methods, NamedTuples, dataclasses, flax modules, dicts, sequences, sets, arrays,
        keys and plain values, nested in any way. Of any other object its type is told, and its attributes where its class does
        not come from an installed package.

    Returns:
      Text by path, such as `{"optimizer.update.rate": "0.001"}`.
    """
    told, functions, arrays = {}, {}, {}

    def tell(at: str, x: Any, above: tuple[int, ...]) -> None:
        inside = (*above, id(x))
        if isinstance(x, PLAIN):
            told[at] = _plain(x)
        elif isinstance(x, str | bytes):
            told[at] = repr(x) if len(x) <= 4 * LONG else f"{len(x)} characters, crc32 {_crc(repr(x).encode())}"
        elif isinstance(x, np.ndarray | np.generic | jax.Array):
            if id(x) not in arrays:
                arrays[id(x)] = x, _array(x)  # kept, so that no other object takes its place
            told[at] = arrays[id(x)][1]
        elif isinstance(x, np.dtype | pathlib.PurePath):
            told[at] = str(x)
        elif isinstance(x, enum.Enum):
            told[at] = f"{_name(type(x))}.{x.name}"
        elif isinstance(x, type | types.ModuleType | np.ufunc | types.BuiltinFunctionType):
            told[at] = _name(x)
        elif id(x) in above:
            told[at] = "part of itself"
        elif isinstance(x, functools.partial):
            for part in ("func", "args", "keywords"):
                tell(f"{at}.{part}" if part != "func" else at, getattr(x, part), inside)
        elif isinstance(x, types.MethodType):
            tell(at, x.__func__, inside)
            tell(f"{at}.self", x.__self__, inside)
        elif isinstance(x, types.FunctionType):
            function(at, x, inside)
        elif callable(x) and callable(wrapped := getattr(x, "__wrapped__", None)):  # jit, cache, custom derivatives
            tell(at, wrapped, inside)
        else:
            container(at, x, inside)

    def function(at, f, inside):
        if id(f) in functions:
            told[at] = f"as {functions[id(f)][1]}"
            return
        functions[id(f)] = f, at
        if "beartype" in f.__code__.co_filename or "jaxtyping" in f.__code__.co_filename:
            tell(at, f.__wrapped__, inside) if hasattr(f, "__wrapped__") else told.update({at: _name(f)})
            return
        told[at] = _name(f)
        for part, x in _closed_over(f).items():
            tell(f"{at}.{part}", x, inside)

    def container(at, x, inside):
        parts = _parts(x)
        if parts is None:
            told[at] = _name(type(x))
            return
        kind, parts = parts
        if kind:
            told[at] = kind
        if len(parts) > LONG and all(isinstance(part, PLAIN) for part in parts.values()):
            told[at] = f"{kind} {len(parts)} values, crc32 {_crc(repr(list(parts.items())).encode())}".strip()
            return
        for part, content in parts.items():
            tell(f"{at}.{part}", content, inside)

    tell(name, value, ())
    return told


def differences(before: Mapping[str, str], now: Mapping[str, str], most: int = 4) -> str:
    """What differs, with both values, as "path before, here now; ..."; the empty text where nothing does."""
    nothing = "absent"
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name, nothing) != now.get(name, nothing)]
    told = [f"{name} {before.get(name, nothing)}, here {now.get(name, nothing)}" for name in names[:most]]
    return "; ".join(told + [f"and {len(names) - most} more"] * (len(names) > most))


def _parts(x) -> tuple[str, dict] | None:
    """The kind of a container, empty where it does not count, and its contents by name; None of what cannot be looked into."""
    if isinstance(x, Mapping):
        return "", {str(key): x[key] for key in sorted(x, key=str)} or {"empty": None}
    if isinstance(x, tuple) and (fields := getattr(x, "_fields", None)) is not None:
        return _name(type(x)), {name: getattr(x, name) for name in fields}
    if isinstance(x, tuple | list):
        return "", {str(i): part for i, part in enumerate(x)} or {"empty": None}
    if isinstance(x, Set):
        return "", {str(i): part for i, part in enumerate(sorted(map(repr, x)))} or {"empty": None}
    if dataclasses.is_dataclass(x):
        names = [
            field.name for field in dataclasses.fields(x) if field.name != "parent"
        ]  # of a flax module: where it is used
        return _name(type(x)), {name: getattr(x, name) for name in names if hasattr(x, name)}
    leaves = jax.tree.leaves(x)
    if not (len(leaves) == 1 and leaves[0] is x):  # a pytree of some other kind
        return _name(type(x)), {str(i): leaf for i, leaf in enumerate(leaves)}
    if not _is_installed(getattr(sys.modules.get(type(x).__module__), "__file__", type(x).__module__)):
        called = {"call": type(x).__call__} if callable(x) else {}
        return _name(type(x)), called | getattr(x, "__dict__", {})
    return None


def _closed_over(f: types.FunctionType) -> dict[str, Any]:
    """Free variables, defaults and, of code that is not installed, constants and global values."""
    code = f.__code__
    found = {}
    for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a variable that was not set yet
            found[name] = None
    names = code.co_varnames[: code.co_argcount]
    defaults = f.__defaults__ or ()
    found |= dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (f.__kwdefaults__ or {})
    installed = _is_installed(code.co_filename)
    if installed and code.co_name != "<lambda>":  # whose name does not tell one from another
        return found
    numbers, names, read = _named_in(code)
    found |= {"numbers": numbers, "names": names}
    if installed:
        return found
    unseen = types.ModuleType | type
    return found | {name: x for name in read if not isinstance(x := f.__globals__.get(name), unseen)}


def _named_in(code: types.CodeType) -> tuple[str, str, list[str]]:
    """Numbers and names in a function's code, sorted, and the global ones among the names; inner functions included."""
    numbers, names, read = set(), set(), set()
    todo = [code]
    while todo:
        code = todo.pop()
        names.update(code.co_names)
        read.update(step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                todo.append(constant)
            elif isinstance(constant, int | float | complex | tuple):
                numbers.add(repr(constant))
    return " ".join(sorted(numbers)), " ".join(sorted(names)), sorted(read)


INSTALLED = (str(pathlib.Path(__file__).parent), sysconfig.get_path("stdlib"), "builtins", "<frozen")


def _is_installed(file: str) -> bool:
    """Whether code belongs to Python, to this library or to an installed package, whose version is what counts."""
    return file.startswith(INSTALLED) or "site-packages" in file or "dist-packages" in file


def _plain(x) -> str:
    """A whole number is told the same as an int and as a float: optax turns one into the other on the way."""
    return str(int(x)) if isinstance(x, float) and x.is_integer() else repr(x)


def _name(x) -> str:
    if isinstance(x, types.ModuleType):
        return x.__name__
    return f"{getattr(x, '__module__', None) or 'builtins'}.{getattr(x, '__qualname__', getattr(x, '__name__', '?'))}"


def _array(x) -> str:
    """Dtype, shape, and the values of a small array or the checksum of a larger one."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(x)} {_array(jax.random.key_data(x))}"
    about = f"{x.dtype} {list(x.shape)}"
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        parts = [_array(np.asarray(shard.data)) for shard in x.addressable_shards]  # the part that this host holds
        return f"{about} in parts {_crc(repr(parts).encode())}"
    x = np.asarray(x)
    if x.dtype == object:
        return f"{about} {_crc(repr([_name(type(part)) for part in x.ravel()]).encode())}"
    if x.size <= 4:
        return f"{about} {x.tolist()}"
    return f"{about} crc32 {_crc(np.ascontiguousarray(x).reshape(-1).view(np.uint8))}"


def _crc(data) -> str:
    return f"{zlib.crc32(data):08x}"
