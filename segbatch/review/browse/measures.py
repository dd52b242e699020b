"""The numbers that images of a run have: of each class, of formulas, and in the user's columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from segbatch.masks.classes import Classes
from segbatch.results.database import quoted_name, quoted_text

Group = Literal["coverage", "confidence", "uncertainty", "formulas", "change", "columns", "dates"]


@dataclass(frozen=True)
class Measure:
    """A number that images may have: ``name`` is unique, ``column`` and ``expression`` are SQL.

    Those of the group ``dates`` are moments, in seconds since 1970, UTC; a text may hold them too.
    ``is_whole`` says that the column holds integers, which may be ids of more digits than a double.
    """

    name: str
    group: Group
    label: str
    column: str
    is_whole: bool = False

    @property
    def expression(self) -> str:
        """A finite double or NULL: JSON has no infinity and no NaN."""
        number = f"{self.column}::DOUBLE"
        return f"CASE WHEN isfinite({number}) THEN {number} END"

    @property
    def exact(self) -> str:
        """The value to sort and to filter by: an integer where ``expression`` would round it."""
        return f"{self.column}::HUGEINT" if self.is_whole else self.expression

    def bound_literal(self, value: float | str) -> str:
        """A bound in SQL, in the precision of the column, so that 0.2 finds a stored 0.2.

        A text holds an integer that a double would round.
        """
        if isinstance(value, str):
            return f"{quoted_text(value)}::HUGEINT"
        is_double = self.group in ("columns", "dates", "change")
        return double(value) if is_double else f"{double(value)}::FLOAT"


def measures_in(
    schema: pa.Schema, classes: Classes, own_columns: Sequence[pa.Field]
) -> Iterator[Measure]:
    """The measures of a table; ``own_columns`` are the user's."""
    per_class: tuple[Group, ...] = ("coverage", "confidence")
    for group in per_class:
        for c in classes if group in schema.names else []:
            column = f"{group}.{quoted_name(c.field)}"
            yield Measure(f"{group}.{c.field}", group, c.name, column)
    if "uncertainty" in schema.names:
        yield Measure("uncertainty", "uncertainty", "uncertainty", "uncertainty")
    for field in schema.field("formulas").type if "formulas" in schema.names else []:
        column = f"formulas.{quoted_name(field.name)}"
        yield Measure(f"formulas.{field.name}", "formulas", field.name, column)
    for field in own_columns:
        column, kind = quoted_name(field.name), field.type
        if is_number(kind):
            is_decimal = pa.types.is_decimal(kind)
            is_whole = pa.types.is_integer(kind) or (is_decimal and kind.scale == 0)
            yield Measure(f"columns.{field.name}", "columns", field.name, column, is_whole)
        elif pa.types.is_temporal(kind):
            yield Measure(f"dates.{field.name}", "dates", field.name, f"epoch({column})")
        elif is_text(kind):
            # As TIMESTAMP, DuckDB would drop the zone. A text without a zone is in UTC.
            moment = f"epoch(TRY_CAST({column} AS TIMESTAMPTZ))"
            yield Measure(f"dates.{field.name}", "dates", field.name, moment)


def is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def double(value: float) -> str:
    return f"{quoted_text(repr(value))}::DOUBLE"  # a bare literal is a DECIMAL, which rounds
