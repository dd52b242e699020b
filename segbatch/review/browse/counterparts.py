"""Which image of another run is which of this one, and how much its coverage changed.

As in ``segbatch diff``, images are joined on their URIs, and those of one URI in their order.
"""

from __future__ import annotations

import duckdb

from segbatch.results.database import register_filesystems, scan_run
from segbatch.results.pairing import PAIRED, coverage_distance, numbered
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import OK

COUNTERPARTS = "segbatch.counterparts"  # image_id, other_id, coverage_distance
COVERAGE_DISTANCE = "coverage_distance"


def create_counterparts(
    con: duckdb.DuckDBPyConnection, source: str, run: RunFolder, other: RunFolder
) -> None:
    """Create the table ``COUNTERPARTS`` of the images of ``source``, the rows of ``run``, that are
    in ``other`` too.

    ``coverage_distance`` is that of a :class:`~segbatch.results.diff.Diff`; null unless both are
    ok. Raises ``duckdb.Error``, and ``OSError`` if storage fails.
    """
    register_filesystems(con, [other.uri])
    others = scan_run(con, "others", other).view
    columns = "image_id, uri, status, coverage"
    distance = coverage_distance("a.coverage", run.classes, "b.coverage", other.classes)
    con.execute(
        f"CREATE TABLE {COUNTERPARTS} AS SELECT a.image_id, b.image_id AS other_id,"
        f" CASE WHEN a.status = '{OK}' AND b.status = '{OK}' THEN ({distance})::DOUBLE END"
        f" AS {COVERAGE_DISTANCE}"
        f" FROM ({numbered(source, columns)}) AS a JOIN ({numbered(others, columns)}) AS b"
        f" ON {PAIRED}"
    )
