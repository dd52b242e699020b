"""docs/notebook.ipynb, executed by a kernel of its own on a folder of facades."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from segbatch.demo.facades.facades import render_facade
from tests.collection import encoded
from tests.scripts import script_of_docs

NOTEBOOK: Any = script_of_docs("notebook")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of three places; one is cut off."""
    (tmp_path / "photos").mkdir()
    for number in range(12):
        data = encoded(Image.fromarray(render_facade(number, 256).image))
        name = f"{'abc'[number % 3]}-{number}.jpg"
        (tmp_path / "photos" / name).write_bytes(data[: len(data) // 2 if number == 11 else None])
    return tmp_path


def test_every_cell_runs_and_shows_what_its_text_promises(
    folder: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    executed = NOTEBOOK.small(NOTEBOOK.execute(folder))
    kept = nbformat.read(NOTEBOOK.NOTEBOOK, as_version=4)
    for cell, before in zip(executed.cells, kept.cells, strict=True):
        if cell.cell_type == "code":
            shown, expected = (
                [sorted(output.data) for output in outputs if "data" in output]
                for outputs in (cell.outputs, before.outputs)
            )
            assert shown == expected, cell.source
    html = "".join(o.data.get("text/html", "") for c in executed.cells if c.cell_type == "code"
                   for o in c.outputs if "data" in o)  # fmt: skip
    assert "failed: truncated" in html
    assert "the file ends early" in html
    assert (folder / "report.html").stat().st_size > 10_000
