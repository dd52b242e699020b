"""SQL that makes values fit for JSON, which has no infinity, no NaN and no bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb

from segbatch.results.database import quoted_name, quoted_text


def json_columns(relation: duckdb.DuckDBPyRelation) -> Iterator[tuple[str, str]]:
    """The columns of ``relation``: an SQL expression that fits JSON, and the quoted name."""
    for name, kind in zip(relation.columns, relation.types, strict=True):
        yield json_value(quoted_name(name), kind), quoted_name(name)


def json_value(value: str, kind: Any) -> str:
    """SQL: ``value`` of the type ``kind`` with null for numbers that are not finite, and bytes in
    base64; the same inside of lists, structs and maps, at any depth.
    """
    match kind.id:
        case "float" | "double":
            return f"CASE WHEN isfinite({value}) THEN {value} END"
        case "blob":
            return f"to_base64({value})"
        case "list" | "array":
            [(_, inner), *_] = kind.children
            return _json_items(value, inner)
        case "map":
            [_, (_, inner)] = kind.children
            return f"map(map_keys({value}), {_json_items(f'map_values({value})', inner)})"
        case "struct":
            fields = [
                f"{quoted_name(name)} := "
                + json_value(f"struct_extract({value}, {quoted_text(name)})", inner)
                for name, inner in kind.children
            ]
            # Without the condition, a null would become a struct of nulls.
            value = f"CASE WHEN {value} IS NOT NULL THEN struct_pack({', '.join(fields)}) END"
        case "tuple":
            places = [
                json_value(f"{value}[{place}]", inner)
                for place, (_, inner) in enumerate(kind.children, 1)
            ]
            value = f"CASE WHEN {value} IS NOT NULL THEN row({', '.join(places)}) END"
    return value


def _json_items(items: str, kind: Any) -> str:
    item = json_value("item", kind)
    return items if item == "item" else f"list_transform({items}, lambda item: {item})"
