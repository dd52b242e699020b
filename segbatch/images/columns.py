"""The user's own columns: which types and names travel to the results, and as what.

Delta Lake and the readers around it know fewer types than Arrow does, and two sources may write
the same value in different ones. So every column is brought to one of a few types before the
manifest is frozen, and what has no counterpart is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from segbatch.errors import SourceError

BATCH_ROWS = 65_536  # of every stream of record batches

# Types that travel under another one; signed integers, so that every reader knows them.
_TRAVELS_AS = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
}
_TRAVELS = {
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
    pa.string(), pa.binary(), pa.date32(),
}  # fmt: skip


def travelling(type_: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one return a family
    """The type under which values of ``type_`` travel; a whole column of nulls stays ``null``.

    Raises ``TypeError`` for a type that has no counterpart in the results.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return travelling(type_.storage_type)
    if type_ in _TRAVELS or pa.types.is_null(type_):
        return type_
    if type_ in _TRAVELS_AS:
        return _TRAVELS_AS[type_]
    if pa.types.is_dictionary(type_):
        return travelling(type_.value_type)
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", "UTC" if type_.tz else None)
    if pa.types.is_fixed_size_binary(type_) and not pa.types.is_decimal(type_):
        return pa.binary()
    if pa.types.is_decimal(type_) and not pa.types.is_decimal256(type_):
        return pa.decimal128(type_.precision, type_.scale)
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _inside(field.type)) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_inside(type_.key_type), _inside(type_.item_type))
    if hasattr(type_, "value_field"):  # every kind of list
        return pa.list_(_inside(type_.value_type))
    raise TypeError(str(type_))


def _inside(type_: pa.DataType) -> pa.DataType:
    return _settled(travelling(type_))


def _settled(type_: pa.DataType) -> pa.DataType:
    """What is nothing but nulls everywhere becomes a string."""
    return pa.string() if pa.types.is_null(type_) else type_


def travelling_fields(schema: pa.Schema, origin: str) -> list[pa.Field]:
    """The columns of ``schema`` as they travel; ``origin`` names the table in errors.

    Raises ``SourceError`` for a type that cannot travel, naming every such column.
    """
    fields, refused = [], []
    for field in schema:
        try:
            fields.append(pa.field(field.name, travelling(field.type)))
        except TypeError as error:
            refused.append(f"{field.name} ({error})")
    if refused:
        raise SourceError(
            f"{origin}: results cannot hold the type of column {', '.join(refused)}: cast it, for"
            " example to a string or a number, or drop it"
        )
    return fields


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """``batch`` with exactly the columns of ``schema``: cast, or null where it has none.

    Raises ``pa.ArrowInvalid`` if a value does not fit, such as a timestamp beyond year 294,000.
    """
    present = set(batch.schema.names)
    return pa.record_batch(
        [
            _cast(batch.column(field.name), field.type)
            if field.name in present
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def _cast(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if array.type == type_:
        return array
    if array.null_count == len(array):  # there is no cast from null to every type
        return pa.nulls(len(array), type_)
    return pc.cast(array, options=pc.CastOptions(target_type=type_, allow_time_truncate=True))


def union(tables: Iterable[tuple[str, Sequence[pa.Field]]]) -> list[pa.Field]:
    """All columns of several tables by name; each table comes with what to call it in errors.

    A column that is null throughout one table takes its type from the others. Raises
    ``SourceError`` where two tables disagree about a type.
    """
    found: dict[str, tuple[pa.Field, str]] = {}
    for origin, fields in tables:
        for field in fields:
            known, first = found.get(field.name, (field, origin))
            if pa.types.is_null(known.type):
                known, first = field, origin
            elif field.type != known.type and not pa.types.is_null(field.type):
                raise SourceError(
                    f"{origin}: column {field.name} is {field.type}, but {known.type} in {first}:"
                    " give it one type, or rename it in one of them"
                )
            found[field.name] = known, first
    return [field for field, _ in found.values()]


def check_spelling(tables: Iterable[tuple[str, Sequence[pa.Field]]]) -> None:
    """Raise ``SourceError`` where two tables write one name in different case."""
    spelled: dict[str, tuple[str, str]] = {}
    for origin, fields in tables:
        for field in fields:
            name, first = spelled.setdefault(field.name.lower(), (field.name, origin))
            if name != field.name:
                raise SourceError(
                    f"{origin}: column {field.name} is called {name} in {first}: rename:"
                    f" {as_yaml({field.name: name})}"
                )


def settled(fields: Iterable[pa.Field]) -> list[pa.Field]:
    """``fields``, where a column of nothing but nulls has become a string column."""
    return [field.with_type(_settled(field.type)) for field in fields]


def renamed(names: Sequence[str], rename: Mapping[str, str], origin: str) -> list[str]:
    """``names`` with their new names. Raises ``SourceError`` if ``rename`` cannot be followed."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{origin}: has two columns named exactly {', '.join(twice)}")
    unknown = [name for name in rename if name not in names]
    if unknown:
        raise SourceError(f"{origin}: rename: no column {', '.join(unknown)}; {_there_are(names)}")
    return [rename.get(name, name) for name in names]


def uri_index(
    fields: Sequence[pa.Field], new_names: Sequence[str], uri_column: str, origin: str
) -> int:
    """Which column holds the URIs: ``uri_column`` is its new name, or else its old one.

    Raises ``SourceError`` with what mends it if there is none, or if it holds no strings.
    """
    old = [field.name for field in fields]
    names = new_names if uri_column in new_names else old
    if uri_column not in names:
        strings = [field.name for field in fields if pa.types.is_string(field.type)]
        likely = max(strings or old, key=_looks_like_uris)
        raise SourceError(
            f"{origin}: no column {uri_column}; {_there_are(old)}: say which one holds the URIs,"
            f" for example uri_column: {likely} or rename: {as_yaml({likely: 'uri'})}"
        )
    index = list(names).index(uri_column)
    if not pa.types.is_string(fields[index].type) and not pa.types.is_null(fields[index].type):
        raise SourceError(f"{origin}: column {old[index]} holds {fields[index].type} and not URIs")
    return index


def _looks_like_uris(name: str) -> int:
    words = ("key", "image", "file", "path", "s3", "url", "uri")
    return max((n + 1 for n, word in enumerate(words) if word in name.lower()), default=0)


def _there_are(names: Sequence[str]) -> str:
    return f"there are {', '.join(names)}"


def check_names(
    columns: Sequence[tuple[str, str]],
    reserved: Collection[str],
    rename: Mapping[str, str],
    origin: str,
) -> None:
    """Check the user's columns, given as ``(old name, new name)``.

    Raises ``SourceError`` with the ``rename`` that mends it for a name that, in any case, is in
    ``reserved`` or stands there twice, and for one that is empty or holds control characters.
    """
    unfit = {old: _fit(new) for old, new in columns if _fit(new) != new}
    if unfit:
        raise SourceError(
            f"{origin}: no column can be called {', '.join(map(repr, unfit))}: rename:"
            f" {as_yaml({**rename, **unfit})}"
        )
    kept = {name.lower() for name in reserved}
    seen: set[str] = set()
    all_names = kept | {new.lower() for _, new in columns}
    mend: dict[str, str] = {}
    for old, new in columns:
        if new.lower() in kept | seen:
            mend[old] = _free_name(new, all_names)
            all_names.add(mend[old].lower())
        seen.add(new.lower())
    if mend:
        reason = "belongs to segbatch" if {n.lower() for n in mend} & kept else "stands there twice"
        raise SourceError(
            f"{origin}: the name of column {', '.join(mend)} {reason} (upper and lower case are"
            f" the same): rename: {as_yaml({**rename, **mend})}"
        )


def _fit(name: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", "_", name) if name.strip() else "column"


def _free_name(name: str, taken: Collection[str]) -> str:
    candidates = [f"source_{name}", *(f"{name}_{number}" for number in range(2, 10_000))]
    return next(candidate for candidate in candidates if candidate.lower() not in taken)


def as_yaml(mapping: Mapping[str, str]) -> str:
    """``mapping`` as it can be typed into a job file, on one line."""
    return yaml.safe_dump(
        dict(mapping), default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
    ).strip()
