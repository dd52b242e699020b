"""Fixtures of the tests of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import S3


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, once on disk and once in object storage."""
    if request.param == "disk":
        return str(tmp_path / "data")
    s3: S3 = request.getfixturevalue("s3")
    return s3.uri("data")
