"""Every notebook runs from top to bottom."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def kinds_of_outputs(notebook: Any) -> list[list[str]]:
    """For each cell of code what it gives out, warnings aside."""
    return [
        [output.output_type for output in cell.outputs if output.get("name") != "stderr"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_its_stored_outputs_show(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if "import keras" in path.read_text() and not (find_spec("keras") and find_spec("tensorflow")):
        pytest.skip("Keras and TensorFlow are not installed")
    stored = kinds_of_outputs(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )

    client.execute()

    assert kinds_of_outputs(notebook) == stored
