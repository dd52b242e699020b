"""A task that never returns: the execution is ended, and the next pass does the rest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segbatch.jobs import segment as segment_module
from segbatch.jobs.segment import segment
from segbatch.jobs.stages import fetch_stage
from segbatch.results.audit import audit
from tests.collection import jpeg
from tests.conftest import job
from tests.runs import rows_of

NUM_IMAGES = 12


@pytest.mark.usefixtures("ray_address")
def test_a_task_that_never_returns_costs_minutes_and_no_image(
    model_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(NUM_IMAGES):
        (photos / f"{number:02d}.jpg").write_bytes(jpeg(number))
    hung = tmp_path / "hung"

    def fetch_and_hang_once(images: pa.Table, **options: Any) -> pa.Table:
        if NUM_IMAGES - 1 in images["image_id"].to_pylist() and not hung.exists():
            hung.touch()
            time.sleep(86_400)
        return fetch_stage(images, **options)

    monkeypatch.setattr(segment_module, "fetch_stage", fetch_and_hang_once)
    limits = {"idle_minutes": 0.1, "timeout_s": 1, "retries": 0}
    run = segment(job(f"{photos}/", model_uri, str(tmp_path / "run"), limits=limits))
    assert hung.exists()
    assert rows_of(run)["image_id"].to_pylist() == list(range(NUM_IMAGES))
    assert audit(run, deep=True).exit_code == 0
    assert run.info.starts[-1].passes == 2
    assert "taken for hung" in capsys.readouterr().err
