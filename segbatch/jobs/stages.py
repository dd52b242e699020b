"""The five stages of the segment job: fetch, decode, predict, encode, write.

Each takes a block of images as an Arrow table and returns one, without Ray; together they are the
pipeline that :mod:`segbatch.jobs.segment` lays out. A block holds at most ``BLOCK_BYTES`` of
decoded pixels and at most 500 rows; an image beyond that stays encoded until the model takes it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.config.job import Predict
from segbatch.errors import Incomplete, SegbatchError
from segbatch.images import exif
from segbatch.images.decode import EXIF, Decoded, Pixels, decode, decode_image
from segbatch.images.fetch import fetch
from segbatch.results.encode import Encoding, carried, encode
from segbatch.results.lease import WorkerLease
from segbatch.results.write import Account, Writing, write_rows
from segbatch.storage.arrow import Blob, binary_column, binary_views
from segbatch.storage.traffic import traffic

if TYPE_CHECKING:
    from segbatch.model.bundle import Packed
    from segbatch.model.predict import Prediction

BLOCK_BYTES = 256_000_000
JPEGS_AT_ONCE = 16  # decoded on the device in one call
SECONDS = "seconds:"  # prefix of columns: a stage's seconds, divided among its rows
COUNTED = "counted:"  # prefix of columns: what a stage counted, divided likewise

# Columns of a block that predict reads: it replaces those of OUTCOME and drops the others.
OUTCOME = ("error", "message", "width", "height")
MODEL_SIZE = ("model_width", "model_height")
PIXELS = ("data", "pixels")
# Columns that predict replaces or adds.
PREDICTED = {
    "error": pa.string(),
    "message": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "mask_width": pa.int32(),
    "mask_height": pa.int32(),
    "label_map": pa.large_binary(),
    "class_pixels": pa.list_(pa.int64()),
    "class_confidence": pa.list_(pa.float32()),
    "uncertainty": pa.float32(),
}
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
NO_LABELS = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Reading:
    """How images are read: limits, and the longer side to which they are scaled down.

    ``jpegs_on_device``: workers decode ordinary JPEGs on the GPU. ``exif``: columns that are filled
    from what the files say of their capture.
    """

    limits: storage.ReadLimits
    max_pixels: int
    long_side: int | None
    jpegs_on_device: bool = False
    exif: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predicting:
    """How label maps are made, in each worker, with a model that it loads itself.

    ``model`` is its URI, or a function that fetches the model that the driver has loaded.
    """

    model: str | Callable[[], Packed]
    options: Predict
    device: str
    threads: int
    original_grid: bool  # label maps on the image's own grid, else on the model's
    keep_label_maps: bool
    confidence: bool = True


@dataclass(frozen=True)
class Stages:
    """The settings of all stages; they travel to the workers."""

    reading: Reading
    predicting: Predicting
    encoding: Encoding
    writing: Writing

    def in_pass(self, last_pass: bool) -> Stages:
        return replace(self, writing=replace(self.writing, last_pass=last_pass))


def fetch_stage(table: pa.Table, reading: Reading, worker_lease: WorkerLease) -> pa.Table:
    """URIs → bytes, or why not. Worst case in memory: the bytes of a block's objects, twice.

    Returns no rows once the driver stops; they are left to the next start.
    """
    start = time.perf_counter()
    if worker_lease.should_stop():
        table = table.slice(0, 0)
    before = traffic()
    fetched = fetch(table, reading.limits)
    asked = traffic()
    # Frames and views are made here, so their files are larger than what was read. Local files
    # make no traffic.
    files = pc.sum(pc.binary_length(fetched["data"])).as_py() or 0
    counts = {
        f"{COUNTED}read_bytes": asked.num_bytes - before.num_bytes or files,
        f"{COUNTED}requests": asked.requests - before.requests,
    }
    return _timed("fetch", start, _divided(fetched, counts))


def decode_stage(table: pa.Table, reading: Reading) -> pa.Table:
    """Bytes → upright RGB. Worst case in memory: ``BLOCK_BYTES`` and one image more."""
    start = time.perf_counter()
    decoded = decode(
        table,
        max_pixels=reading.max_pixels,
        long_side=reading.long_side,
        budget_bytes=BLOCK_BYTES,
        keep_jpegs=reading.jpegs_on_device,
        exif=bool(reading.exif),
    )
    if reading.exif:
        decoded = _with_captures(decoded, reading.exif)
    return _timed("decode", start, decoded)


def _with_captures(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """``table`` with the user's columns ``names`` from EXIF."""
    for field in exif.FIELDS:
        found = table[f"{EXIF}{field.name}"]
        table = table.drop_columns(f"{EXIF}{field.name}")
        index = table.schema.get_field_index(carried(field.name))
        if field.name in names and index >= 0:
            table = table.set_column(index, table.schema.field(index), found)
    return table


@dataclass(eq=False)
class _Row:
    """One image of a block in a predict worker; it ends with a prediction or an error."""

    data: pa.LargeBinaryScalar  # the encoded file, if its pixels are not there yet
    pixels: Blob | None
    error: str | None
    message: str | None
    width: int | None  # of the upright image
    height: int | None
    model_width: int | None  # as the model takes it; null if it is not decoded
    model_height: int | None
    prediction: Prediction | None = None

    @property
    def is_plain_jpeg(self) -> bool:
        """Whether it was left to the device to decode: its size is known, its pixels are not."""
        return self.pixels is None and self.model_width is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.model_height or 0, self.model_width or 0, 3)


@dataclass
class _Call:
    """Timing of one block in a worker.

    ``idle_s``: seconds without work for the device before the block came. ``queued_s``: seconds
    that the block waited for another one to leave the device.
    """

    start: float
    idle_s: float | None = None
    queued_s: float = 0.0
    batches: int = 0


class PredictStage:
    """RGB → label maps and counts. Each worker has one of these, with the model loaded.

    Several threads may call it: one block uses the device while another thread converts its block
    from and to Arrow. Worst case in memory, a call: a block's pixels, ``BLOCK_BYTES`` more of those
    that came encoded and one image beyond, and twice the block's label maps on the mask's grid.
    """

    def __init__(
        self, predicting: Predicting, reading: Reading, worker_lease: WorkerLease | None = None
    ) -> None:
        from segbatch.model.predict import load_model, unpack_model

        self.predicting = predicting
        self.reading = reading
        self.worker_lease = worker_lease
        arguments: dict[str, Any] = {
            "device": predicting.device,
            "options": predicting.options,
            "threads": predicting.threads,
            "confidence": predicting.confidence,
        }
        if isinstance(predicting.model, str):
            self.model = load_model(predicting.model, **arguments)
        else:
            self.model = unpack_model(predicting.model(), **arguments)
        if reading.jpegs_on_device:
            from segbatch.model.jpeg import require_jpeg_decoder

            require_jpeg_decoder(self.model.device)
        self.device_lock = threading.Lock()
        self.idle_since = time.perf_counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        call = _Call(time.perf_counter())
        if self.worker_lease is not None and self.worker_lease.should_stop():
            table = table.slice(0, 0)
        rows = [
            _Row(data, pixels, *values)
            for data, pixels, *values in zip(
                table["data"],
                binary_views(table["pixels"]),
                *(table[name].to_pylist() for name in (*OUTCOME, *MODEL_SIZE)),
                strict=True,
            )
        ]
        for group in self._groups(rows, call):
            self._predict(group, call)
        if call.idle_s is None:  # no image of the block could be predicted
            with self._device(call):
                pass
        predicted = _divided(
            self._table(table, rows),
            {f"{SECONDS}wait": call.idle_s or 0.0, f"{COUNTED}batches": call.batches},
        )
        return _timed("predict", call.start + call.queued_s, predicted)

    def _groups(self, rows: list[_Row], call: _Call) -> Iterator[list[tuple[_Row, Pixels]]]:
        """The images of ``rows`` in groups that are predicted together.

        Images that come encoded are decoded here, at most ``BLOCK_BYTES`` of them a group and one
        more; one that cannot be decoded gets its error.
        """
        group: list[tuple[_Row, Pixels]] = []
        held = 0
        from_device: dict[int, Pixels | None] = {}
        for number, row in enumerate(rows):
            if row.error is not None:
                continue
            if row.pixels is not None:
                group.append((row, row.pixels.reshape(row.shape)))
                continue
            if row.is_plain_jpeg and number not in from_device:
                from_device = self._decode_on_device(rows, number, call)
            image = from_device.get(number)
            if image is None or image.shape != row.shape:
                image = self._decode(row)
            if image is None:
                continue
            group.append((row, image))
            held += image.nbytes
            if held > BLOCK_BYTES:
                yield group
                group, held = [], 0
        if group:
            yield group

    def _decode_on_device(
        self, rows: list[_Row], first: int, call: _Call
    ) -> dict[int, Pixels | None]:
        """Pixels of plain JPEGs from row ``first`` on, by row; ``None`` if the device refuses."""
        from segbatch.model.jpeg import decode_jpegs

        chosen, held = [first], math.prod(rows[first].shape)
        for number in range(first + 1, len(rows)):
            if rows[number].error is None and rows[number].is_plain_jpeg:
                held += math.prod(rows[number].shape)
                if len(chosen) == JPEGS_AT_ONCE or held > BLOCK_BYTES:
                    break
                chosen.append(number)
        files = [rows[number].data.as_py() for number in chosen]
        with self._device(call):
            return dict(zip(chosen, decode_jpegs(files, self.model.device), strict=True))

    def _decode(self, row: _Row) -> Pixels | None:
        """Pixels of an encoded image, decoded on the CPU; ``None`` if it gets an error."""
        image = decode_image(
            row.data.as_py(),
            max_pixels=self.reading.max_pixels,
            long_side=self.reading.long_side,
        )
        if isinstance(image, Decoded):
            row.width, row.height = image.width, image.height
            return image.pixels
        row.error, row.message = image.kind, image.message
        row.width = row.height = None  # the header alone does not prove a size
        return None

    def _predict(self, group: list[tuple[_Row, Pixels]], call: _Call) -> None:
        """Give each row of the group its prediction, without the pixels."""
        sizes = [
            (row.height, row.width)
            if self.predicting.original_grid and row.height and row.width
            else None
            for row, _ in group
        ]
        with self._device(call):
            before = self.model.num_batches
            predictions = self.model.predict_batch([image for _, image in group], sizes)
            call.batches += self.model.num_batches - before
        for (row, _), prediction in zip(group, predictions, strict=True):
            row.prediction = replace(prediction, image=NO_PIXELS)
        group.clear()  # the caller still holds it while the next images are decoded

    @contextmanager
    def _device(self, call: _Call) -> Iterator[None]:
        """Exclusive access to the device."""
        queued = time.perf_counter()
        with self.device_lock:
            call.queued_s += time.perf_counter() - queued
            if call.idle_s is None:
                call.idle_s = max(0.0, call.start - self.idle_since)
            yield
            self.idle_since = time.perf_counter()

    def _table(self, table: pa.Table, rows: list[_Row]) -> pa.Table:
        """``table`` with :data:`PREDICTED` in the place of the pixels and their size."""
        predictions = [row.prediction for row in rows]
        masks = [None if p is None else p.mask for p in predictions]
        keep = self.predicting.keep_label_maps
        maps = [m.ravel() if m is not None and keep else NO_LABELS for m in masks]
        values: dict[str, list[Any]] = {
            **{name: [getattr(row, name) for row in rows] for name in OUTCOME},
            "mask_width": [None if m is None else m.shape[1] for m in masks],
            "mask_height": [None if m is None else m.shape[0] for m in masks],
            "class_pixels": [p and p.pixels for p in predictions],
            "class_confidence": [p and p.confidences for p in predictions],
            "uncertainty": [
                None if p is None or np.isnan(p.uncertainty) else p.uncertainty for p in predictions
            ],
        }
        kept = table.drop_columns([*MODEL_SIZE, *PIXELS])
        columns = {name: kept[name] for name in kept.column_names}
        columns |= {name: pa.array(column, PREDICTED[name]) for name, column in values.items()}
        columns["label_map"] = binary_column(
            np.concatenate([NO_LABELS, *maps]), [0, *np.cumsum([m.size for m in maps])]
        )
        return pa.table(columns)


def encode_stage(table: pa.Table, encoding: Encoding) -> pa.Table:
    """Label maps and counts → rows of the results. Worst case in memory: a block's label maps."""
    start = time.perf_counter()
    rows = encode(table, encoding)
    for name in table.column_names:
        if name.startswith((SECONDS, COUNTED)):
            rows = rows.append_column(name, table[name])
    return _timed("encode", start, rows)


def write_stage(table: pa.Table, writing: Writing) -> pa.Table:
    """Rows → complete files, and an account of each. Worst case in memory: 500 rows, twice."""
    start = time.perf_counter()
    seconds, counted = _summed(table, SECONDS), _summed(table, COUNTED)
    accounts = write_rows(table.select(writing.schema.names), writing)
    seconds["write"] = time.perf_counter() - start
    counted["rows"] = table.num_rows
    if accounts:
        accounts[0] = replace(accounts[0], seconds=seconds, counted=counted)
    return pa.table({"account": pa.array([a.to_text() for a in accounts], pa.string())})


def accounts_of(table: pa.Table) -> list[Account]:
    """The accounts in a table of :func:`write_stage`."""
    return [Account.from_text(text) for text in table["account"].to_pylist()]


def _timed(stage: str, start: float, table: pa.Table) -> pa.Table:
    """``table`` with the seconds since ``start``, divided among its rows."""
    return _divided(table, {SECONDS + stage: time.perf_counter() - start})


def _divided(table: pa.Table, totals: dict[str, float]) -> pa.Table:
    """``table`` with a column for each total, divided equally among its rows."""
    num_rows = table.num_rows
    for name, total in totals.items():
        share = np.full(num_rows, total / max(1, num_rows))
        table = table.append_column(name, pa.array(share))
    return table


def _summed(table: pa.Table, prefix: str) -> dict[str, float]:
    """The totals of the columns that begin with ``prefix``."""
    return {
        name.removeprefix(prefix): float(np.sum(table[name].to_numpy(), dtype=np.float64))
        for name in table.column_names
        if name.startswith(prefix)
    }


class AllStages:
    """All stages in one process, which loads the model once: for images that crash a worker."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        try:
            self.predict = PredictStage(stages.predicting, stages.reading)
        except SegbatchError:
            raise
        except Exception as error:  # a fault of this node, not of an image
            raise Incomplete(f"a worker cannot start: {storage.one_line(error)}") from error

    def run(self, table: pa.Table) -> pa.Table:
        """Rows of the manifest → accounts."""
        stages = self.stages
        fetched = fetch_stage(table, stages.reading, stages.writing.worker_lease)
        predicted = self.predict(decode_stage(fetched, stages.reading))
        return write_stage(encode_stage(predicted, stages.encoding), stages.writing)


def run_all_stages(table: pa.Table, stages: Stages) -> pa.Table:
    """Run all stages on ``table`` once, in a process that then exits."""
    return AllStages(stages).run(table)


class ImageSize(NamedTuple):
    """Pixels of an image, its bytes at the model's size, and those of its file."""

    pixels: int
    decoded_bytes: int
    file_bytes: int


def decoded_sizes(table: pa.Table, reading: Reading) -> list[ImageSize]:
    """The size of each image that can be decoded."""
    fetched = fetch(table, reading.limits)
    decoded = (
        decode_image(data.as_py(), max_pixels=reading.max_pixels, long_side=reading.long_side)
        for data in fetched["data"]
        if data.is_valid
    )
    sizes = pc.binary_length(fetched["data"].filter(fetched["data"].is_valid())).to_pylist()
    return [
        ImageSize(i.width * i.height, i.pixels.nbytes, encoded)
        for i, encoded in zip(decoded, sizes, strict=True)
        if isinstance(i, Decoded)
    ]


def crashed_row(image: pa.Table, message: str, stages: Stages) -> pa.Table:
    """Write the failed row of an image that crashed its worker."""
    unknown = {name: pa.nulls(1, type_) for name, type_ in PREDICTED.items()}
    said = {"error": pa.array(["crashed"]), "message": pa.array([message])}
    columns = {name: image[name] for name in image.column_names} | unknown | said
    return write_stage(encode_stage(pa.table(columns), stages.encoding), stages.writing)
