"""The formats as users name them."""

from typing import get_args, get_type_hints

from segbatch.cli import runs
from segbatch.formats import FORMATS
from segbatch.results import points
from segbatch.review.export.export import TABLES, WRITERS


def test_every_format_is_read_or_written() -> None:
    assert all(format.reader or format.writer for format in FORMATS.values())


def test_the_command_line_exports_every_format_that_can_be_written() -> None:
    assert {*get_args(get_type_hints(runs.export_command)["to"])} == {
        *WRITERS,
        *TABLES,
        *points.FILES,
    }
