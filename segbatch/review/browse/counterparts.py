"""Which image of another run is which of this one, and how much its coverage changed.

As in ``segbatch diff``, images are joined on their URIs, and those of one URI in their order.
"""

from __future__ import annotations

import duckdb

from segbatch.results.database import quoted_name, register_filesystems, scan_run
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import OK

COUNTERPARTS = "segbatch.counterparts"  # image_id, other_id, change
CHANGE = "coverage_change"


def create_counterparts(
    con: duckdb.DuckDBPyConnection, source: str, run: RunFolder, other: RunFolder
) -> None:
    """Create the table ``COUNTERPARTS`` of the images of ``source``, the rows of ``run``, that are
    in ``other`` too.

    ``change`` is the total variation distance of the coverages, from the other run to this one: 0
    to 1, null unless both are ok. Raises ``duckdb.Error``, and ``OSError`` if storage fails.
    """
    register_filesystems(con, [other.uri])
    others = scan_run(con, "others", other).view
    changes = [
        f"abs({_share('a', field, run)} - {_share('b', field, other)})"
        for field in dict.fromkeys([*run.classes.fields, *other.classes.fields])
    ]
    con.execute(
        f"CREATE TABLE {COUNTERPARTS} AS SELECT a.image_id, b.image_id AS other_id,"
        f" CASE WHEN a.status = '{OK}' AND b.status = '{OK}'"
        f" THEN ({' + '.join(changes)})::DOUBLE / 2 END AS change"
        f" FROM ({_numbered(source)}) AS a JOIN ({_numbered(others)}) AS b USING (uri, nth)"
    )


def _share(side: str, field: str, run: RunFolder) -> str:
    has_class = field in run.classes.fields
    return f"coalesce({side}.coverage.{quoted_name(field)}, 0)" if has_class else "0"


def _numbered(source: str) -> str:
    return (
        "SELECT image_id, uri, status, coverage,"
        f" row_number() OVER (PARTITION BY uri ORDER BY image_id) AS nth FROM {source}"
    )
