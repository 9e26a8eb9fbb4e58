"""The house keeps its floors: imports go down, never up, sideways or in a circle."""

import ast
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest

import gfm_jax

ROOT = pathlib.Path(gfm_jax.__file__).parent
FLOORS = {
    "base": 1,
    # What the second floor needs too: layers by their names, trees of arrays, files, and options of the compiler.
    "layers": 1.2,
    "first_use": 1.2,
    "parameters": 1.3,
    "checks": 1.4,
    "pytrees": 1.5,
    "compiling": 1.5,
    "convolutions": 1.5,
    "files": 1.5,
    "fingerprint": 1.5,
    "checkpoints": 1.7,
    "fit_program": 1.7,
    "serialization": 1.7,
    "networks": 2,
    "solve": 2,
    "minimize": 2,
    "fitting": 2,
    "datasets": 2,
    "saving": 2,
    "optimizers": 3,
    "flows": 4,
    "runs": 4,
    "forecasting": 5,
    "weights": 5,
    "pretrained_models": 5.5,
    "__main__": 6,
}
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT)], prefix="gfm_jax."))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def source(module: str) -> pathlib.Path:
    path = ROOT.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    mine = room(module)
    for imported in imports(source(module)):
        assert not imported.startswith("experiments"), f"{module} imports {imported}"
        if imported.startswith("gfm_jax.") and room(imported) != mine:
            assert FLOORS[room(imported)] < FLOORS[mine], f"{module} (floor {FLOORS[mine]}) imports {imported}"


def test_no_circles():
    graph = {module: {i for i in imports(source(module)) if i in MODULES} for module in MODULES}
    state = {}

    def visit(module, path):
        assert state.get(module) != "open", " -> ".join([*path, module])
        if state.get(module) is None:
            state[module] = "open"
            for other in graph[module]:
                if source(module).name != "__init__.py" or not other.startswith(module):
                    visit(other, [*path, module])
            state[module] = "done"

    for module in MODULES:
        visit(module, [])


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_all_names_resolve(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__, f"{module} has no docstring"
    assert hasattr(loaded, "__all__"), f"{module} has no __all__"
    for name in loaded.__all__:
        assert hasattr(loaded, name), f"{module}.__all__ names {name}, which is not there"


def test_what_is_imported_is_declared():
    """And what is declared is imported; what a function imports on its first use may belong to an extra."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    names = {
        "scikit-learn": "sklearn",
        "orbax-checkpoint": "orbax",
        "lazy-loader": "lazy_loader",
        "ott-jax": "ott",
        "pillow": "PIL",
    }
    name = lambda requirement: (lambda found: names.get(found, found))(re.match(r"[\w-]+", requirement)[0])
    declared = set(map(name, project["dependencies"]))
    extras = {
        name(one)
        for extra in ("experiments", "data", "ott", "torch")
        for one in project["optional-dependencies"][extra]
    }
    found = {module.split(".")[0] for one in MODULES for module in imports(source(one))}
    found |= {module.split(".")[0] for module in imports(ROOT / "__init__.py")}
    found -= {*sys.stdlib_module_names, "gfm_jax"}
    assert declared <= found
    assert found <= declared | extras


def test_import_is_light():
    """All but a little of `import gfm_jax` is jax's own, which takes half a second on a quiet machine and more on others."""
    code = (
        "import sys, time; import jax, jaxtyping; start = time.perf_counter(); import gfm_jax; "
        "print(time.perf_counter() - start, *(name in sys.modules for name in ('diffrax', 'orbax', 'flax', 'optax')))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert runs[0].stdout.split()[1:] == ["False"] * 4
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.3
