"""Writes images as points on the Earth, for maps: GeoParquet and GeoJSON.

The coordinates are two columns of the user's, in degrees of WGS 84: those that ``exif: true`` adds,
or others of the usual names, as numbers or as text. An image without them is no point.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segbatch import storage
from segbatch.errors import InputError
from segbatch.results.database import quoted_name, quoted_text, select_from
from segbatch.results.jsonvalues import json_columns
from segbatch.results.query import query_failure

PointFormat = Literal["geoparquet", "geojson"]
FILES: dict[PointFormat, str] = {"geoparquet": "images.parquet", "geojson": "images.geojson"}
GEOMETRY = "geometry"
BATCH_ROWS = 65_536

# The names under which tables have coordinates, in lower case, the likeliest first.
_NAMES = (("latitude", "longitude"), ("lat", "lon"), ("lat", "lng"), ("lat", "long"))
_NUMBERS = ("double", "float", "decimal", "tinyint", "smallint", "integer", "bigint")
_AS_NUMBER = "try_cast"
_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])  # WKB


class Coordinates(NamedTuple):
    """SQL for the degrees of an image of a run."""

    latitude: str
    longitude: str

    @property
    def are_known(self) -> str:
        """SQL: whether an image has coordinates."""
        return f"{self.latitude} BETWEEN -90 AND 90 AND {self.longitude} BETWEEN -180 AND 180"


def coordinates_in(rows: duckdb.DuckDBPyRelation) -> Coordinates | None:
    """The columns of coordinates among those of ``rows``, if there are any.

    Columns of text are some if a row has coordinates there: a CSV with 47.370000 gives text.
    """
    degrees = {}
    for name, kind in zip(rows.columns, rows.types, strict=True):
        if kind.id in _NUMBERS:
            degrees[name.lower()] = quoted_name(name)
        elif kind.id == "varchar":
            degrees[name.lower()] = f"{_AS_NUMBER}({quoted_name(name)} AS DOUBLE)"
    pairs = [Coordinates(degrees[y], degrees[x]) for y, x in _NAMES if {y, x} <= degrees.keys()]
    for found in sorted(pairs, key=_has_text):
        if not _has_text(found) or rows.filter(found.are_known).limit(1).fetchall():
            return found
    return None


def _has_text(coordinates: Coordinates) -> bool:
    return any(degrees.startswith(_AS_NUMBER) for degrees in coordinates)


def write_points(
    rows: duckdb.DuckDBPyRelation, coordinates: Coordinates, to: PointFormat, out: str
) -> None:
    """Write ``rows``, which all have coordinates, to the URI ``out``, with their other columns.

    Raises :class:`~segbatch.errors.InputError` if ``out`` cannot be written, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        result = Path(folder, "result")
        try:
            if to == "geojson":
                _write_geojson(rows, coordinates, result)
            else:
                _write_geoparquet(rows, coordinates, result)
        except duckdb.Error as error:
            raise query_failure(error) from error
        with storage.translate_errors("cannot write", InputError):
            storage.upload(result, out)


def _write_geojson(rows: duckdb.DuckDBPyRelation, coordinates: Coordinates, result: Path) -> None:
    """RFC 7946."""
    latitude, longitude = coordinates
    properties = ", ".join(f"{name} := {value}" for value, name in json_columns(rows))
    # One SELECT, so that no column of the user's is taken for a member of the feature.
    features = (
        f"SELECT 'Feature' AS type, {{'type': 'Point', 'coordinates': [{longitude}, {latitude}]}}"
        f" AS geometry, struct_pack({properties}) AS properties FROM answer"
    )
    lines = result.with_suffix(".lines")
    select_from(rows, f"COPY ({features}) TO {quoted_text(str(lines))} (FORMAT json)")
    with lines.open(encoding="utf-8") as source, result.open("w", encoding="utf-8") as sink:
        sink.write('{"type":"FeatureCollection","features":[')
        for number, line in enumerate(source):
            sink.write(",\n" * (number > 0) + line.rstrip("\n"))
        sink.write("]}\n")


def _write_geoparquet(
    rows: duckdb.DuckDBPyRelation, coordinates: Coordinates, result: Path
) -> None:
    """GeoParquet 1.1: a column of WKB points in longitude and latitude (OGC:CRS84)."""
    latitude, longitude = coordinates
    bounds = f"min({longitude}), min({latitude}), max({longitude}), max({latitude})"
    [bbox] = select_from(rows, f"SELECT {bounds} FROM answer").fetchall()
    column = {"encoding": "WKB", "geometry_types": ["Point"], "bbox": [float(b) for b in bbox]}
    name = _geometry_column(rows.columns)
    geo = {"version": "1.1.0", "primary_column": name, "columns": {name: column}}
    degrees = f"{longitude}::DOUBLE AS __segbatch_x, {latitude}::DOUBLE AS __segbatch_y"
    reader = select_from(rows, f"SELECT *, {degrees} FROM answer").to_arrow_reader(BATCH_ROWS)
    schema = pa.schema([*list(reader.schema)[:-2], pa.field(name, pa.binary())])
    schema = schema.with_metadata({"geo": json.dumps(geo)})
    with pq.ParquetWriter(result, schema, compression="zstd") as writer:
        for batch in reader:
            points = np.empty(batch.num_rows, _POINT)
            points["order"], points["kind"] = 1, 1  # little-endian; a point
            *columns, points["x"], points["y"] = batch.columns
            geometry = pa.array([point.tobytes() for point in points], pa.binary())
            writer.write_batch(pa.record_batch([*columns, geometry], schema=schema))


def _geometry_column(taken: Sequence[str]) -> str:
    """A name for the column of points that no column of the run has, in any case."""
    name, names = GEOMETRY, {column.lower() for column in taken}
    while name in names:
        name += "_"
    return name
