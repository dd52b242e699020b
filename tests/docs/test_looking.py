"""The commands of docs/report.md and docs/exporting.md run as they stand, on a small run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segbatch import storage
from tests.pages import commands, run
from tests.written_run import write_run


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' reader is: two runs over the same photographs."""
    for image_id in range(12):
        noise = np.random.default_rng(image_id).integers(0, 255, (4, 6, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((60, 40)).save(buffer, "JPEG")
        storage.write_bytes(f"{tmp_path}/photos/{image_id:04d}.jpg", buffer.getvalue())
    for month in ("11", "12"):
        write_run(str(tmp_path / "runs" / f"2026-{month}"), photos=str(tmp_path / "photos"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["report.md", "exporting.md"])
def test_commands_of_a_page_run(reader: Path, page: str) -> None:
    found = commands(page)
    assert len(found) >= 3
    for words in found:
        run(words)
    made = {path.name for path in reader.iterdir()} - {"photos", "runs"}
    assert made
