"""``segbatch labels suggest``: copies the images of a run that are worth labelling.

    candidates ──► thumbnails ──► order ──► copy ──► list
    SQL            small          clusters  bytes,   suggested.csv
                   photos                   labels

Each copy comes with the predicted mask as labels to correct. The same run gives the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
from segbatch.formats.polygons import TOLERANCE, polygons, without_specks
from segbatch.images.decode import decode_image
from segbatch.images.faults import Undecodable
from segbatch.images.parts import read_parts
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.results.lookup import mask_png, unreadable_mask
from segbatch.results.runfolder import RunFolder
from segbatch.results.schema import TRANSIENT_ERRORS
from segbatch.review.pictures import Picture, label_map_at, limits_of, read_pictures
from segbatch.review.suggest.candidates import Candidate, find_candidates
from segbatch.review.suggest.diversity import describe_images, diverse_order
from segbatch.review.suggest.labelling import (
    LABEL_WRITERS,
    Copy,
    Suggestion,
    copy_name,
    read_list,
    suggested_shapes,
    write_list,
    write_missing,
)

LONG_SIDE = 64  # pixels of the photographs that are compared
BATCH_IMAGES = 16  # in memory

# People correct the polygons by hand. Regions smaller than this part of the image are dropped, and
# outlines may deviate from the border by this part of the longer side.
SPECK = 4000
FINE = 500

LABELLED = "is labelled already"
SUGGESTED = "was suggested before"
GONE = "cannot be read now: {}"
DAMAGED = "its mask in the run is damaged: audit the run"
CHANGED = "is of another size than when the run saw it"


@dataclass(frozen=True)
class LabelledImages:
    """Images that have labels: their URIs, and the SHA-256 of their bytes in hex."""

    uris: Collection[str] = ()
    sha256s: Collection[str] = ()


@dataclass(frozen=True)
class Suggestions:
    """The images that were copied to ``folder``.

    ``left_out`` counts the images that were considered and not taken, by reason; ``earlier`` the
    images that were in the folder before.
    """

    folder: str
    run: str
    images: Sequence[Suggestion]
    earlier: int
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def unanswered(self) -> int:
        """Images that a later attempt, or other credentials, may be able to read."""
        kinds = (*TRANSIENT_ERRORS, storage.REFUSED_CREDENTIALS)
        return sum(self.left_out[GONE.format(kind)] for kind in kinds)

    def facts(self) -> dict[str, Any]:
        """The folder, the run and the counts."""
        return {
            "folder": self.folder,
            "run": self.run,
            "suggested": len(self.images),
            "clusters": len({image.cluster for image in self.images}),
            "suggested_before": self.earlier,
            "left_out": dict(self.left_out.most_common()),
        }

    def to_json(self) -> dict[str, Any]:
        """The facts, and each image with the columns of the list."""
        return {**self.facts(), "images": [asdict(image) for image in self.images]}


def suggest(
    run: RunFolder,
    folder: str,
    *,
    count: int,
    by: str = "uncertainty",
    against: RunFolder | None = None,
    images: Collection[str] | None = None,
    labelled: LabelledImages = LabelledImages(),
    to: str = "labelme",
) -> Suggestions:
    """Copy up to ``count`` images into ``folder``, any URI, with their masks as labels.

    ``by`` is a key of :data:`~segbatch.review.suggest.candidates.RANKINGS`; ``against`` the other
    run for ``disagreement``. ``images`` limits the choice to these URIs; ``labelled`` images are
    left out, and so are images that ``folder`` holds from earlier calls. ``to`` is a key of
    :data:`~segbatch.review.suggest.labelling.LABEL_WRITERS`.

    Holds 16 images in memory, and reads at most ten for each that is wanted. Raises
    :class:`~segbatch.errors.InputError` if the run or the folder cannot be used in this way, and
    ``OSError`` if storage fails.
    """
    if to not in LABEL_WRITERS:
        raise InputError(f"--to {to}: must be one of {', '.join(LABEL_WRITERS)}")
    folder = storage.normalize(folder)
    limits = limits_of(run)
    earlier = read_list(folder)
    without = {row["uri"]: SUGGESTED for row in earlier} | dict.fromkeys(labelled.uris, LABELLED)
    candidates, left_out = find_candidates(
        run, by=by, count=count, against=against, among=images, without=without
    )
    readable, photos, unreadable = _read_thumbnails(run, candidates, limits)
    left_out += unreadable
    known = dict.fromkeys(labelled.sha256s, LABELLED)
    known |= {row["sha256"]: SUGGESTED for row in earlier}
    copies: list[Copy] = []
    ordered = iter(_diverse_order(run, readable, photos, count))
    while batch := list(islice(ordered, min(BATCH_IMAGES, count - len(copies)))):
        parts = run.parts([(candidate.image_id, candidate.uri) for candidate, _ in batch])
        contents = read_parts(parts, limits.read_limits())
        for (candidate, cluster), content in zip(batch, contents, strict=True):
            copy = (
                _copy(run, folder, candidate, cluster, content, limits=limits, known=known)
                if isinstance(content, bytes)
                else GONE.format(content.kind)
            )
            if isinstance(copy, str):
                left_out[copy] += 1
            else:
                copies.append(copy)
                known[copy.suggestion.sha256] = SUGGESTED
    if copies:
        LABEL_WRITERS[to](folder, copies, run.classes, len(earlier))
        write_list(folder, copies)
    suggestions = [copy.suggestion for copy in copies]
    return Suggestions(folder, run.uri, suggestions, len(earlier), left_out)


def _read_thumbnails(
    run: RunFolder, candidates: Sequence[Candidate], limits: Limits
) -> tuple[list[Candidate], list[npt.NDArray[np.uint8]], Counter[str]]:
    """The candidates that can be read, their small photographs, and the others by reason."""
    readable, photos = [], []
    unreadable: Counter[str] = Counter()
    with Bar("look", len(candidates)) as bar:
        for start in range(0, len(candidates), BATCH_IMAGES):
            batch = candidates[start : start + BATCH_IMAGES]
            parts = run.parts([(candidate.image_id, candidate.uri) for candidate in batch])
            pictures = read_pictures(parts, [None] * len(batch), LONG_SIDE, limits)
            for candidate, picture in zip(batch, pictures, strict=True):
                if isinstance(picture, Picture):
                    readable.append(candidate)
                    photos.append(picture.photo)
                else:
                    unreadable[GONE.format(picture.kind)] += 1
            done = start + len(batch)
            if bar.move(done, ""):
                bar.line(f"images={done}/{len(candidates)}", "event=look ")
    return readable, photos, unreadable


def _diverse_order(
    run: RunFolder,
    candidates: Sequence[Candidate],
    photos: Sequence[npt.NDArray[np.uint8]],
    count: int,
) -> list[tuple[Candidate, int]]:
    """The candidates in the order in which to take them, each with its cluster."""
    if not candidates:
        return []
    shares = np.array([candidate.coverage or [0.0] * len(run.classes) for candidate in candidates])
    scores = [candidate.score for candidate in candidates]
    order = diverse_order(describe_images(shares, photos), scores, count)
    return [(candidates[row], cluster) for row, cluster in order]


def _copy(
    run: RunFolder,
    folder: str,
    candidate: Candidate,
    cluster: int,
    content: bytes,
    *,
    limits: Limits,
    known: Mapping[str, str],
) -> Copy | str:
    """Copy an image, unless something prevents it; then the reason.

    ``known`` are reasons by the SHA-256 of contents that are not wanted.
    """
    digest = sha256(content).hexdigest()
    if digest in known:
        return known[digest]
    image = decode_image(content, max_pixels=limits.max_pixels, long_side=LONG_SIDE)
    if isinstance(image, Undecodable):
        return GONE.format(image.kind)
    size = image.width, image.height
    if candidate.size not in (None, size):
        return CHANGED
    try:
        label_map = _label_map(run, candidate.image_id, size)
    except UnreadableMask:
        return DAMAGED
    found = polygons(label_map, max(TOLERANCE, max(size) / FINE))
    shapes = [polygon for polygon in found if polygon.class_id != IGNORE_INDEX]
    name = copy_name(candidate.uri, content)
    write_missing(folder, name, content)
    suggestion = Suggestion(
        image_id=candidate.image_id,
        uri=candidate.uri,
        file=name,
        reason=candidate.reason,
        uncertainty=candidate.uncertainty,
        cluster=cluster,
        run=run.uri,
        model=run.info.model.uri,
        sha256=digest,
        shapes=suggested_shapes(shapes, run.classes),
    )
    confidence = {c.name: candidate.confidence.get(c.field) for c in run.classes}
    return Copy(suggestion, size, shapes, encode_mask(label_map, run.classes.palette), confidence)


def _label_map(run: RunFolder, image_id: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The predicted mask of an image without specks; all void if no mask is stored."""
    try:
        label_map = label_map_at(mask_png(run, image_id), size)
    except SourceError as error:
        raise unreadable_mask(run, image_id, error) from error
    return without_specks(label_map, label_map.size // SPECK)
