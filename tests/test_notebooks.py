import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import weightinit as wi

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.slow
@notebooks
@pytest.mark.filterwarnings("default")
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()


@notebooks
def test_what_a_notebook_found_is_stored_in_it(path):
    """So that it can be read without a run: every cell in order, no error, and a plot."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in found)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in found)


@notebooks
def test_a_notebook_uses_public_names_only(path):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "import weightinit as wi" in code
    assert not re.search(r"weightinit\.|from weightinit", code)
    assert set(re.findall(r"\bwi\.(\w+)", code)) <= set(wi.__all__)


def test_there_is_one():
    assert NOTEBOOKS
