"""The view ``buildings(column)``: photographs grouped by a column of the user's.

    SELECT building FROM buildings(building_id) WHERE coverage.window > 0.4

Shares are of all pixels of a building's photographs, so that a large photograph counts more than a
small one. Formulas are computed from these shares, and not averaged: a mean of ratios is no ratio.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

import duckdb

from segbatch.errors import InputError
from segbatch.masks.classes import Classes
from segbatch.results.database import quoted_name, quoted_text
from segbatch.results.formulas import Formula
from segbatch.results.schema import FAILED, OK, RESERVED_COLUMNS

VIEW = "buildings"
COLUMNS = "run, building, images, failed, coverage, formulas, best_image, best_uri"
PARAMETER = "segbatch grouping column"  # no column has this name

A_TEXT = re.compile(rb"%s\s*\(\s*'([^']*)'" % VIEW.encode(), re.IGNORECASE)


def select_buildings(
    name: str,
    source: str,
    classes: Classes,
    formulas: Mapping[str, str],
    columns: Sequence[str],
) -> str:
    """The part of the view that comes from one run: SQL over its view ``source``.

    ``formulas`` are those of the job, by name; ``columns`` are those of ``source``.
    """
    shares = [f"{quoted_name(c.field)} := share_{c.id}" for c in classes]
    sums = [
        f"sum(pixels.{quoted_name(c.field)})::DOUBLE / {_PIXELS} AS share_{c.id}" for c in classes
    ]
    computed = [f", struct_pack({', '.join(_computed(classes, formulas))}) AS formulas"]
    # The least uncertain image, or where nothing says how certain the model is, the largest.
    uncertainty = "coalesce(uncertainty, 2)" if "uncertainty" in columns else "2"
    best = f"({uncertainty}, -width::BIGINT * height)"
    return (
        f"SELECT {quoted_text(name)} AS run, building, images, failed,"
        f" struct_pack({', '.join(shares)}) AS coverage{''.join(computed if formulas else [])},"
        " best_image, best_uri"
        f" FROM (SELECT {quoted_name(PARAMETER)} AS building,"
        f" count(*) FILTER (status = '{OK}') AS images,"
        f" count(*) FILTER (status = '{FAILED}') AS failed, {', '.join(sums)},"
        f" arg_min(image_id, {best}) FILTER (status = '{OK}') AS best_image,"
        f" arg_min(uri, {best}) FILTER (status = '{OK}') AS best_uri"
        f" FROM {source} GROUP BY ALL)"
    )


_PIXELS = "nullif(sum(mask_width::BIGINT * mask_height), 0)"


def _computed(classes: Classes, formulas: Mapping[str, str]) -> Iterator[str]:
    for name, text in formulas.items():
        expression = Formula.parse(name, text, classes).as_sql(lambda class_id: f"share_{class_id}")
        yield f"{quoted_name(name)} := {expression}"


def create_buildings(selects: Sequence[str]) -> str:
    """The statement that creates the view from the parts of the runs."""
    body = "\nUNION ALL BY NAME\n".join(selects)
    return f"CREATE MACRO {VIEW}({quoted_name(PARAMETER)}) AS TABLE {body}"


def refuse_text(query: str) -> None:
    """Refuse a column in single quotes, which would be one group of that text.

    Raises :class:`~segbatch.errors.InputError`.
    """
    text = query.encode()  # offsets count bytes
    for start, kind in duckdb.tokenize(query):
        if kind == duckdb.token_type.identifier and (found := A_TEXT.match(text, start)):
            column = found[1].decode()
            raise InputError(
                f"{VIEW}('{column}'): a text is no column: write {VIEW}({column}) without quotes"
            )


def own_columns(columns: Sequence[str]) -> list[str]:
    """The user's columns among those of the view ``images``."""
    return [column for column in columns if column not in RESERVED_COLUMNS]


def find_column(option: str, name: str, columns: Sequence[str]) -> str:
    """The user's column of this name, in any case, among ``columns`` of a view.

    Raises :class:`~segbatch.errors.InputError`, which names ``option``.
    """
    own = {column.lower(): column for column in own_columns(columns)}
    if name.lower() in own:
        return own[name.lower()]
    if not own:
        raise InputError(
            f"{option} {name}: the run has no columns of yours; they come from a manifest"
        )
    close = get_close_matches(name.lower(), own, n=1)
    hint = f"did you mean {own[close[0]]}?" if close else f"there are {', '.join(own.values())}"
    raise InputError(f"{option} {name}: the run has no column {name} of yours; {hint}")
