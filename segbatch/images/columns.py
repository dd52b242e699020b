"""The user's own columns: the types and names that they may have in the results.

Delta Lake and its readers know fewer types than Arrow does, and two sources may store the same
values in different types. So every column is cast to one of a few types before the manifest is
frozen, and a column that has no counterpart is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from segbatch.config.images import IMAGE_EXTENSIONS
from segbatch.errors import SourceError
from segbatch.storage.uris import scheme_of

BATCH_ROWS = 65_536  # of every stream of record batches

# Types that become another one in the results; integers become signed ones, which all readers know.
_RESULT_TYPES = {
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
_KEPT_TYPES = {
    pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
    pa.string(), pa.binary(), pa.date32(),
}  # fmt: skip


def result_fields(schema: pa.Schema, origin: str) -> list[pa.Field]:
    """The columns of ``schema`` with the types that they have in the results; a column of nulls
    keeps the null type. ``origin`` names the table in errors.

    Raises ``SourceError`` for types that results cannot hold, naming every such column.
    """
    fields, refused = [], []
    for field in schema:
        try:
            fields.append(pa.field(field.name, _result_type(field.type)))
        except TypeError as error:
            refused.append(f"{field.name} ({error})")
    if refused:
        raise SourceError(
            f"{origin}: results cannot hold the type of column {', '.join(refused)}: cast it, for"
            " example to a string or a number, or drop it"
        )
    return fields


def _result_type(type_: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one return a family
    """The type that values of ``type_`` have in the results; the null type stays.

    Raises ``TypeError`` for a type that has no counterpart in the results.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return _result_type(type_.storage_type)
    if type_ in _KEPT_TYPES or pa.types.is_null(type_):
        return type_
    if type_ in _RESULT_TYPES:
        return _RESULT_TYPES[type_]
    if pa.types.is_dictionary(type_):
        return _result_type(type_.value_type)
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", "UTC" if type_.tz else None)
    if pa.types.is_fixed_size_binary(type_) and not pa.types.is_decimal(type_):
        return pa.binary()
    if pa.types.is_decimal(type_) and not pa.types.is_decimal256(type_):
        return pa.decimal128(type_.precision, type_.scale)
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _nested_type(field.type)) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_nested_type(type_.key_type), _nested_type(type_.item_type))
    if hasattr(type_, "value_field"):  # every kind of list
        return pa.list_(_nested_type(type_.value_type))
    raise TypeError(str(type_))


def _nested_type(type_: pa.DataType) -> pa.DataType:
    """As :func:`_result_type`, for a type inside a struct, map or list."""
    return _null_as_string(_result_type(type_))


def _null_as_string(type_: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_null(type_) else type_


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """``batch`` with exactly the columns of ``schema``: cast, or null where it has none.

    Raises ``pa.ArrowInvalid`` if a value does not fit, such as a timestamp beyond year 294,000.
    """
    present = set(batch.schema.names)
    return pa.record_batch(
        [
            _cast(batch.column(field.name), field)
            if field.name in present
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def _cast(array: pa.Array, field: pa.Field) -> pa.Array:
    if array.type == field.type:
        return array
    if array.null_count == len(array):  # there is no cast from null to every type
        return pa.nulls(len(array), field.type)
    options = pc.CastOptions(target_type=field.type, allow_time_truncate=True)
    try:
        return pc.cast(array, options=options)
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"column {field.name}: {error}") from error


def union(tables: Iterable[tuple[str, Sequence[pa.Field]]]) -> list[pa.Field]:
    """All columns of several tables by name; a table is its name for errors, and its columns.

    A column of nothing but nulls in one table takes its type from the others, and numbers of
    several types get one that holds all. Raises ``SourceError`` where two tables disagree about a
    type.
    """
    found: dict[str, tuple[pa.Field, str]] = {}
    for origin, fields in tables:
        for field in fields:
            known, first = found.get(field.name, (field, origin))
            if pa.types.is_null(known.type):
                known, first = field, origin
            elif field.type != known.type and not pa.types.is_null(field.type):
                common = _common_number(known.type, field.type)
                if common is None:
                    raise SourceError(
                        f"{origin}: column {field.name} is {field.type}, but {known.type} in"
                        f" {first}: give it one type, or list them as two sources and rename it in"
                        " one of them"
                    )
                known = known.with_type(common)
            found[field.name] = known, first
    return [field for field, _ in found.values()]


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type for numbers of two types: pandas and Spark write whole numbers as doubles where some
    are missing. A whole number that no double holds is refused when it is cast.
    """
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return max(one, other, key=lambda type_: type_.bit_width)
    is_number = all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in (one, other))
    return pa.float64() if is_number else None


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


def without_null_type(fields: Iterable[pa.Field]) -> list[pa.Field]:
    """``fields``, where columns of nothing but nulls become string columns."""
    return [field.with_type(_null_as_string(field.type)) for field in fields]


def renamed(names: Sequence[str], rename: Mapping[str, str], origin: str) -> list[str]:
    """The new ``names``. Raises ``SourceError`` if two are equal or ``rename`` names no column."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{origin}: has two columns named exactly {', '.join(twice)}")
    unknown = [name for name in rename if name not in names]
    if unknown:
        raise SourceError(f"{origin}: rename: no column {', '.join(unknown)}; {_list_names(names)}")
    return [rename.get(name, name) for name in names]


def uri_index(
    fields: Sequence[pa.Field], new_names: Sequence[str], uri_column: str, origin: str
) -> int:
    """Index of the column that holds the URIs: ``uri_column`` is its new name, else its old one.

    Raises ``SourceError``, naming the key to set, if there is no such column, and if it holds no
    strings.
    """
    old = [field.name for field in fields]
    names = new_names if uri_column in new_names else old
    if uri_column not in names or _is_location(uri_column):
        if any(map(_is_location, old)):
            raise SourceError(
                f"{origin}: its first line is no header: put a line with the names of the columns"
                " above it, `uri` for that of the URIs"
            )
        if old[0].startswith("#"):
            raise SourceError(f"{origin}: its first line is a comment and no header: delete it")
        strings = [field.name for field in fields if pa.types.is_string(field.type)]
        likely = max(strings or old, key=_uri_likeness)
        raise SourceError(
            f"{origin}: no column {uri_column}; {_list_names(old)}: say which one holds the URIs,"
            f" for example {as_yaml({'uri_column': likely})[1:-1]} or rename:"
            f" {as_yaml({likely: 'uri'})}"
        )
    index = list(names).index(uri_column)
    type_ = fields[index].type
    if not (pa.types.is_string(type_) or pa.types.is_binary(type_) or pa.types.is_null(type_)):
        raise SourceError(f"{origin}: column {old[index]} holds {fields[index].type} and not URIs")
    return index


def _is_location(name: str) -> bool:
    """Whether what should be the name of a column is a URI or a path of an image."""
    is_image = PurePosixPath(name.lower()).suffix.lstrip(".") in IMAGE_EXTENSIONS
    return bool(scheme_of(name)) or is_image


def _uri_likeness(name: str) -> int:
    words = ("key", "image", "file", "path", "s3", "url", "uri")
    return max((n + 1 for n, word in enumerate(words) if word in name.lower()), default=0)


def _list_names(names: Sequence[str]) -> str:
    return f"there are {', '.join(names)}"


def check_names(
    columns: Sequence[tuple[str, str]],
    reserved: Collection[str],
    rename: Mapping[str, str],
    origin: str,
) -> None:
    """Check the user's columns, given as ``(old name, new name)``.

    Raises ``SourceError`` with the ``rename`` to set for a name that is in ``reserved`` or occurs
    twice, in upper or lower case, and for one that is empty or holds control characters.
    """
    invalid = {old: _valid_name(new) for old, new in columns if _valid_name(new) != new}
    if invalid:
        raise SourceError(
            f"{origin}: no column can be called {', '.join(map(repr, invalid))}: rename:"
            f" {as_yaml({**rename, **invalid})}"
        )
    reserved_names = {name.lower() for name in reserved}
    seen: set[str] = set()
    all_names = reserved_names | {new.lower() for _, new in columns}
    renames: dict[str, str] = {}
    for old, new in columns:
        if new.lower() in reserved_names | seen:
            renames[old] = _free_name(new, all_names)
            all_names.add(renames[old].lower())
        seen.add(new.lower())
    if renames:
        is_reserved = any(old in renames and new.lower() in reserved_names for old, new in columns)
        reason = "belongs to segbatch" if is_reserved else "occurs twice"
        raise SourceError(
            f"{origin}: the name of column {', '.join(renames)} {reason} (upper and lower case are"
            f" the same): rename: {as_yaml({**rename, **renames})}"
        )


def _valid_name(name: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", "_", name) if name.strip() else "column"


def _free_name(name: str, taken: Collection[str]) -> str:
    candidates = [f"source_{name}", *(f"{name}_{number}" for number in range(2, 10_000))]
    return next(candidate for candidate in candidates if candidate.lower() not in taken)


def as_yaml(mapping: Mapping[str, str]) -> str:
    """``mapping`` as it can be typed into a job file, on one line."""
    return yaml.safe_dump(
        dict(mapping), default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
    ).strip()
