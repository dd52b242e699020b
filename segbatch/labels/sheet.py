"""A contact sheet of a labelled dataset: some images, each next to its overlay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segbatch import storage
from segbatch.errors import InputError, SourceError
from segbatch.formats.photo import MAX_PIXELS
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.labels.check import CheckReport
from segbatch.labels.dataset import Dataset
from segbatch.labels.rows import DatasetRow
from segbatch.masks import (
    decode_mask,
    encode_picture,
    overlay,
    picture_format,
    share,
    with_legend,
)
from segbatch.masks.drawing import legible_name, load_font

MAX_IMAGES = 24
COLUMNS = 4
SIDE = 224  # pixels of the square into which a picture is fitted
GAP = 12  # between frames, and around the sheet
PADDING = 8  # between a frame and what is in it
FONT = 18  # of captions and of the legend
CAPTION = 3 * FONT  # two lines
FRAME = (200, 204, 209)
LARGEST = 2  # classes named below a picture that was chosen for none
QUIET = (91, 100, 112)


@dataclass(frozen=True)
class ChosenRow:
    """A row for the sheet; ``shown_for`` is the id of the class that it was chosen to show."""

    row: DatasetRow
    shown_for: int | None


def write_sheet(report: CheckReport, where: str) -> int:
    """Write the sheet to ``where``, any URI, whose extension gives the format; returns the number
    of images on it. Raises :class:`~segbatch.errors.InputError` if it cannot be written.
    """
    picture_format(where)
    rows = choose_rows(report.rows, len(report.dataset.classes))
    if not rows:
        raise InputError(f"{report.dataset.uri}: has no image that a sheet could show")
    shares = report.balance.shares(report.dataset.classes)[:-1]
    picture = with_legend(
        _sheet(report.dataset, rows),
        report.dataset.classes,
        np.array([each.share for each in shares]),
        FONT,
    )
    with storage.translate_errors("cannot write", InputError):
        storage.write_bytes(where, encode_picture(picture, where))
    return len(rows)


def choose_rows(rows: Sequence[DatasetRow], num_classes: int) -> list[ChosenRow]:
    """At most 24 images that together show every class, rare classes where they are largest; the
    others are taken evenly from all. In the order of ``rows``.
    """
    sound = [row for row in rows if not row.faults and row.pixels]
    counts = [sum(class_id in row.pixels for row in sound) for class_id in range(num_classes)]
    chosen: dict[int, int | None] = {}
    for class_id in np.argsort(counts, kind="stable").tolist():
        shown = any(class_id in sound[index].pixels for index in chosen)
        if counts[class_id] and not shown and len(chosen) < MAX_IMAGES:
            most = max(range(len(sound)), key=lambda index: _share(sound[index], class_id))
            chosen[most] = class_id
    spread = np.linspace(0, len(sound) - 1, min(MAX_IMAGES, len(sound))).astype(int).tolist()
    for index in spread:
        if len(chosen) < MAX_IMAGES:
            chosen.setdefault(index, None)
    return [ChosenRow(sound[index], shown_for) for index, shown_for in sorted(chosen.items())]


def _share(row: DatasetRow, class_id: int) -> float:
    return row.pixels.get(class_id, 0) / sum(row.pixels.values())


def _sheet(dataset: Dataset, rows: Sequence[ChosenRow]) -> Image.Image:
    columns = min(COLUMNS, len(rows))
    width, height = 2 * SIDE + 2 * PADDING, SIDE + CAPTION + 2 * PADDING
    size = (
        columns * (width + GAP) + GAP,
        -(-len(rows) // columns) * (height + GAP) + GAP,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    order = {(each.row.shard, each.row.image_id): number for number, each in enumerate(rows)}
    for row, pair in _pairs(dataset, [each.row for each in rows]):
        number = order[row.shard, row.image_id]
        line, column = divmod(number, columns)
        x, y = GAP + column * (width + GAP), GAP + line * (height + GAP)
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=FRAME)
        for place, picture in enumerate(pair):
            sheet.paste(picture, (x + PADDING + place * SIDE, y + PADDING))
        _caption(draw, (x + PADDING, y + PADDING + SIDE), rows[number], dataset)
    return sheet


def _caption(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], chosen: ChosenRow, dataset: Dataset
) -> None:
    """Two lines below a pair: the class that it was chosen for, or else its largest classes, and
    which image it is.
    """
    font = load_font(FONT)
    x, (first, second) = place[0], (place[1] + FONT, place[1] + 9 * FONT // 4)
    row, start = chosen.row, x
    present = (class_id for class_id in row.pixels if class_id < len(dataset.classes))
    largest = sorted(present, key=lambda class_id: -row.pixels[class_id])[:LARGEST]
    names = [legible_name(each, font) for each in dataset.classes]
    why = ", ".join(f"{names[each]} {share(_share(row, each))}" for each in largest)
    if chosen.shown_for is not None:
        shown = dataset.classes[chosen.shown_for]
        box = (x, first - FONT // 2, x + FONT, first + FONT // 2)
        draw.rectangle(box, fill=shown.color, outline="black")
        why, start = f"for {names[shown.id]}, {share(_share(row, shown.id))}", x + 3 * FONT // 2
    draw.text((start, first), _fitted(why, font, x + 2 * SIDE - start), "black", font, anchor="lm")
    which = _fitted(f"{row.image_id}  {row.split}  {storage.name_of(row.uri)}", font, 2 * SIDE)
    draw.text((x, second), which, QUIET, font, anchor="lm")


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, cut to at most ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    fits = (end for end in range(len(text), 0, -1) if font.getlength(f"{text[:end]}…") <= width)
    return f"{text[: next(fits, 0)]}…"


def _pairs(
    dataset: Dataset, rows: Sequence[DatasetRow]
) -> Iterator[tuple[DatasetRow, tuple[Image.Image, Image.Image]]]:
    """Each image, downscaled, and the same with its classes over it; holds one shard at a time."""
    by_shard: dict[str, dict[int, DatasetRow]] = defaultdict(dict)
    for row in rows:
        by_shard[row.shard][row.image_id] = row
    for shard in dataset.shards:
        wanted = by_shard.get(shard.path)
        if not wanted:
            continue
        table = dataset.read_shard(shard, ["image_id", "uri", "image", "mask"])
        for index, image_id in enumerate(table["image_id"].to_pylist()):
            if image_id in wanted:
                yield wanted[image_id], _pair(dataset, table.slice(index, 1).to_pylist()[0])


def _pair(dataset: Dataset, row: Mapping[str, Any]) -> tuple[Image.Image, Image.Image]:
    """The pictures of a row. Raises :class:`~segbatch.errors.SourceError` if there is no image."""
    decoded = decode_image(row["image"]["bytes"], max_pixels=MAX_PIXELS, long_side=SIDE)
    if isinstance(decoded, Undecodable):
        raise SourceError(f"{row['uri']}: cannot be decoded: {decoded.message}")
    photo = Image.fromarray(decoded.pixels)
    # Nearest neighbour, because class ids cannot be averaged.
    label_map = decode_mask(row["mask"]["bytes"])
    small = Image.fromarray(label_map).resize(photo.size, Image.Resampling.NEAREST)
    return photo, overlay(decoded.pixels, np.asarray(small), dataset.classes)
