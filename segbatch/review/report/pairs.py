"""The images that changed most between two runs: the result of either, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch.masks.classes import IGNORE_INDEX, Classes
from segbatch.masks.drawing import highlight
from segbatch.masks.html import jpeg_uri
from segbatch.review.pictures import Picture, PictureProblem, read_run_pictures
from segbatch.review.report.comparison import ChangedImage, DiffSummary
from segbatch.review.report.gallery import (
    BATCH_IMAGES,
    LONG_SIDE,
    QUALITY,
    Thumbnails,
    thumbnails_of,
)

NO_CLASS = -1


@dataclass(frozen=True)
class Pair:
    """One image in both runs; ``difference`` is a data URI, ``None`` without both masks."""

    change: ChangedImage
    before: Thumbnails
    after: Thumbnails
    difference: str | None


def draw_pairs(comparison: DiffSummary) -> list[Pair]:
    """The pictures of the changed images, in their order.

    Raises what :func:`~segbatch.review.pictures.read_run_pictures` raises.
    """
    return list(_pairs(comparison))


def _pairs(comparison: DiffSummary) -> Iterator[Pair]:
    before, after = comparison.before, comparison.after
    for start in range(0, len(comparison.changes), BATCH_IMAGES // 2):
        changes = comparison.changes[start : start + BATCH_IMAGES // 2]
        olds = read_run_pictures(before, [(c.id_before, c.uri) for c in changes], LONG_SIDE)
        news = read_run_pictures(after, [(c.id_after, c.uri) for c in changes], LONG_SIDE)
        for change, old, new in zip(changes, olds, news, strict=True):
            yield Pair(
                change,
                thumbnails_of(old, before),
                thumbnails_of(new, after),
                _difference(old, new, before.classes, after.classes),
            )


def _difference(
    before: Picture | PictureProblem,
    after: Picture | PictureProblem,
    classes_before: Classes,
    classes_after: Classes,
) -> str | None:
    if not isinstance(before, Picture) or not isinstance(after, Picture):
        return None
    maps = before.label_map, after.label_map
    if maps[0].shape != maps[1].shape or any((ids == IGNORE_INDEX).all() for ids in maps):
        return None
    changed = changed_pixels(*maps, classes_before, classes_after)
    return jpeg_uri(highlight(after.photo, changed), QUALITY)


def changed_pixels(
    before: npt.NDArray[np.uint8],
    after: npt.NDArray[np.uint8],
    classes_before: Classes,
    classes_after: Classes,
) -> npt.NDArray[np.bool_]:
    """Where two label maps of one shape have another class; classes of one field are the same."""
    fields = dict.fromkeys([*classes_before.fields, *classes_after.fields])
    numbers = {field: number for number, field in enumerate(fields)}

    def numbered(label_map: npt.NDArray[np.uint8], classes: Classes) -> npt.NDArray[Any]:
        by_id = np.full(IGNORE_INDEX + 1, NO_CLASS)
        by_id[: len(classes)] = [numbers[field] for field in classes.fields]
        return by_id[label_map]

    return np.asarray(numbered(before, classes_before) != numbered(after, classes_after))
