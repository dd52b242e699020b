"""Writes label maps with a format's writer and reads them back with its reader."""

from pathlib import Path

import numpy as np

from segbatch.formats.format import (
    Format,
    Photograph,
    ReadOptions,
    SegmentedImage,
    encode_photo,
)
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE_INDEX, Classes
from tests.labels.files import HEIGHT, WIDTH, Array, blank, write

CLASSES = Classes(["wall", "window", "street door"])


def facade(left: int) -> Array:
    """A wall, two windows from ``left`` on, one with ignored pixels in it, and a door."""
    label_map = blank(0)
    label_map[3:9, left : left + 4] = 1
    label_map[3:9, left + 8 : left + 12] = 1
    label_map[5:7, left + 9 : left + 11] = IGNORE_INDEX
    label_map[12:, :5] = 2
    return label_map


def segmented(image_id: int, name: str, label_map: Array) -> SegmentedImage:
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return SegmentedImage(
        run="runs/a",
        image_id=image_id,
        uri=f"s3://photos/{name}.jpg",
        name=name,
        classes=CLASSES,
        mask=encode_mask(label_map, CLASSES.palette),
        photo=Photograph(pixels, "jpg", encode_photo(pixels, "jpg")),
        label_map=label_map,
        folder="labels",
        model="zoo:facades",
        confidence={"wall": 0.9, "window": 0.5, "street door": None},
    )


def assert_round_trip(format: Format, folder: Path) -> None:
    """Two images, one of them in a subfolder, come back with their names, sizes and label maps."""
    assert format.reader is not None
    assert format.writer is not None
    label_maps = {"a": facade(4), "street/b": facade(12)}
    entries: dict[str, list[str]] = {}
    for image_id, (name, label_map) in enumerate(label_maps.items()):
        image = segmented(image_id, name, label_map)
        files = format.writer.files(image)
        write(folder, files)
        *_, last = files
        assert last in [path.format(name=name) for path in format.writer.last]
        if format.writer.entries is not None:
            for slot, texts in format.writer.entries(image, last).items():
                entries.setdefault(slot, []).extend(texts)
    for path, pieces in format.writer.shared(CLASSES, "runs/a").items():
        texts = [p if isinstance(p, str) else p.separator.join(entries[p.name]) for p in pieces]
        write(folder, {path: "".join(texts)})

    found = format.reader.find(str(folder), ReadOptions())
    assert not found.skipped
    assert set(found.names) == set(CLASSES.names)
    ids = {name: CLASSES.names.index(name) for name in found.names}
    images = sorted(found.images, key=lambda image: Path(image.uri).stem)
    for image, label_map in zip(images, label_maps.values(), strict=True):
        labelled = format.reader.read(image, ids, IGNORE_INDEX)
        assert not labelled.skipped
        np.testing.assert_array_equal(labelled.label_map, label_map)
