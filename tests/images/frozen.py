"""Manifests as a run freezes them, for the tests of sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from segbatch.config.images import parse_source
from segbatch.images import manifest
from segbatch.results.schema import RESERVED_COLUMNS


def frozen(tmp_path: Path, source: Any, folder: str = "run") -> pa.Table:
    """The rows of one source, as the run ``folder`` freezes and reads them."""
    where = str(tmp_path / folder / "manifest")
    made = manifest.freeze(
        [parse_source(source)], where, reserved=RESERVED_COLUMNS, leave_out=str(tmp_path / folder)
    )
    return pa.concat_tables(manifest.read_rows(where, file) for file in made.files)
