"""The notebooks, run cell by cell in their small setting."""

import json
import pathlib
import re
import sys
import types

import matplotlib.pyplot as plt
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def cells_of(name, kind):
    return [cell for cell in json.loads((FOLDER / name).read_text())["cells"] if cell["cell_type"] == kind]


def test_they_are_there():
    assert {name.split("_", 1)[0] for name in NAMES} >= {"00", "10", "15", "20", "30", "40", "50"}


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    text, code = cells_of(name, "markdown"), cells_of(name, "code")
    assert len(text) + len(code) <= 15
    assert f"notebooks/{name}" in "".join(text[0]["source"])  # the Colab badge
    assert "jax=={jax.__version__}" in "".join(code[0]["source"])
    assert any(cell["outputs"] for cell in code)
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert (FOLDER / name).stat().st_size < 300_000


def test_from_scratch_imports_nothing_of_ours():
    text = (FOLDER / "00_flow_matching_from_scratch.ipynb").read_text()
    assert not re.search(r"(import|from) gfm_jax", text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GFM_SMALL", "1")
    monkeypatch.chdir(tmp_path)
    notebook = types.ModuleType("notebook")  # a module of its own: classes look up the one that they stand in
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    with plt.rc_context({"backend": "agg"}):
        for number, cell in enumerate(cells_of(name, "code")):
            source = re.sub(r"^(\s*)%.*", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)  # %pip, on Colab
            exec(compile(source, f"{name}, code cell {number}", "exec"), vars(notebook))
            for figure in plt.get_fignums():  # a notebook draws a cell's figures where the cell ends
                plt.figure(figure).canvas.draw()
            plt.close("all")
