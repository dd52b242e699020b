"""Stages: what happens to an image, one function each, on Arrow tables and without Ray.

Each takes a block of images and gives a block back; together they are the pipeline that
:mod:`segbatch.jobs.segment` lays out. A block holds at most ``BLOCK_BYTES`` of decoded pixels and
at most 500 rows; an image that does not fit in stays encoded until the model takes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segbatch import storage
from segbatch.errors import Incomplete, SegbatchError
from segbatch.images.decode import Decoded, decode, decode_image
from segbatch.images.fetch import fetch
from segbatch.results.encode import Encoding, encode
from segbatch.results.lease import Tenure
from segbatch.results.write import Account, Writing, write
from segbatch.storage.arrow import Blob, binary_column, binary_views

if TYPE_CHECKING:
    from segbatch.model.bundle import Packed
    from segbatch.model.predict import Prediction, PredictOptions

BLOCK_BYTES = 256_000_000


JPEGS_AT_ONCE = 16  # that a worker decodes, where it does


SECONDS = "seconds:"  # of a stage, shared out among its rows; no user's column begins so


COUNTED = "counted:"  # by a stage, likewise


@dataclass(frozen=True)
class Reading:
    """How images are read: limits, the longer side to which they are brought, and whether ordinary
    JPEGs are decoded by the workers that predict, on their device.
    """

    limits: storage.ReadLimits
    max_pixels: int
    long_side: int | None
    jpegs_on_device: bool = False


@dataclass(frozen=True)
class Predicting:
    """How label maps are made: in each worker, from a model that it loads itself.

    ``model`` is where it is, or what fetches the one that another process has packed.
    """

    model: str | Callable[[], Packed]
    options: PredictOptions
    device: str
    threads: int
    original_grid: bool  # of the label maps: the image's own, else the model's
    keep_label_maps: bool


@dataclass(frozen=True)
class Pipeline:
    """What the stages are told; it travels to workers."""

    reading: Reading
    predicting: Predicting
    encoding: Encoding
    writing: Writing

    def in_pass(self, last_pass: bool) -> Pipeline:
        return replace(self, writing=replace(self.writing, last_pass=last_pass))


def fetch_stage(table: pa.Table, reading: Reading, tenure: Tenure) -> pa.Table:
    """URIs → bytes, or why not. Worst case in memory: the bytes of a block's objects, twice.

    Gives no rows once the driver stops: what is not begun is left to the next one.
    """
    start = time.perf_counter()
    if tenure.ends():
        table = table.slice(0, 0)
    fetched = fetch(table, reading.limits)
    num_bytes = pc.fill_null(pc.binary_length(fetched["data"]), 0)
    return _stamped("fetch", start, fetched.append_column(f"{COUNTED}read_bytes", num_bytes))


def decode_stage(table: pa.Table, reading: Reading) -> pa.Table:
    """Bytes → upright RGB. Worst case: ``BLOCK_BYTES`` and one image more."""
    start = time.perf_counter()
    decoded = decode(
        table,
        max_pixels=reading.max_pixels,
        long_side=reading.long_side,
        budget_bytes=BLOCK_BYTES,
        keep_jpegs=reading.jpegs_on_device,
    )
    return _stamped("decode", start, decoded)


class PredictStage:
    """RGB → label maps and counts. One of these lives in each worker, with the model loaded.

    Several threads may call it: the device has one block at a time, while the tables around another
    one are made. Worst case in memory, a call: a block's pixels, ``BLOCK_BYTES`` more of those that
    came encoded and one image beyond, and twice the block's label maps on the grid of the mask.
    """

    def __init__(
        self, predicting: Predicting, reading: Reading, tenure: Tenure | None = None
    ) -> None:
        from segbatch.model.predict import load_model

        self.predicting = predicting
        self.reading = reading
        self.tenure = tenure
        self.model = load_model(
            predicting.model if isinstance(predicting.model, str) else predicting.model(),
            device=predicting.device,
            options=predicting.options,
            threads=predicting.threads,
        )
        if reading.jpegs_on_device:
            from segbatch.model.device import refuse_undecoding

            refuse_undecoding(self.model.device)
        self.turn = threading.Lock()
        self.idle_since = time.perf_counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        call = _Call(time.perf_counter())
        if self.tenure is not None and self.tenure.ends():
            table = table.slice(0, 0)
        columns = {name: table[name].to_pylist() for name in _DECODED}
        pixels = binary_views(table["pixels"])
        predictions: list[Prediction | None] = [None] * table.num_rows
        group: dict[int, Any] = {}
        held = 0  # bytes of pixels that were decoded here
        for row, image in self._images(table, columns, pixels, call):
            if image is not None:
                group[row] = image
                held += image.nbytes if pixels[row] is None else 0
            if held > BLOCK_BYTES:
                self._predict(group, columns, predictions, call)
                group, held = {}, 0
        self._predict(group, columns, predictions, call)
        rows = _shared_out(
            self._rows(table, columns, predictions),
            {f"{SECONDS}wait": call.idle_s or 0.0, f"{COUNTED}batches": call.batches},
        )
        return _stamped("predict", call.start + call.queued_s, rows)

    @contextmanager
    def _on_device(self, call: _Call) -> Iterator[None]:
        """The device to oneself."""
        queued = time.perf_counter()
        with self.turn:
            call.queued_s += time.perf_counter() - queued
            if call.idle_s is None:
                call.idle_s = max(0.0, call.start - self.idle_since)
            yield
            self.idle_since = time.perf_counter()

    def _predict(
        self,
        group: dict[int, Any],
        columns: dict[str, list[Any]],
        predictions: list[Prediction | None],
        call: _Call,
    ) -> None:
        """Predict the images of some rows, into ``predictions``."""
        original = self.predicting.original_grid
        sizes = [(columns["height"][r], columns["width"][r]) if original else None for r in group]
        with self._on_device(call):
            before = self.model.num_batches
            results = self.model.predict_batch(list(group.values()), sizes)
            call.batches += self.model.num_batches - before
        for row, prediction in zip(group, results, strict=True):
            predictions[row] = replace(prediction, image=_NO_PIXELS)

    def _images(
        self,
        table: pa.Table,
        columns: dict[str, list[Any]],
        pixels: list[Blob | None],
        call: _Call,
    ) -> Iterator[tuple[int, Any]]:
        """The rows, each with its pixels, HWC uint8, or ``None`` where it failed, now or before."""
        kept = pc.and_(table["pixels"].is_null(), table["model_width"].is_valid()).to_pylist()
        heights, widths = columns["model_height"], columns["model_width"]
        decoded: dict[int, Any] = {}
        for row in range(table.num_rows):
            if kept[row] and row not in decoded:
                decoded = self._decoded(table, _following(row, kept, heights, widths), call)
            image = decoded.get(row)
            if image is None or image.shape != (heights[row], widths[row], 3):
                image = self._image(table, columns, pixels[row], row)
            yield row, image

    def _decoded(self, table: pa.Table, rows: list[int], call: _Call) -> dict[int, Any]:
        """Pixels of rows that the device decodes; ``None`` for what it does not take."""
        from segbatch.model.device import decode_jpegs

        files = [table["data"][row].as_py() for row in rows]
        with self._on_device(call):
            return dict(zip(rows, decode_jpegs(files, self.model.device), strict=True))

    def _image(
        self, table: pa.Table, columns: dict[str, list[Any]], pixels: Blob | None, row: int
    ) -> Any:
        """Pixels of one row; ``None`` where it failed, now or before."""
        if columns["error"][row] is not None:
            return None
        if pixels is not None:
            return pixels.reshape(columns["model_height"][row], columns["model_width"][row], 3)
        image = decode_image(
            table["data"][row].as_py(),
            max_pixels=self.reading.max_pixels,
            long_side=self.reading.long_side,
        )
        if isinstance(image, Decoded):
            columns["width"][row], columns["height"][row] = image.width, image.height
            return image.pixels
        columns["error"][row], columns["message"][row] = image.kind, image.message
        columns["width"][row] = columns["height"][row] = None  # a header's word is not enough
        return None

    def _rows(
        self,
        table: pa.Table,
        columns: dict[str, list[Any]],
        predictions: list[Prediction | None],
    ) -> pa.Table:
        masks = [None if p is None else p.mask for p in predictions]
        keep = self.predicting.keep_label_maps
        maps = [m.ravel() if m is not None and keep else _NO_LABELS for m in masks]
        kept = [name for name in table.column_names if name not in {*_DECODED, *_PIXELS}]
        made: dict[str, list[Any]] = {
            **{name: columns[name] for name in ("error", "message", "width", "height")},
            "mask_width": [m if m is None else m.shape[1] for m in masks],
            "mask_height": [m if m is None else m.shape[0] for m in masks],
            "class_pixels": [p and p.pixels for p in predictions],
            "class_confidence": [p and p.confidences for p in predictions],
            "uncertainty": [p and p.uncertainty for p in predictions],
        }
        arrays = {name: pa.array(values, PREDICTED[name]) for name, values in made.items()}
        arrays["label_map"] = binary_column(
            np.concatenate([_NO_LABELS, *maps]), [0, *np.cumsum([m.size for m in maps])]
        )
        return pa.table({name: table[name] for name in kept} | arrays)


_DECODED = ("error", "message", "width", "height", "model_width", "model_height")


_PIXELS = ("data", "pixels")


_NO_PIXELS = np.empty((0, 0, 3), np.uint8)  # a prediction shall not keep its image in memory


_NO_LABELS = np.empty(0, np.uint8)


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


@dataclass
class _Call:
    """One block in a worker. ``idle_s``: seconds before it came in which the device had nothing to
    do; ``queued_s``: seconds in which it had to wait for another block.
    """

    start: float
    idle_s: float | None = None
    queued_s: float = 0.0
    batches: int = 0


def _following(row: int, kept: list[bool], heights: list[int], widths: list[int]) -> list[int]:
    """``row`` and those after it that are decoded together with it."""
    rows, held = [row], 3 * heights[row] * widths[row]
    for other in range(row + 1, len(kept)):
        if kept[other]:
            held += 3 * heights[other] * widths[other]
            if len(rows) == JPEGS_AT_ONCE or held > BLOCK_BYTES:
                break
            rows.append(other)
    return rows


def encode_stage(table: pa.Table, encoding: Encoding) -> pa.Table:
    """Label maps and counts → rows of the results. Worst case: a block's label maps."""
    start = time.perf_counter()
    rows = encode(table, encoding)
    for name in table.column_names:
        if name.startswith((SECONDS, COUNTED)):
            rows = rows.append_column(name, table[name])
    return _stamped("encode", start, rows)


def write_stage(table: pa.Table, writing: Writing) -> pa.Table:
    """Rows → complete files, and one account for each. Worst case: 500 rows, twice."""
    start = time.perf_counter()
    seconds, counted = _summed(table, SECONDS), _summed(table, COUNTED)
    accounts = write(table.select(writing.schema.names), writing)
    seconds["write"] = time.perf_counter() - start
    counted["rows"] = table.num_rows
    if accounts:
        accounts[0] = replace(accounts[0], seconds=seconds, counted=counted)
    return pa.table({"account": pa.array([a.to_text() for a in accounts], pa.string())})


def accounts_of(table: pa.Table) -> list[Account]:
    """The accounts in what :func:`write_stage` gave."""
    return [Account.from_text(text) for text in table["account"].to_pylist()]


def _stamped(stage: str, start: float, table: pa.Table) -> pa.Table:
    """``table`` with the wall seconds since ``start``, shared out among its rows."""
    return _shared_out(table, {SECONDS + stage: time.perf_counter() - start})


def _shared_out(table: pa.Table, totals: dict[str, float]) -> pa.Table:
    """``table`` with a column for each total, the same in every row."""
    num_rows = table.num_rows
    for name, total in totals.items():
        share = np.full(num_rows, total / max(1, num_rows), np.float32)
        table = table.append_column(name, pa.array(share))
    return table


def _summed(table: pa.Table, prefix: str) -> dict[str, float]:
    """The totals of the columns that begin with ``prefix``."""
    return {
        name.removeprefix(prefix): float(np.sum(table[name].to_numpy(), dtype=np.float64))
        for name in table.column_names
        if name.startswith(prefix)
    }


# Alone: the whole way of a few images in one process, for those that crash the process that they
# are in, and what is asked of a sample.


class AllStages:
    """The whole way of a few images, in one process, which loads the model once."""

    def __init__(self, stages: Pipeline) -> None:
        self.stages = stages
        try:
            self.predict = PredictStage(stages.predicting, stages.reading)
        except SegbatchError:
            raise
        except Exception as error:  # of this node, and of no image
            raise Incomplete(f"a worker cannot start: {storage.one_line(error)}") from error

    def run(self, table: pa.Table) -> pa.Table:
        """Images of the manifest in, accounts out."""
        stages = self.stages
        fetched = fetch_stage(table, stages.reading, stages.writing.tenure)
        predicted = self.predict(decode_stage(fetched, stages.reading))
        return write_stage(encode_stage(predicted, stages.encoding), stages.writing)


def all_stages(table: pa.Table, stages: Pipeline) -> pa.Table:
    """The same for images that have a process to themselves."""
    return AllStages(stages).run(table)


def decoded_sizes(table: pa.Table, reading: Reading) -> list[tuple[int, int]]:
    """Of each image that can be decoded: its pixels, and its bytes as the model takes it."""
    fetched = fetch(table, reading.limits)
    decoded = (
        decode_image(data.as_py(), max_pixels=reading.max_pixels, long_side=reading.long_side)
        for data in fetched["data"]
        if data.is_valid
    )
    return [(i.width * i.height, i.pixels.nbytes) for i in decoded if isinstance(i, Decoded)]


def crashed_row(image: pa.Table, message: str, stages: Pipeline) -> pa.Table:
    """Write the failed row of one image of the manifest that crashed its worker."""
    unknown = {name: pa.nulls(1, type_) for name, type_ in PREDICTED.items()}
    said = {"error": pa.array(["crashed"]), "message": pa.array([message])}
    columns = {name: image[name] for name in image.column_names} | unknown | said
    return write_stage(encode_stage(pa.table(columns), stages.encoding), stages.writing)
