"""Export: the images of a run in the formats of other tools, or its rows as one table.

    choose ──► read ──► convert ──► write ──► share
    SQL        masks,   one image   files     lists and documents,
               photos   a thread              once all images are there

Nothing here grows with the number of images but a table of their names, which DuckDB keeps on disk
where it gets large, and what the images share, which is collected in files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TextIO

import duckdb
import numpy as np

from segbatch import storage
from segbatch.errors import CredentialsRefused, InputError, RunError, SourceError
from segbatch.images.sources import shown
from segbatch.job import Limits
from segbatch.progress import Bar
from segbatch.results.answer import write
from segbatch.results.database import open_database
from segbatch.results.proof import read_columns
from segbatch.results.query import unreadable
from segbatch.results.run import Run
from segbatch.results.schema import OK
from segbatch.results.table import kind_of
from segbatch.review.formats.coco import COCO
from segbatch.review.formats.fiftyone import FIFTYONE
from segbatch.review.formats.format import Format, Part, Photos, Product, Segmented
from segbatch.review.formats.labelme import LABELME
from segbatch.review.formats.masks import MASKS
from segbatch.review.formats.overlays import OVERLAYS
from segbatch.review.formats.voc import VOC
from segbatch.review.names import common_folder, safe_name
from segbatch.review.photograph import Photograph, read_photograph
from segbatch.review.picture import label_map_at, limits_of

FORMATS: Mapping[str, Format] = {
    "png": MASKS,
    "overlay": OVERLAYS,
    "voc": VOC,
    "labelme": LABELME,
    "coco": COCO,
    "fiftyone": FIFTYONE,
}
Table = Literal["csv", "parquet"]
TABLES: Mapping[str, Table] = {"csv": "csv", "parquet": "parquet"}

THREADS = 8  # each holds a photograph, its mask, and what is made of them
MEMORY = "1GB"  # of the table of names

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
    """How many images were chosen, written, and left out, and ``unread``: the first photographs
    that could not be read, with why.
    """

    chosen: int = 0
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        """Photographs that may be read another time."""
        return sum(self.left_out[f"photograph {kind}"] for kind in ("timeout", "unavailable"))

    def line(self, folder: str) -> str:
        """All of it on one line."""
        left_out = (f"{number:,} left out: {why}" for why, number in self.left_out.items())
        return "; ".join([f"{self.written:,} of {self.chosen:,} images in {folder}", *left_out])


def export(
    run: Run, folder: str, to: str, *, where: str | None = None, limit: int | None = None
) -> Exported:
    """Write the images of ``run`` into ``folder``, any URI, that is empty or not there.

    ``to`` is one of :data:`FORMATS`, or one of :data:`TABLES` for the view ``wide`` as one file
    ``wide.csv`` or ``wide.parquet``. ``where`` is an SQL condition over the view ``images``; of the
    images that fit it, the first ``limit`` by ``image_id`` are taken. Rows without a mask have no
    picture, and photographs may be gone or of another size meanwhile: they are counted.

    Raises :class:`~segbatch.errors.InputError` for a folder, a format or a condition that cannot be
    used, :class:`~segbatch.errors.CredentialsRefused`, ``OSError`` if storage fails.
    """
    if to not in FORMATS and to not in TABLES:
        raise InputError(f"--to {to}: one of {', '.join((*FORMATS, *TABLES))}")
    _refuse_full(folder)
    condition = f" WHERE (\n{where}\n)" if where is not None else ""
    rest = f"{condition} ORDER BY image_id" + (f" LIMIT {limit}" if limit is not None else "")
    if to in TABLES:
        return _export_table(run, folder, TABLES[to], rest)
    chosen = run.sql(f"SELECT image_id, uri, status, width, height FROM images{rest}")
    try:
        return _export_images(run, folder, FORMATS[to], chosen)
    except duckdb.Error as error:
        raise unreadable(error) from error
    except PermissionError as error:
        raise InputError(f"may not be used: {storage.one_line(error)}") from error


def _refuse_full(folder: str) -> None:
    with storage.reading_input(folder, InputError, "no such bucket"):
        is_file = storage.is_local(folder) and storage.local_path(folder).is_file()
        is_full = is_file or next(iter(storage.list_files(folder)), None) is not None
    if is_full:
        raise InputError(f"{folder}: there are files already: name a folder that is empty")


def _export_table(run: Run, folder: str, to: Table, rest: str) -> Exported:
    rows = run.sql(
        f"SELECT * FROM wide WHERE image_id IN (SELECT image_id FROM images{rest})"
        " ORDER BY image_id"
    )
    with tempfile.TemporaryDirectory(prefix="segbatch-") as temporary:
        file = Path(temporary, f"wide.{to}")
        write(rows, to, str(file))
        [(num_rows,)] = rows.count("*").fetchall()
        storage.upload(file, storage.join(folder, file.name))
    return Exported(num_rows, num_rows)


# --------------------------------------------------------------------------------------- images


def _export_images(
    run: Run, folder: str, format: Format, chosen: duckdb.DuckDBPyRelation
) -> Exported:
    con = open_database()
    con.execute(f"SET memory_limit = '{MEMORY}'")
    exported = _name_images(con, run, chosen)
    shared = format.shared(run.classes, run.uri)
    convert = partial(_convert, run=run, folder=folder, format=format, limits=limits_of(run))
    done, started = 0, monotonic()
    with _Parts(shared) as parts, Bar("export", exported.chosen) as bar:
        for outcome in _in_threads(convert, _rows_with_masks(con, run)):
            if isinstance(outcome, Product):
                exported.written += 1
                parts.add(outcome.entries)
            else:
                why, uri = outcome
                exported.left_out[why] += 1
                if uri is not None and len(exported.unread) < 10:
                    exported.unread.append(f"{shown(uri)}: {why}")
            done += 1
            pace = f"{done / (monotonic() - started):.1f}"
            if bar.move(done, f"{pace} images/s"):
                bar.line(f"images={done} images_per_second={pace}", "event=export ")
        parts.store(folder)
    return exported


def _name_images(
    con: duckdb.DuckDBPyConnection, run: Run, chosen: duckdb.DuckDBPyRelation
) -> Exported:
    """Make the table ``named`` of the images that are ok, and count the others."""
    [(first, last)] = run.sql("SELECT min(uri), max(uri) FROM images").fetchall()
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


def _rows_with_masks(
    con: duckdb.DuckDBPyConnection, run: Run
) -> Iterator[tuple[Row, bytes | None]]:
    """The images of ``named``, each with its mask, a file of ``rows/`` in memory at a time."""
    table = run.table("rows")
    files = [file for file in table.files() if kind_of(file["path"]) == OK] if table else []
    num_found = 0
    for file in sorted(files, key=lambda file: int(file["first_id"])):
        rows: list[Row] = con.execute(
            "SELECT image_id, uri, width, height, name FROM named"
            " WHERE image_id BETWEEN ? AND ? ORDER BY image_id",
            [file["first_id"], file["last_id"]],
        ).fetchall()
        if not rows:
            continue
        columns = read_columns(storage.join(run.uri, "rows"), file["path"], ["image_id", "mask"])
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


Outcome = Product | tuple[str, str | None]  # or why not, and the photograph at which it lay


def _in_threads(
    convert: Callable[[Row, bytes | None], Outcome], rows: Iterator[tuple[Row, bytes | None]]
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
    row: Row, mask: bytes | None, *, run: Run, folder: str, format: Format, limits: Limits
) -> Outcome:
    """Write the files of one image; the entries that it adds to those that all share."""
    image_id, uri, width, height, name = row
    if mask is None:
        return "no mask is stored", None
    photo, label_map = None, np.empty((0, 0), np.uint8)
    if format.photos is not Photos.NONE:
        read = read_photograph(uri, limits, jpeg=format.photos is Photos.JPEG_FILES)
        if isinstance(read, storage.Unreadable) and read.kind == "credentials":
            raise CredentialsRefused(f"{shown(uri)}: {read.message}")
        if not isinstance(read, Photograph):
            return f"photograph {read.kind}", uri
        if read.pixels.shape[:2] != (height, width):
            return "photograph is of another size than when it was segmented", uri
        photo = read
        try:
            label_map = label_map_at(mask, (width, height))
        except SourceError as error:
            raise RunError(f"{run.uri}: image_id {image_id}: {error}; audit the run") from error
    image = Segmented(run.uri, image_id, uri, name, run.classes, mask, photo, label_map)
    product = format.convert(image)
    for path, data in product.files.items():
        storage.write_bytes(storage.join(folder, path), data)
    return Product({}, product.entries)


# --------------------------------------------------------------------------------- shared files


class _Parts:
    """The entries of all images by part, each in a file of its own until they are put together."""

    def __init__(self, shared: Mapping[str, Sequence[str | Part]]) -> None:
        self._shared = shared
        self._stack = ExitStack()
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> _Parts:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._between = {
            piece.name: piece.between
            for pieces in self._shared.values()
            for piece in pieces
            if isinstance(piece, Part)
        }
        for name in self._between:
            file = (self._folder / f"part-{name}").open("w+", encoding="utf-8", newline="")
            self._files[name] = self._stack.enter_context(file)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def add(self, entries: Mapping[str, Sequence[str]]) -> None:
        for name, texts in entries.items():
            file = self._files[name]
            for text in texts:
                file.write(f"{self._between[name]}{text}" if file.tell() else text)

    def store(self, folder: str) -> None:
        """Put the shared files together and write them."""
        for number, (path, pieces) in enumerate(self._shared.items()):
            whole = self._folder / f"whole-{number}"
            with whole.open("w", encoding="utf-8", newline="") as file:
                for piece in pieces:
                    if isinstance(piece, Part):
                        self._files[piece.name].seek(0)
                        shutil.copyfileobj(self._files[piece.name], file)
                    else:
                        file.write(piece)
            storage.upload(whole, storage.join(folder, path))
