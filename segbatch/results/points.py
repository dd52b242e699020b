"""Writes images as points on the Earth, for maps: GeoParquet and GeoJSON.

The coordinates are two columns of the user's, in degrees of WGS 84: those that ``exif: true`` adds,
or others of the usual names. An image without them is no point.
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
_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])  # WKB


class Coordinates(NamedTuple):
    """The names of the columns of a run's coordinates."""

    latitude: str
    longitude: str

    @property
    def are_known(self) -> str:
        """SQL: whether an image has coordinates."""
        latitude, longitude = map(quoted_name, self)
        return f"{latitude} BETWEEN -90 AND 90 AND {longitude} BETWEEN -180 AND 180"


def coordinates_in(rows: duckdb.DuckDBPyRelation) -> Coordinates | None:
    """The columns of coordinates among those of ``rows``, if there are any."""
    numbers = {
        name.lower(): name
        for name, kind in zip(rows.columns, rows.types, strict=True)
        if kind.id in _NUMBERS
    }
    for latitude, longitude in _NAMES:
        if latitude in numbers and longitude in numbers:
            return Coordinates(numbers[latitude], numbers[longitude])
    return None


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
    latitude, longitude = map(quoted_name, coordinates)
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
    latitude, longitude = map(quoted_name, coordinates)
    bounds = f"min({longitude}), min({latitude}), max({longitude}), max({latitude})"
    [bbox] = select_from(rows, f"SELECT {bounds} FROM answer").fetchall()
    column = {"encoding": "WKB", "geometry_types": ["Point"], "bbox": [float(b) for b in bbox]}
    name = _geometry_column(rows.columns)
    geo = {"version": "1.1.0", "primary_column": name, "columns": {name: column}}
    reader = select_from(rows, "FROM answer").to_arrow_reader(BATCH_ROWS)
    schema = reader.schema.append(pa.field(name, pa.binary()))
    schema = schema.with_metadata({"geo": json.dumps(geo)})
    with pq.ParquetWriter(result, schema, compression="zstd") as writer:
        for batch in reader:
            points = np.empty(batch.num_rows, _POINT)
            points["order"], points["kind"] = 1, 1  # little-endian; a point
            points["x"] = batch.column(coordinates.longitude).to_numpy(zero_copy_only=False)
            points["y"] = batch.column(coordinates.latitude).to_numpy(zero_copy_only=False)
            geometry = pa.array([point.tobytes() for point in points], pa.binary())
            writer.write_batch(pa.record_batch([*batch.columns, geometry], schema=schema))


def _geometry_column(taken: Sequence[str]) -> str:
    """A name for the column of points that no column of the run has, in any case."""
    name, names = GEOMETRY, {column.lower() for column in taken}
    while name in names:
        name += "_"
    return name
