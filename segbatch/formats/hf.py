"""Hugging Face datasets of photographs and masks: Parquet files with a column of each.

On disk, in object storage or on the Hub: ``hf://datasets/owner/name``. Masks hold class ids or
colours, as in ``pairs``. A word of a file's name is the split: ``data/train-00000.parquet``.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from segbatch import storage
from segbatch.errors import SourceError
from segbatch.formats.folder import split_of_path
from segbatch.formats.format import AnnotatedImage, Annotations, Format, Reader, ReadOptions
from segbatch.formats.maskfiles import mask_key, read_mask_file
from segbatch.images.listing import reading_source
from segbatch.images.tables import (
    IMAGE_BUFFER_BYTES,
    find_files,
    image_columns,
    open_parquet,
)
from segbatch.storage import hub

IMAGES = ("image", "images", "img", "photo", "pixel_values")
MASKS = (
    "label", "labels", "mask", "masks", "annotation", "annotations", "segmentation",
    "segmentation_mask", "seg_mask", "label_map", "labelmap",
)  # fmt: skip


def find_rows(source: str, options: ReadOptions) -> Annotations:
    """The rows of the tables in ``source``; ``options.images`` and ``options.masks`` name columns.

    Raises :class:`~segbatch.errors.InputError` for options that do not fit,
    :class:`~segbatch.errors.SourceError` if there is no such table, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    key = mask_key(source, options)
    if hub.is_on_hub(source):
        with storage.translate_errors("cannot read", SourceError):
            source = hub.pinned(source)
    with reading_source(source):
        files = [file for file in find_files(source)[0] if file.lower().endswith(".parquet")]
    if not files:
        raise SourceError(f"{source}: no Parquet file, no folder with any, and no glob of them")
    images: list[AnnotatedImage] = []
    columns: tuple[str, str] | None = None
    for file in files:
        with reading_source(file), open_parquet(file, IMAGE_BUFFER_BYTES) as table:
            names: list[str] = table.schema_arrow.names
            columns = columns or _columns(source, image_columns(table).single, names, options)
            rows = table.metadata.num_rows
        missing = [column for column in columns if column not in names]
        if missing:
            raise SourceError(f"{file}: has no column {', '.join(missing)}")
        photos, masks = columns
        split = split_of_path(file.removeprefix(source))
        images += [
            AnnotatedImage(_uri(file, row, photos), _uri(file, row, masks), split, key)
            for row in range(rows)
        ]
    if not images:
        raise SourceError(f"{source}: the tables have no rows")
    return Annotations(images, key.names, key.colors)


def _uri(file: str, row: int, column: str) -> str:
    return f"{file}#row={row}&column={quote(column, safe='')}"


def _columns(
    source: str, found: Sequence[str], names: Sequence[str], options: ReadOptions
) -> tuple[str, str]:
    """The columns of the photographs and of the masks."""
    there = ", ".join(found) or "none"
    chosen = []
    for asked, option, usual in (
        (options.images, "--images", IMAGES),
        (options.masks, "--masks", MASKS),
    ):
        if asked is not None and asked not in names:
            raise SourceError(
                f"{source}: {option}: no column {asked}; with images there are {there}"
            )
        likely = [name for name in found if name.lower() in usual]
        if asked is None and len(likely) != 1:
            raise SourceError(
                f"{source}: which column holds what is not clear: name them with --images COLUMN"
                f" --masks COLUMN; columns with images: {there}"
            )
        chosen.append(asked if asked is not None else likely[0])
    if chosen[0] == chosen[1]:
        raise SourceError(f"{source}: --images and --masks name one column, {chosen[0]}")
    return chosen[0], chosen[1]


HF = Format(
    reader=Reader(find_rows, read_mask_file, options=["masks", "colors", "reduce-zero-label"])
)
