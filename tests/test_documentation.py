"""What the documentation shows runs: the examples of the docstrings, and the blocks of the README."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import gfm_jax

ROOT = pathlib.Path(gfm_jax.__file__).parent
README = (ROOT.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def with_examples():
    for module in pkgutil.walk_packages([str(ROOT)], prefix="gfm_jax."):
        path = ROOT.parent / module.name.replace(".", "/")
        path = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>>" in path.read_text():
            yield module.name


@pytest.mark.parametrize("module", sorted(with_examples()))
def test_examples_of_docstrings(module):
    module = importlib.import_module(module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for name in module.__all__:
        text = inspect.getdoc(getattr(module, name)) or ""
        examples = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, module.__file__, None)
        if examples.examples:
            runner.run(examples)
    assert runner.tries
    assert not runner.failures


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_blocks_of_the_readme(number):
    """As they stand, but for a few steps of fitting and fewer points."""
    block = re.sub(r"num_steps=\d+", "num_steps=4", BLOCKS[number])
    block = block.replace("ones(400)", "ones(40)").replace("num_saves=40", "num_saves=20")
    block = block.replace("(256, 400)", "(40, 20)").replace("channels=(16, 32)", "channels=(8,)")
    block = block.replace("100_000", "1_000").replace("10_000", "20").replace("TimeMLP((128,) * 4", "TimeMLP((8,)")
    exec(compile(block, f"README.md, block {number}", "exec"), {})


def test_the_api_page_is_that_of_the_docstrings():
    path = ROOT.parent / ".github" / "docs" / "api.py"
    found = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout
    assert found == path.with_suffix(".md").read_text(), "python .github/docs/api.py > .github/docs/api.md"


def test_the_readme_has_blocks():
    assert len(BLOCKS) >= 5


def test_names_of_the_front_door_are_there():
    for name in gfm_jax.__all__:
        assert getattr(gfm_jax, name) is not None
    assert "forecast" in dir(gfm_jax)
    with pytest.raises(AttributeError, match="forcast"):
        gfm_jax.forcast  # noqa: B018
