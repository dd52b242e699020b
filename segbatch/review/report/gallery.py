"""The gallery of the report: which images of a run are worth looking at, and their thumbnails.

SQL chooses them by their statistics; only the chosen photographs and masks are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segbatch.masks import encode_mask, overlay
from segbatch.masks.classes import IGNORE_INDEX, SegClass
from segbatch.masks.html import data_uri, jpeg_uri
from segbatch.results.database import quoted_name
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import OK
from segbatch.review.distribution import Ask
from segbatch.review.pictures import Picture, PictureProblem, read_run_pictures

LONG_SIDE = 320  # pixels of a thumbnail
QUALITY = 72
BATCH_IMAGES = 8  # photographs in memory

NUM_TYPICAL = 6
NUM_CERTAIN = 3
NUM_UNCERTAIN = 6
NUM_MOST = 2  # images with most of a class; the image with least of it stands next to them
MAX_CLASSES = 12  # whose extremes are shown
MAX_SHARES = 5  # classes listed below an image
MIN_SHARE = 0.005  # classes that cover less are not listed


@dataclass(frozen=True)
class Card:
    """One image and why it is shown; ``shares`` are its classes, 0 to 1, the largest first."""

    image_id: int
    uri: str
    why: str
    value: float | None  # that it was chosen by, 0 to 1; typical images have none
    shares: Sequence[tuple[SegClass, float]]


@dataclass(frozen=True)
class Section:
    """Images that are shown for one reason."""

    title: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Thumbnails:
    """An image as data URIs: its ``photo``, ``mask`` and ``overlay``.

    ``sources`` holds the photo alone if there is no mask, and nothing if there is a ``problem``.
    """

    sources: Mapping[str, str]
    problem: str | None = None


def choose_images(
    ask: Ask, run: RunFolder, means: Mapping[SegClass, float], *, by_uncertainty: bool
) -> Iterator[Section]:
    """Typical images, the most and least certain ones, and the extremes of the largest classes.

    ``means`` are the mean coverages, the largest first.
    """
    squares = [f"pow({_share(c)} - {mean!r}, 2)" for c, mean in means.items()]
    yield Section("Typical", _cards(ask, run, " + ".join(squares), NUM_TYPICAL))
    if by_uncertainty:
        for title, order, num in (
            ("Least certain", "uncertainty DESC", NUM_UNCERTAIN),
            ("Most certain", "uncertainty", NUM_CERTAIN),
        ):
            cards = _cards(ask, run, order, num, why="uncertainty", value="uncertainty")
            if cards:  # none where the model gives class ids alone
                yield Section(title, cards)
    for c in [c for c, mean in means.items() if mean][:MAX_CLASSES]:
        share = _share(c)
        has = f"nullif({share}, 0)"
        most = _cards(ask, run, f"{share} DESC", NUM_MOST, why=f"most {c.name}", value=has)
        least = _cards(ask, run, share, 1, why=f"least {c.name}", value=has)
        shown = {card.image_id for card in most}
        cards = [*most, *(card for card in least if card.image_id not in shown)]
        yield Section(f"{c.name}: most and least", cards)


def _cards(
    ask: Ask, run: RunFolder, order: str, num: int, *, why: str = "", value: str = "NULL"
) -> list[Card]:
    """The first ``num`` images in an SQL order, of those that have a ``value``."""
    has_value = "" if value == "NULL" else f"AND ({value}) IS NOT NULL"
    rows = ask(
        f"SELECT image_id, uri, {value}, coverage FROM answer WHERE status = '{OK}' {has_value}"
        f" ORDER BY {order}, image_id LIMIT {num}"
    )
    return [
        Card(image_id, uri, why, shown, _largest_shares(run, coverage))
        for image_id, uri, shown, coverage in rows
    ]


def _share(c: SegClass) -> str:
    return f"coverage.{quoted_name(c.field)}"


def _largest_shares(run: RunFolder, coverage: Mapping[str, float]) -> list[tuple[SegClass, float]]:
    shares = [(c, coverage[c.field] or 0.0) for c in run.classes]
    largest = sorted(shares, key=lambda share: -share[1])[:MAX_SHARES]
    return [(c, share) for c, share in largest if share >= MIN_SHARE]


def draw_thumbnails(run: RunFolder, images: Mapping[int, str]) -> dict[int, Thumbnails]:
    """The thumbnails of images of a run, given as URIs by ``image_id``.

    Raises what :func:`~segbatch.review.pictures.read_run_pictures` raises.
    """
    thumbnails = {}
    wanted = list(images.items())
    for start in range(0, len(wanted), BATCH_IMAGES):
        batch = wanted[start : start + BATCH_IMAGES]
        pictures = read_run_pictures(run, batch, LONG_SIDE)
        for (image_id, _), picture in zip(batch, pictures, strict=True):
            thumbnails[image_id] = thumbnails_of(picture, run)
    return thumbnails


def thumbnails_of(picture: Picture | PictureProblem, run: RunFolder) -> Thumbnails:
    """Photo, mask and overlay of a picture; only the photo if there is no mask."""
    if not isinstance(picture, Picture):
        return Thumbnails({}, f"{picture.kind}: {picture.message}")
    photo = {"photo": jpeg_uri(Image.fromarray(picture.photo), QUALITY)}
    if (picture.label_map == IGNORE_INDEX).all():
        return Thumbnails(photo)
    mask = encode_mask(np.ascontiguousarray(picture.label_map), run.classes.palette)
    over = overlay(picture.photo, picture.label_map, run.classes)
    return Thumbnails(photo | {"mask": data_uri("png", mask), "overlay": jpeg_uri(over, QUALITY)})
