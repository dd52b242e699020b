"""A contact sheet of a labelled dataset: some images, each next to its overlay."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from segbatch import storage
from segbatch.errors import InputError
from segbatch.images.scaling import downscale
from segbatch.labels.check import CheckReport
from segbatch.labels.dataset import Dataset
from segbatch.labels.rows import DatasetRow
from segbatch.masks import (
    decode_mask,
    encode_picture,
    overlay,
    picture_format,
    with_legend,
)

MAX_IMAGES = 24
COLUMNS = 4
SIDE = 224  # pixels of the square into which a picture is fitted
GAP = 12
CAPTION = 22


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
        np.array([share.share for share in shares]),
    )
    with storage.translate_errors("cannot write", InputError):
        storage.write_bytes(where, encode_picture(picture, where))
    return len(rows)


def choose_rows(rows: Sequence[DatasetRow], num_classes: int) -> list[DatasetRow]:
    """At most 24 images that together show every class, rare classes where they are largest; the
    others are taken evenly from all. In the order of ``rows``.
    """
    sound = [row for row in rows if not row.faults and row.pixels]
    counts = [sum(class_id in row.pixels for row in sound) for class_id in range(num_classes)]
    chosen: set[int] = set()
    for class_id in np.argsort(counts, kind="stable").tolist():
        shown = any(class_id in sound[index].pixels for index in chosen)
        if counts[class_id] and not shown and len(chosen) < MAX_IMAGES:
            chosen.add(max(range(len(sound)), key=lambda index: _share(sound[index], class_id)))
    spread = np.linspace(0, len(sound) - 1, min(MAX_IMAGES, len(sound))).astype(int).tolist()
    for index in spread:
        if len(chosen) < MAX_IMAGES:
            chosen.add(index)
    return [sound[index] for index in sorted(chosen)]


def _share(row: DatasetRow, class_id: int) -> float:
    return row.pixels.get(class_id, 0) / sum(row.pixels.values())


def _sheet(dataset: Dataset, rows: Sequence[DatasetRow]) -> Image.Image:
    columns = min(COLUMNS, len(rows))
    width, height = 2 * SIDE + GAP, SIDE + CAPTION + GAP
    size = (columns * width + GAP, -(-len(rows) // columns) * height + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(CAPTION // 2)
    order = {(row.shard, row.image_id): number for number, row in enumerate(rows)}
    for row, pair in _pairs(dataset, rows):
        line, column = divmod(order[row.shard, row.image_id], columns)
        x, y = GAP + column * width, GAP + line * height
        for number, picture in enumerate(pair):
            sheet.paste(picture, (x + number * SIDE, y))
        caption = f"{row.image_id}  {row.split}  {storage.name_of(row.uri)}"
        draw.text((x, y + SIDE + CAPTION // 2), caption[:64], "black", font, anchor="lm")
    return sheet


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
        table = dataset.read_shard(shard, ["image_id", "image", "mask"])
        for index, image_id in enumerate(table["image_id"].to_pylist()):
            if image_id in wanted:
                entry = table.slice(index, 1).to_pylist()[0]
                yield (
                    wanted[image_id],
                    _pair(dataset, entry["image"]["bytes"], entry["mask"]["bytes"]),
                )


def _pair(dataset: Dataset, image: bytes, mask: bytes) -> tuple[Image.Image, Image.Image]:
    with Image.open(io.BytesIO(image)) as opened:
        photo = downscale(ImageOps.exif_transpose(opened).convert("RGB"), SIDE)
    # Nearest neighbour, because class ids cannot be averaged.
    small = Image.fromarray(decode_mask(mask)).resize(photo.size, Image.Resampling.NEAREST)
    return photo, overlay(np.asarray(photo), np.asarray(small), dataset.classes)
