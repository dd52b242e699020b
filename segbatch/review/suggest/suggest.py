"""Suggest: the images of a run that are worth labelling, copied with what the model saw in them.

    candidates ──► look ──► spread ──► copy ──► list
    SQL            small    clusters   bytes,   suggested.csv
                   photos              polygons

The same run gives the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.config.job import Limits
from segbatch.console import Bar
from segbatch.errors import InputError, SourceError, UnreadableMask
from segbatch.formats.polygons import TOLERANCE, Polygon, polygons, without_specks
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.fetch import read_images
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.results.lookup import mask_png, unreadable_mask
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import TRANSIENT_ERRORS
from segbatch.results.write import NEVER_WRITTEN
from segbatch.review.pictures import Picture, label_map_at, limits_of, read_pictures
from segbatch.review.suggest.candidates import Candidate, find_candidates
from segbatch.review.suggest.diversity import describe, spread
from segbatch.review.suggest.labelling import (
    FORMATS,
    Copy,
    Entry,
    file_name,
    read_list,
    write_list,
    write_new,
)

LOOKED_AT = 64  # pixels of the longer side
AT_ONCE = 16  # images in memory

# Polygons are to be corrected by hand: a region below one part of the image in so many is none, and
# an outline may leave its border by one part in so many of the longer side.
SPECK = 4000
FINE = 500

LABELLED = "is labelled already"
SUGGESTED = "was suggested before"
GONE = "cannot be read now: {}"
DAMAGED = "its mask in the run is damaged: audit the run"
CHANGED = "is of another size than when the run saw it"


@dataclass(frozen=True)
class Labelled:
    """Images that need no labelling: their URIs, and the SHA-256 of their bytes in hex."""

    uris: Collection[str] = ()
    sha256s: Collection[str] = ()


@dataclass(frozen=True)
class Suggestions:
    """What was copied to ``folder``. ``left_out`` counts images that were looked at and not taken,
    by why; ``earlier`` those that were in the folder.
    """

    folder: str
    run: str
    images: Sequence[Entry]
    earlier: int
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def unanswered(self) -> int:
        """Images that may be read another time, or with other credentials."""
        kinds = (*TRANSIENT_ERRORS, NEVER_WRITTEN)
        return sum(self.left_out[GONE.format(kind)] for kind in kinds)

    def facts(self) -> dict[str, Any]:
        """Where, and how many."""
        return {
            "folder": self.folder,
            "run": self.run,
            "suggested": len(self.images),
            "clusters": len({entry.cluster for entry in self.images}),
            "suggested_before": self.earlier,
            "left_out": dict(self.left_out.most_common()),
        }

    def to_json(self) -> dict[str, Any]:
        """The same, and each image as its line of the list has it."""
        return {**self.facts(), "images": [asdict(entry) for entry in self.images]}


def suggest(
    run: RunFolder,
    folder: str,
    *,
    count: int,
    by: str = "uncertainty",
    against: RunFolder | None = None,
    images: Collection[str] | None = None,
    labelled: Labelled = Labelled(),
    to: str = "labelme",
) -> Suggestions:
    """Copy up to ``count`` images into ``folder``, any URI, with their masks as polygons.

    ``by``: a key of :data:`~segbatch.review.suggest.candidates.RANKINGS`. ``against``: the other
    run, of ``disagreement``. ``images``: URIs among which is chosen. ``labelled``: what is not.
    ``to``: a key of :data:`~segbatch.review.suggest.labelling.FORMATS`. What was suggested into
    ``folder`` before is not suggested again.

    Holds 16 images, and reads at most ten for each that is wanted. Raises
    :class:`~segbatch.errors.InputError` where the run or the folder cannot be used so, and
    ``OSError`` if storage fails.
    """
    if to not in FORMATS:
        raise InputError(f"--to {to}: must be one of {', '.join(FORMATS)}")
    folder = storage.normalize(folder)
    earlier = read_list(folder)
    without = {row["uri"]: SUGGESTED for row in earlier} | dict.fromkeys(labelled.uris, LABELLED)
    found, left_out = find_candidates(
        run, by=by, count=count, against=against, among=images, without=without
    )
    seen, photos = _look(found, limits_of(run), left_out)
    shares = np.array([candidate.coverage or [0.0] * len(run.classes) for candidate in seen])
    scores = [candidate.score for candidate in seen]
    order = spread(describe(shares, photos), scores, count) if seen else []
    wanted = ((seen[row], cluster) for row, cluster in order)
    known = dict.fromkeys(labelled.sha256s, LABELLED)
    known |= {row["sha256"]: SUGGESTED for row in earlier}
    copies: list[Copy] = []
    while batch := list(islice(wanted, min(AT_ONCE, count - len(copies)))):
        copies += _copy(run, folder, batch, known, left_out)
    if copies:
        FORMATS[to](folder, copies, run.classes, len(earlier))
        write_list(folder, earlier, copies)
    entries = [copy.entry for copy in copies]
    return Suggestions(folder, run.uri, entries, len(earlier), left_out)


def _look(
    candidates: Sequence[Candidate], limits: Limits, left_out: Counter[str]
) -> tuple[list[Candidate], list[npt.NDArray[np.uint8]]]:
    """Those that can be read, and small photographs of them."""
    seen, photos = [], []
    with Bar("look", len(candidates)) as bar:
        for start in range(0, len(candidates), AT_ONCE):
            part = candidates[start : start + AT_ONCE]
            uris = [candidate.uri for candidate in part]
            pictures = read_pictures(uris, [None] * len(part), LOOKED_AT, limits)
            for candidate, picture in zip(part, pictures, strict=True):
                if isinstance(picture, Picture):
                    seen.append(candidate)
                    photos.append(picture.photo)
                else:
                    left_out[GONE.format(picture.kind)] += 1
            if bar.move(start + len(part), ""):
                bar.line(f"images={start + len(part)}/{len(candidates)}", "event=look ")
    return seen, photos


def _copy(
    run: RunFolder,
    folder: str,
    wanted: Sequence[tuple[Candidate, int]],
    known: dict[str, str],
    left_out: Counter[str],
) -> Iterator[Copy]:
    """Copy images; ``known`` says of contents why they are not, and gets those that were."""
    limits = limits_of(run)
    contents = read_images([candidate.uri for candidate, _ in wanted], limits.of_reading())
    for (candidate, cluster), content in zip(wanted, contents, strict=True):
        if not isinstance(content, bytes):
            left_out[GONE.format(content.kind)] += 1
            continue
        digest = sha256(content).hexdigest()
        if digest in known:
            left_out[known[digest]] += 1
            continue
        image = decode_image(content, max_pixels=limits.max_pixels, long_side=LOOKED_AT)
        if isinstance(image, Undecodable):
            left_out[GONE.format(image.kind)] += 1
            continue
        size = image.width, image.height
        if candidate.size not in (None, size):
            left_out[CHANGED] += 1
            continue
        try:
            shapes = _shapes(run, candidate.image_id, size)
        except UnreadableMask:
            left_out[DAMAGED] += 1
            continue
        known[digest] = SUGGESTED
        name = file_name(candidate.uri)
        write_new(folder, name, content)
        entry = Entry(
            image_id=candidate.image_id,
            uri=candidate.uri,
            file=name,
            reason=candidate.reason,
            uncertainty=candidate.uncertainty,
            cluster=cluster,
            run=run.uri,
            model=run.info["model"]["uri"],
            sha256=digest,
        )
        yield Copy(entry, size, shapes)


def _shapes(run: RunFolder, image_id: int, size: tuple[int, int]) -> list[Polygon]:
    """What the model saw in an image; nothing where there is no mask."""
    try:
        label_map = label_map_at(mask_png(run, image_id), size)
    except SourceError as error:
        raise unreadable_mask(run, image_id, error) from error
    larger = without_specks(label_map, label_map.size // SPECK)
    found = polygons(larger, max(TOLERANCE, max(size) / FINE))
    return [polygon for polygon in found if polygon.class_id != IGNORE_INDEX]
