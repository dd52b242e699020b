"""Executes docs/notebook.ipynb and keeps its outputs: scripts/docs notebook FOLDER.

``FOLDER`` has ``photos/``, whose names begin with their place: ``market-1.jpg``. Files that the
notebook writes stay in it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")
CELL_S = 300


def execute(folder: Path) -> Any:
    """The notebook with the outputs of its cells, executed in ``folder`` by a kernel of its own.

    Raises nbclient's ``CellExecutionError`` for a cell that fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=CELL_S, resources=resources).execute()
    return notebook


def small(notebook: Any) -> Any:
    """The notebook without what makes it large or different each time it is executed.

    Pillow gives every picture as PNG and as JPEG; the JPEG is enough.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", []):
            if "image/jpeg" in output.get("data", {}):
                output.data.pop("image/png", None)
    return notebook


if __name__ == "__main__":
    nbformat.write(small(execute(Path(sys.argv[1]))), NOTEBOOK)
