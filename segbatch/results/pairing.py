"""SQL that pairs the images of two runs, and measures how far apart their coverages are.

Images are joined on their URIs; if a URI occurs several times, its rows are joined in their order.
"""

from __future__ import annotations

from segbatch.masks.classes import Classes
from segbatch.results.database import quoted_name

PAIRED = "a.uri = b.uri AND a.nth = b.nth"  # of rows that `numbered` numbers


def numbered(view: str, columns: str) -> str:
    """The SELECT of ``columns`` of a run's rows, with ``nth``, which counts rows of one URI."""
    return (
        f"SELECT {columns}, row_number() OVER (PARTITION BY uri ORDER BY image_id) AS nth"
        f" FROM {view}"
    )


def coverage_of(field: str, column: str, classes: Classes) -> str:
    """A class's share in ``column``, a struct of coverages; null if the run does not have it."""
    return f"{column}.{quoted_name(field)}" if field in classes.fields else "NULL::FLOAT"


def coverage_distance(column_a: str, a: Classes, column_b: str, b: Classes) -> str:
    """The total variation distance of two coverages: half the sum of all absolute changes, 0 to 1.

    A class that one run does not have covers nothing there.
    """
    changes = [
        f"abs(coalesce({coverage_of(field, column_b, b)}, 0)"
        f" - coalesce({coverage_of(field, column_a, a)}, 0))"
        for field in dict.fromkeys([*a.fields, *b.fields])
    ]
    return f"({' + '.join(changes)}) / 2"
