"""Exports a run: its images in the formats of other tools, or its rows as one table.

    choose ──► read ──► convert ──► write ──► share
    SQL        masks,   one image   files     lists and documents,
               photos   a thread              once all images are there

An export that was interrupted resumes: a claim in the folder says what is being exported, and an
image whose last file exists is skipped. That holds on disk and object storage, which write a file
whole or not at all; elsewhere all files are written again.

Memory does not grow with the number of images: DuckDB spills the table of their names to disk, and
the entries in shared files are collected on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, NamedTuple

import duckdb
import numpy as np

from segbatch import storage
from segbatch.config.job import Limits
from segbatch.console import Bar
from segbatch.errors import CredentialsRefused, Damaged, InputError, RunError, SourceError
from segbatch.formats import FORMATS
from segbatch.formats.format import Photograph, Photos, SegmentedImage, Writer
from segbatch.results import buildings, points
from segbatch.results.answer import write_answer
from segbatch.results.database import open_database, quoted_name
from segbatch.results.log import read_columns
from segbatch.results.query import query_failure, sql
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import OK
from segbatch.results.table import kind_in_name
from segbatch.results.threads import map_in_threads
from segbatch.review.export.destination import Claim, Names, SharedFiles
from segbatch.review.export.filenames import name_images
from segbatch.review.export.photographs import read_photograph
from segbatch.review.pictures import label_map_at, limits_of
from segbatch.storage.uris import without_query

WRITERS = {name: format.writer for name, format in FORMATS.items() if format.writer is not None}

Table = Literal["csv", "parquet"]
TABLES: Mapping[str, Table] = {"csv": "csv", "parquet": "parquet"}

THREADS = 8  # each holds a photograph, its mask, and the files made from them
MEMORY = "1GB"  # of the table of names
MAX_NAMED = 10  # images whose problem is reported one by one; the others are only counted
DAMAGED = "damaged mask"


@dataclass
class Exported:
    """The outcome of an export, in images.

    ``before`` of the ``written`` ones existed already. ``left_out`` counts images by reason;
    ``unread`` names the first ten whose photograph or mask could not be used, with the reason.
    """

    chosen: int = 0
    written: int = 0
    before: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        """Photographs that a later attempt may be able to read."""
        return sum(self.left_out[f"photograph {kind}"] for kind in ("timeout", "unavailable"))

    def line(self, folder: str) -> str:
        """The outcome on one line."""
        before = [f"{self.before:,} of them were there"] if self.before else []
        left_out = (f"{number:,} left out: {why}" for why, number in self.left_out.items())
        written = f"{self.written:,} of {self.chosen:,} images in {folder}"
        return "; ".join([written, *before, *left_out])


def export(
    run: RunFolder,
    folder: str,
    to: str,
    *,
    where: str | None = None,
    limit: int | None = None,
    by: str | None = None,
) -> Exported:
    """Write the images of ``run`` into ``folder``, any URI.

    ``folder`` is new or empty, or holds the same export, interrupted: then only what is missing is
    written. ``to`` is a key of :data:`WRITERS`, or of :data:`TABLES` for the view ``wide`` as one
    file, ``wide.csv`` or ``wide.parquet``, or one of :data:`~segbatch.results.points.FILES` for the
    images as points, with the columns of ``wide``. With ``by``, a column of the user's, a table has
    the rows of the view ``buildings`` instead, ``buildings.csv`` or ``buildings.parquet``.
    ``where`` is an SQL condition over the view ``images``; of the images that match, the first
    ``limit`` by ``image_id`` are taken.

    Left out and counted are images without a mask, those whose photograph has disappeared or
    changed its size, and, for points, those without coordinates.

    Raises :class:`~segbatch.errors.InputError` for a folder, a format or a condition that cannot be
    used, :class:`~segbatch.errors.CredentialsRefused`, ``OSError`` if storage fails.
    """
    if to not in (*WRITERS, *TABLES, *points.FILES):
        raise InputError(f"--to {to}: one of {', '.join((*WRITERS, *TABLES, *points.FILES))}")
    if by is not None and to not in TABLES:
        raise InputError(f"--by {by}: groups are rows of a table: --to {' or --to '.join(TABLES)}")
    table = run.table("rows")
    version = table.version if table else None
    # Of all images, the names are the same either way, and the claim is that of earlier versions.
    names: Names = "export" if where is None and limit is None else "run"
    claim = Claim(run.uri, to, where, limit, version, names)
    begun = claim.find(folder)
    claim = begun or claim
    condition = f" WHERE (\n{where}\n)" if where is not None else ""
    rest = f"{condition} ORDER BY image_id" + (f" LIMIT {limit}" if limit is not None else "")
    try:
        if by is not None:
            return _export_buildings(run, folder, TABLES[to], by, is_filtered=bool(where or limit))
        if to in TABLES:
            return _export_table(run, folder, TABLES[to], rest)
        if to in points.FILES:
            return _export_points(run, folder, to, rest)
        chosen = sql([run], f"SELECT image_id, uri, status, width, height FROM images{rest}")
        exported = _export_images(
            run, folder, WRITERS[to], chosen, claim, is_begun=begun is not None
        )
    except duckdb.Error as error:
        raise query_failure(error) from error
    except PermissionError as error:
        raise InputError(f"permission denied: {storage.one_line(error)}") from error
    if not exported.unanswered:
        claim.give_up(folder)
    return exported


def _export_table(run: RunFolder, folder: str, to: Table, rest: str) -> Exported:
    rows = sql(
        [run],
        f"SELECT * FROM wide WHERE image_id IN (SELECT image_id FROM images{rest})"
        " ORDER BY image_id",
    )
    write_answer(rows, to, storage.join(folder, f"wide.{to}"))
    [(num_rows,)] = rows.count("*").fetchall()
    return Exported(num_rows, num_rows)


def _export_buildings(
    run: RunFolder, folder: str, to: Table, by: str, *, is_filtered: bool
) -> Exported:
    if is_filtered:
        raise InputError(
            f"--by {by}: groups are of all images, without --where and --limit; segbatch query"
            f" selects among groups, from {buildings.VIEW}({by})"
        )
    column = buildings.find_column("--by", by, sql([run], "FROM images LIMIT 0").columns)
    rows = sql([run], f"FROM {buildings.VIEW}({quoted_name(column)}) ORDER BY building")
    write_answer(rows, to, storage.join(folder, f"{buildings.VIEW}.{to}"))
    [(num_images,)] = rows.aggregate("coalesce(sum(images + failed), 0)").fetchall()
    return Exported(num_images, num_images)


def _export_points(run: RunFolder, folder: str, to: points.PointFormat, rest: str) -> Exported:
    coordinates = points.coordinates_in(sql([run], "FROM wide"))
    if coordinates is None:
        raise InputError(
            f"{run.uri}: has no coordinates: segment with images: {{…, exif: true}}, or give the"
            " images columns latitude and longitude in a manifest"
        )
    chosen = f"SELECT image_id FROM images{rest}"
    [(num_chosen,)] = sql([run], f"SELECT count(*) FROM ({chosen})").fetchall()
    rows = sql(
        [run],
        f"SELECT * FROM wide WHERE image_id IN ({chosen}) AND {coordinates.are_known}"
        " ORDER BY image_id",
    )
    [(num_rows,)] = rows.count("*").fetchall()
    if not num_rows:
        raise InputError(f"{run.uri}: none of {num_chosen:,} images has coordinates")
    points.write_points(rows, coordinates, to, storage.join(folder, points.FILES[to]))
    missing = num_chosen - num_rows
    left_out = Counter({"no coordinates": missing} if missing else {})
    return Exported(num_chosen, num_rows, left_out=left_out)


# --------------------------------------------------------------------------------------- images


def _export_images(
    run: RunFolder,
    folder: str,
    writer: Writer,
    chosen: duckdb.DuckDBPyRelation,
    claim: Claim,
    *,
    is_begun: bool,
) -> Exported:
    con = open_database()
    con.execute(f"SET memory_limit = '{MEMORY}'")
    exported = _name_images(con, run, chosen, claim)
    if not exported.chosen:
        condition = "" if claim.where is None else f" where {claim.where}"
        raise InputError(f"{run.uri}: has no image{condition}")
    if not is_begun:
        claim.stake(folder)
    keeps_files = is_begun and storage.writes_whole(folder)
    converter = _Converter(run, folder, writer, limits_of(run), keeps_files)
    done, started = 0, monotonic()
    shared = writer.shared(run.classes, run.uri)
    with SharedFiles(shared) as shared_files, Bar("export", exported.chosen) as bar:
        for outcome in map_in_threads(converter.convert, _rows_with_masks(con, run), THREADS):
            if isinstance(outcome, _Written):
                exported.written += 1
                exported.before += outcome.before
                shared_files.add(outcome.entries)
            else:
                exported.left_out[outcome.why] += 1
                if outcome.uri is not None and len(exported.unread) < MAX_NAMED:
                    line = (without_query(outcome.uri), outcome.why, outcome.detail)
                    exported.unread.append(": ".join(filter(None, line)))
            done += 1
            pace = f"{done / (monotonic() - started):.1f}"
            if bar.move(done, f"{pace} images/s"):
                bar.line(f"images={done} images_per_second={pace}", "event=export ")
        shared_files.store(folder)
    return exported


def _name_images(
    con: duckdb.DuckDBPyConnection,
    run: RunFolder,
    chosen: duckdb.DuckDBPyRelation,
    claim: Claim,
) -> Exported:
    """Create the table ``named`` of the images that are ok, and count the others."""
    con.register("answer", chosen.to_arrow_reader())
    con.execute("CREATE TABLE answered AS FROM answer")
    con.execute(f"CREATE VIEW chosen AS FROM answered WHERE status = '{OK}'")
    name_images(con, run, among_chosen=claim.names == "export")
    [(num_chosen, num_failed)] = con.execute(
        f"SELECT count(*), count(*) FILTER (status <> '{OK}') FROM answered"
    ).fetchall()
    failed = {"failed in the run": num_failed} if num_failed else {}
    return Exported(num_chosen, left_out=Counter(failed))


class _NamedImage(NamedTuple):
    """A row of the table ``named``; ``width`` and ``height`` are the photograph's."""

    image_id: int
    uri: str
    width: int
    height: int
    name: str


@dataclass(frozen=True)
class _Mask:
    """The palette PNG as it is stored, if any, and the confidence by the field of its class."""

    png: bytes | None
    confidence: Mapping[str, float | None]


def _rows_with_masks(
    con: duckdb.DuckDBPyConnection, run: RunFolder
) -> Iterator[tuple[_NamedImage, _Mask | Damaged]]:
    """Take the images out of ``named``, each with its mask, or why that cannot be read; holds one
    file of ``rows/`` in memory.
    """
    table = run.table("rows")
    files = [file for file in table.files() if kind_in_name(file.name) == OK] if table else []
    wanted = {"image_id", "mask", "confidence"}
    columns = [name for name in table.schema.names if name in wanted] if table else []
    folder = storage.join(run.uri, "rows")
    damaged: list[tuple[str, Damaged]] = []
    for file in files:
        in_range = f"image_id BETWEEN {file.first_id} AND {file.last_id}"
        if not con.execute(f"SELECT 1 FROM named WHERE {in_range} LIMIT 1").fetchall():
            continue
        try:
            read = read_columns(folder, file.name, columns)
        except Damaged as error:
            damaged.append((in_range, error))
            continue
        places = {image_id: n for n, image_id in enumerate(read["image_id"].to_pylist())}
        # By id: the range of a file of few images may hold a million.
        for row in _take(con, f"{in_range} AND image_id IN (SELECT unnest(?))", [list(places)]):
            mask, confidence = (
                read[name][places[row.image_id]].as_py() if name in columns else None
                for name in ("mask", "confidence")
            )
            yield row, _Mask(mask, confidence or {})
    for in_range, damage in damaged:  # those that no other file has
        yield from ((row, damage) for row in _take(con, in_range))
    [(num_rest,)] = con.execute("SELECT count(*) FROM named").fetchall()
    if num_rest:
        raise RunError(f"{run.uri}: {num_rest:,} images have no row with a mask: audit the run")


def _take(
    con: duckdb.DuckDBPyConnection, condition: str, values: Sequence[object] = ()
) -> list[_NamedImage]:
    """Remove the rows of ``named`` that fulfil a condition, and return them by ``image_id``."""
    taken = con.execute(
        f"DELETE FROM named WHERE {condition} RETURNING image_id, uri, width, height, name", values
    ).fetchall()
    return sorted(_NamedImage(*row) for row in taken)


@dataclass(frozen=True)
class _Written:
    """The files of an image exist, or existed ``before``; ``entries`` go into the shared files."""

    entries: Mapping[str, Sequence[str]]
    before: bool


@dataclass(frozen=True)
class _LeftOut:
    """An image without files, counted under ``why``.

    ``uri`` is set if its photograph or mask is to blame; ``detail`` is about this image alone.
    """

    why: str
    uri: str | None = None
    detail: str = ""


_Outcome = _Written | _LeftOut


@dataclass(frozen=True)
class _Converter:
    """Writes the files of one image at a time; the threads share it.

    ``keeps_files``: the export resumes, and files that exist are complete and stay.
    """

    run: RunFolder
    folder: str
    writer: Writer
    limits: Limits
    keeps_files: bool

    def convert(self, row_and_mask: tuple[_NamedImage, _Mask | Damaged]) -> _Outcome:
        """Write the files of one image, unless its last one exists.

        Raises :class:`~segbatch.errors.CredentialsRefused`, ``OSError`` if storage fails.
        """
        row, mask = row_and_mask
        if isinstance(mask, Damaged):
            return _LeftOut(DAMAGED, row.uri, str(mask))
        if mask.png is None:
            return _LeftOut("no mask is stored")
        last = self._last_written(row.name) if self.keeps_files else None
        is_there = last is not None
        if is_there and self.writer.entries is None:
            return _Written({}, before=True)
        photo, label_map = None, np.empty((0, 0), np.uint8)
        if self.writer.photos is not Photos.NONE:
            if not (is_there or self.writer.has_address(row.uri)):
                read = self._photograph(row)
                if isinstance(read, _LeftOut):
                    return read
                photo = read
            try:
                label_map = label_map_at(mask.png, (row.width, row.height))
            except SourceError as error:
                return _LeftOut(DAMAGED, row.uri, f"{error}; audit the run")
        run = self.run
        image = SegmentedImage(
            run=run.uri,
            image_id=row.image_id,
            uri=row.uri,
            name=row.name,
            classes=run.classes,
            mask=mask.png,
            photo=photo,
            label_map=label_map,
            folder=self.folder,
            model=run.info.model.uri,
            confidence={c.name: mask.confidence.get(c.field) for c in run.classes},
        )
        if last is None:
            files = self.writer.files(image)
            for path, data in files.items():
                where = storage.join(self.folder, path)
                if not (self.keeps_files and storage.exists(where)):
                    storage.write_bytes(where, data)
            last = ["", *files][-1]
        entries = self.writer.entries(image, last) if self.writer.entries else {}
        return _Written(entries, is_there)

    def _last_written(self, name: str) -> str | None:
        """The path of the last file of an image; ``None`` if it does not exist."""
        paths = (path.format(name=name) for path in self.writer.last)
        return next(
            (path for path in paths if storage.exists(storage.join(self.folder, path))), None
        )

    def _photograph(self, row: _NamedImage) -> Photograph | _LeftOut:
        [part] = self.run.parts([(row.image_id, row.uri)])
        read = read_photograph(part, self.limits, jpeg=self.writer.photos is Photos.JPEG_FILES)
        if isinstance(read, storage.Unreadable) and read.kind == storage.REFUSED_CREDENTIALS:
            raise CredentialsRefused(f"{without_query(row.uri)}: {read.message}")
        if not isinstance(read, Photograph):
            return _LeftOut(f"photograph {read.kind}", row.uri)
        if read.pixels.shape[:2] != (row.height, row.width):
            return _LeftOut("photograph is of another size than when it was segmented", row.uri)
        return read
