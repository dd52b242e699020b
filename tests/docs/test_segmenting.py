"""The commands of docs/segmenting.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segbatch.run import open_run
from tests.collection import jpeg
from tests.conftest import ROOT, S3


@pytest.mark.long
def test_commands_of_the_page_run(s3: S3, ray_address: str, model_uri: str, tmp_path: Path) -> None:
    s3.client.create_bucket(Bucket="bucket")
    for number in range(1, 13):
        s3.put(f"s3://bucket/facades/{number:03d}.jpg", jpeg(number, 192, 256))
    for file in Path(model_uri).iterdir():
        s3.put(f"s3://bucket/models/facades/{file.name}", file.read_bytes())
    page = (ROOT / "docs" / "segmenting.md").read_text()
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PATH": programs, "RAY_ADDRESS": ray_address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert open_run("s3://bucket/runs/first").audit().exit_code == 0
    assert (tmp_path / "overlay.png").stat().st_size > 1000
    assert "<html" in (tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "overlays").rglob("*.*"))) == 5
