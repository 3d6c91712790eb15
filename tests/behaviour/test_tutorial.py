"""The tutorial runs from its first cell to its last, and its student has learned what the teacher knows."""

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

import histill
from testbed.notebook import run_notebook

pytestmark = pytest.mark.behaviour

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"
SLIDE = ROOT.parent / "shared/data/wsi/CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebook has run, with its outputs in `done.ipynb`."""
    folder = tmp_path_factory.mktemp("tutorial")
    if SLIDE.exists():  # else it is fetched, as for a reader
        (folder / "tutorial").mkdir()
        shutil.copyfile(SLIDE, folder / "tutorial" / SLIDE.name)
    nbformat.write(run_notebook(NOTEBOOK, folder), folder / "done.ipynb")
    return folder


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def printed_by(notebook: Path, words: str) -> str:
    """What the cell with these words in its code has printed."""
    cell = next(cell for cell in code_cells(notebook) if words in "".join(cell["source"]))
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def test_its_student_agrees_with_the_teacher(folder: Path) -> None:
    """A student that marks every pixel has a Dice of 0.3 at most here, since the teacher marks a sixth of them."""
    dice = float(printed_by(folder / "done.ipynb", "histill.score_model(").split()[1])
    assert 0.5 < dice < 1


def test_it_leaves_what_it_says(folder: Path) -> None:
    work = folder / "tutorial"
    assert sum(histill.open_tiles(str(work / "tiles")).splits.values()) > 100
    assert list(work.glob("predictions/*/heatmaps/*.geojson"))
    assert (work / "report.html").exists()


def test_what_it_shows_is_small_and_in_order() -> None:
    """`make tutorial` makes it anew."""
    assert [cell["execution_count"] for cell in code_cells(NOTEBOOK)] == list(range(1, len(code_cells(NOTEBOOK)) + 1))
    assert NOTEBOOK.stat().st_size < 1_000_000
