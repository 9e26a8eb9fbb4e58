"""The notebooks, run as a reader runs them, in their small setting."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def test_they_are_there():
    assert {name.split("_", 1)[0] for name in NAMES} >= {"00", "10", "20", "30", "40", "50"}


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    assert len(notebook.cells) <= 15
    assert f"notebooks/{name}" in notebook.cells[0].source  # the Colab badge
    install = next(cell for cell in notebook.cells if cell.cell_type == "code").source
    assert "jax=={jax.__version__}" in install
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert (FOLDER / name).stat().st_size < 300_000


def test_from_scratch_imports_nothing_of_ours():
    text = (FOLDER / "00_flow_matching_from_scratch.ipynb").read_text()
    assert not re.search(r"(import|from) gfm_jax", text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GFM_SMALL", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
