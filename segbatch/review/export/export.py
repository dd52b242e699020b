"""Export: the images of a run in the formats of other tools, or its rows as one table.

    choose ──► read ──► convert ──► write ──► share
    SQL        masks,   one image   files     lists and documents,
               photos   a thread              once all images are there

What ends before that is gone on with: a claim in the folder says what is exported, and an image
whose last file is there is left as it is: files are written whole or not at all. Where they are
not, on neither disk nor object storage, all are written again.

Nothing here grows with the number of images but a table of their names, which DuckDB keeps on disk
where it gets large, and what the images share, which is collected in files.
"""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Literal

import duckdb
import numpy as np

from segbatch import storage
from segbatch.config.job import Limits
from segbatch.console import Bar
from segbatch.errors import CredentialsRefused, Damaged, InputError, RunError, SourceError
from segbatch.formats import WRITERS
from segbatch.formats.writing import Photograph, Photos, Segmented, Writer, no_entries
from segbatch.results.answer import write
from segbatch.results.database import open_database
from segbatch.results.log import read_columns
from segbatch.results.query import sql, unreadable
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import OK
from segbatch.results.table import kind_of
from segbatch.review.export.files import Claim, SharedFiles, common_folder, safe_name
from segbatch.review.pictures import label_map_at, limits_of, read_photograph
from segbatch.storage.uris import shown

Table = Literal["csv", "parquet"]
TABLES: Mapping[str, Table] = {"csv": "csv", "parquet": "parquet"}

THREADS = 8  # each holds a photograph, its mask, and what is made of them
MEMORY = "1GB"  # of the table of names
TOLD = 10  # images that could not be used are named, with why; the others are counted
DAMAGED = "damaged mask"

# Of images of one name in the file systems that know no capitals, each gets its id: "@" is in no
# name otherwise.
NAMED = """
CREATE TABLE named AS
SELECT
    image_id, uri, width, height,
    CASE WHEN count(*) OVER (PARTITION BY lower(name)) > 1 THEN name || '@' || image_id ELSE name
    END AS name
FROM (SELECT *, safe_name(uri) AS name FROM chosen)"""


@dataclass
class Exported:
    """How many images were chosen, are ``written``, some of them ``before``, and were left out, and
    ``unread``: the first ten whose photograph or mask could not be used, with why.
    """

    chosen: int = 0
    written: int = 0
    before: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        """Photographs that may be read another time."""
        return sum(self.left_out[f"photograph {kind}"] for kind in ("timeout", "unavailable"))

    def line(self, folder: str) -> str:
        """All of it on one line."""
        before = [f"{self.before:,} of them were there"] if self.before else []
        left_out = (f"{number:,} left out: {why}" for why, number in self.left_out.items())
        written = f"{self.written:,} of {self.chosen:,} images in {folder}"
        return "; ".join([written, *before, *left_out])


def export(
    run: RunFolder, folder: str, to: str, *, where: str | None = None, limit: int | None = None
) -> Exported:
    """Write the images of ``run`` into ``folder``, any URI, that is empty or not there, or in which
    the same export has begun and did not end: then what is missing is written.

    ``to`` is one of :data:`WRITERS`, or one of :data:`TABLES` for the view ``wide`` as one file
    ``wide.csv`` or ``wide.parquet``. ``where`` is an SQL condition over the view ``images``; of the
    images that fit it, the first ``limit`` by ``image_id`` are taken. Rows without a mask have no
    picture, and photographs may be gone or of another size meanwhile: they are counted.

    Raises :class:`~segbatch.errors.InputError` for a folder, a format or a condition that cannot be
    used, :class:`~segbatch.errors.CredentialsRefused`, ``OSError`` if storage fails.
    """
    if to not in WRITERS and to not in TABLES:
        raise InputError(f"--to {to}: one of {', '.join((*WRITERS, *TABLES))}")
    table = run.table("rows")
    claim = Claim(run.uri, to, where, limit, table.version if table else None)
    is_begun = claim.is_begun(folder)
    condition = f" WHERE (\n{where}\n)" if where is not None else ""
    rest = f"{condition} ORDER BY image_id" + (f" LIMIT {limit}" if limit is not None else "")
    if to in TABLES:
        return _export_table(run, folder, TABLES[to], rest)
    chosen = sql([run], f"SELECT image_id, uri, status, width, height FROM images{rest}")
    try:
        exported = _export_images(run, folder, WRITERS[to], chosen, claim, is_begun=is_begun)
    except duckdb.Error as error:
        raise unreadable(error) from error
    except PermissionError as error:
        raise InputError(f"may not be used: {storage.one_line(error)}") from error
    if not exported.unanswered:
        claim.give_up(folder)
    return exported


def _export_table(run: RunFolder, folder: str, to: Table, rest: str) -> Exported:
    rows = sql(
        [run],
        f"SELECT * FROM wide WHERE image_id IN (SELECT image_id FROM images{rest})"
        " ORDER BY image_id",
    )
    with tempfile.TemporaryDirectory(prefix="segbatch-") as temporary:
        file = Path(temporary, f"wide.{to}")
        write(rows, to, str(file))
        [(num_rows,)] = rows.count("*").fetchall()
        storage.upload(file, storage.join(folder, file.name))
    return Exported(num_rows, num_rows)


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
    exported = _name_images(con, run, chosen)
    if not is_begun:
        claim.stake(folder)
    convert = partial(
        _convert,
        run=run,
        folder=folder,
        writer=writer,
        limits=limits_of(run),
        goes_on=is_begun and storage.writes_whole(folder),
    )
    done, started = 0, monotonic()
    shared = writer.shared(run.classes, run.uri)
    with SharedFiles(shared) as parts, Bar("export", exported.chosen) as bar:
        for outcome in _in_threads(convert, _rows_with_masks(con, run)):
            if isinstance(outcome, _Written):
                exported.written += 1
                exported.before += outcome.before
                parts.add(outcome.entries)
            else:
                exported.left_out[outcome.why] += 1
                if outcome.uri is not None and len(exported.unread) < TOLD:
                    told = (shown(outcome.uri), outcome.why, outcome.detail)
                    exported.unread.append(": ".join(filter(None, told)))
            done += 1
            pace = f"{done / (monotonic() - started):.1f}"
            if bar.move(done, f"{pace} images/s"):
                bar.line(f"images={done} images_per_second={pace}", "event=export ")
        parts.store(folder)
    return exported


def _name_images(
    con: duckdb.DuckDBPyConnection, run: RunFolder, chosen: duckdb.DuckDBPyRelation
) -> Exported:
    """Make the table ``named`` of the images that are ok, and count the others."""
    [(first, last)] = sql([run], "SELECT min(uri), max(uri) FROM images").fetchall()
    # Below the folder of all images of the run, so that each is called alike in every export.
    folder = common_folder(first or "", last or "")

    def name(uri: str) -> str:
        return safe_name(uri, folder)

    con.create_function("safe_name", name, ["VARCHAR"], "VARCHAR")
    con.register("answer", chosen.to_arrow_reader())
    con.execute("CREATE TABLE answered AS FROM answer")
    con.execute(f"CREATE VIEW chosen AS FROM answered WHERE status = '{OK}'")
    con.execute(NAMED)
    [(num_chosen, num_failed)] = con.execute(
        f"SELECT count(*), count(*) FILTER (status <> '{OK}') FROM answered"
    ).fetchall()
    failed = {"failed in the run": num_failed} if num_failed else {}
    return Exported(num_chosen, left_out=Counter(failed))


Row = tuple[int, str, int, int, str]  # image_id, uri, width, height, name


Mask = bytes | None | Damaged  # as it is stored, or why it cannot be read


def _rows_with_masks(con: duckdb.DuckDBPyConnection, run: RunFolder) -> Iterator[tuple[Row, Mask]]:
    """The images of ``named``, each with its mask, a file of ``rows/`` in memory at a time."""
    table = run.table("rows")
    files = [file for file in table.files() if kind_of(file["path"]) == OK] if table else []
    folder, num_found = storage.join(run.uri, "rows"), 0
    for file in sorted(files, key=lambda file: int(file["first_id"])):
        rows: list[Row] = con.execute(
            "SELECT image_id, uri, width, height, name FROM named"
            " WHERE image_id BETWEEN ? AND ? ORDER BY image_id",
            [file["first_id"], file["last_id"]],
        ).fetchall()
        if not rows:
            continue
        try:
            columns = read_columns(folder, file["path"], ["image_id", "mask"])
        except Damaged as error:
            num_found += len(rows)
            yield from ((row, error) for row in rows)
            continue
        masks = dict(zip(columns["image_id"].to_pylist(), columns["mask"], strict=True))
        for row in rows:
            if row[0] in masks:  # and not in another file of the same range
                num_found += 1
                yield row, masks[row[0]].as_py()
    [(num_named,)] = con.execute("SELECT count(*) FROM named").fetchall()
    if num_found != num_named:
        raise RunError(
            f"{run.uri}: {num_named - num_found:,} images have no row with a mask: audit the run"
        )


@dataclass(frozen=True)
class _Written:
    """The files of an image are there, or were ``before``; ``entries`` are for the shared ones."""

    entries: Mapping[str, Sequence[str]]
    before: bool


@dataclass(frozen=True)
class _LeftOut:
    """An image without files, counted under ``why``; ``uri`` is its photograph's, if it lay at that
    or its mask, and ``detail`` is of this image alone.
    """

    why: str
    uri: str | None = None
    detail: str = ""


Outcome = _Written | _LeftOut


def _in_threads(
    convert: Callable[[Row, Mask], Outcome], rows: Iterator[tuple[Row, Mask]]
) -> Iterator[Outcome]:
    with ThreadPoolExecutor(THREADS) as threads:
        ahead: deque[Future[Outcome]] = deque()
        for row, mask in rows:
            ahead.append(threads.submit(convert, row, mask))
            if len(ahead) > 2 * THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _convert(
    row: Row,
    mask: Mask,
    *,
    run: RunFolder,
    folder: str,
    writer: Writer,
    limits: Limits,
    goes_on: bool,
) -> Outcome:
    """Write the files of one image; what it adds to those that all share. Where the export
    ``goes_on``, files that are there stay.
    """
    image_id, uri, width, height, name = row
    if mask is None:
        return _LeftOut("no mask is stored")
    if isinstance(mask, Damaged):
        return _LeftOut(DAMAGED, uri, str(mask))
    last = _last_written(folder, writer, name) if goes_on else None
    is_there = last is not None
    if is_there and writer.entries is no_entries:
        return _Written({}, before=True)
    photo, label_map = None, np.empty((0, 0), np.uint8)
    if writer.photos is not Photos.NONE:
        if not is_there:
            seen = _photograph(row, writer, limits)
            if isinstance(seen, _LeftOut):
                return seen
            photo = seen
        try:
            label_map = label_map_at(mask, (width, height))
        except SourceError as error:
            return _LeftOut(DAMAGED, uri, f"{error}; audit the run")
    image = Segmented(run.uri, image_id, uri, name, run.classes, mask, photo, label_map)
    if last is None:
        files = writer.files(image)
        for path, data in files.items():
            where = storage.join(folder, path)
            if not (goes_on and storage.exists(where)):
                storage.write_bytes(where, data)
        *_, last = files
    return _Written(writer.entries(image, last), is_there)


def _last_written(folder: str, writer: Writer, name: str) -> str | None:
    """The path of the last file of an image; ``None`` where it is not there."""
    paths = (path.format(name=name) for path in writer.last)
    return next((path for path in paths if storage.exists(storage.join(folder, path))), None)


def _photograph(row: Row, writer: Writer, limits: Limits) -> Photograph | _LeftOut:
    """Raises :class:`~segbatch.errors.CredentialsRefused`."""
    _, uri, width, height, _ = row
    read = read_photograph(uri, limits, jpeg=writer.photos is Photos.JPEG_FILES)
    if isinstance(read, storage.Unreadable) and read.kind == "credentials":
        raise CredentialsRefused(f"{shown(uri)}: {read.message}")
    if not isinstance(read, Photograph):
        return _LeftOut(f"photograph {read.kind}", uri)
    if read.pixels.shape[:2] != (height, width):
        return _LeftOut("photograph is of another size than when it was segmented", uri)
    return read
