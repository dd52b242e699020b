"""Imports annotated images of any format into a labelled dataset.

    find ──► name the classes ──► assign the splits ──► read and draw ──► shards ──► classes.json

Mistakes of the user are found before the first image is read, and the dataset stays as it was until
``classes.json`` is written, the last step. Images are numbered in the order of their URIs, so the
same labels give the same dataset.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from segbatch import storage
from segbatch.console import ImageBar
from segbatch.errors import InputError, SourceError
from segbatch.formats import FORMATS
from segbatch.formats.format import (
    AnnotatedImage,
    Annotations,
    LabelledImage,
    Reader,
    ReadOptions,
    Skipped,
    Unusable,
)
from segbatch.formats.photo import AS_STORED
from segbatch.images.parts import part_extension
from segbatch.labels.balance import Balance, count_pixels
from segbatch.labels.card import dataset_card
from segbatch.labels.dataset import SPLITS, Dataset
from segbatch.labels.existing import ExistingImages
from segbatch.labels.naming import given_classes, name_classes, unlabelled_id
from segbatch.labels.pool import in_order
from segbatch.labels.splits import Splits
from segbatch.labels.summary import ImportReport, to_json_lines
from segbatch.labels.writer import DatasetWriter
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE_INDEX, Classes
from segbatch.signals import interruptible

READERS = {name: format.reader for name, format in FORMATS.items() if format.reader is not None}
NOBODY_CHANGED = "is a suggestion that nobody has changed"
MOSTLY_VOID = 0.9  # share of the pixels
CHUNK = 4  # images a task; each has a thread, so that one waits for storage while others draw


def import_labels(
    source: str,
    dataset: str,
    *,
    format: str,
    classes: str | Sequence[str] | None = None,
    images: str | None = None,
    masks: str | None = None,
    colors: str | None = None,
    reduce_zero_label: bool = False,
    map: Mapping[str, str] | None = None,
    unlabelled: str | None = None,
    split: str | None = None,
    split_list: str | None = None,
    group_by: str | None = None,
    append: bool = False,
    add_class: bool = False,
    overwrite: bool = False,
    accept_unchanged: bool = False,
) -> ImportReport:
    """Make a labelled dataset of annotated images, or add them to one.

    ``source`` and ``dataset`` are folders, any URI; ``format`` is a key of
    :data:`~segbatch.formats.FORMATS` with a reader. ``classes``: names by id, or what
    ``--classes`` takes. ``map``: names in the labels to names of classes, or to ``__ignore__``.
    ``unlabelled``: the class of pixels that no shape covers, or ``ignore``. The other options are
    those of :class:`~segbatch.formats.format.ReadOptions` and
    :class:`~segbatch.labels.splits.Splits`.

    ``append``: images keep their split and class ids never change; an image with the URI or
    content of one in the dataset replaces it; without ``group_by``, new images are grouped as the
    dataset's are. ``add_class``: new names become classes. ``overwrite``: the import replaces the
    dataset. ``accept_unchanged``: take suggestions that nobody has changed, too.

    Starts processes for all but a few images: in a script, call this under
    ``if __name__ == "__main__":``. Raises :class:`~segbatch.errors.InputError` for mistakes that
    the user can correct (:class:`~segbatch.errors.SourceError` if they are in the labels or the
    dataset), and :class:`~segbatch.errors.Incomplete` for failures that pass.
    """
    writer = DatasetWriter(dataset, append=append, overwrite=overwrite)
    if add_class and not append:
        raise InputError("--add-class goes with --append")
    reader = _reader(
        format,
        {
            "masks": masks,
            "colors": colors,
            "reduce-zero-label": reduce_zero_label,
            "unlabelled": unlabelled,
        },
    )
    recorded = writer.base.group_by if writer.base is not None else None
    rules = Splits(split, split_list, group_by if group_by is not None else recorded)
    given = given_classes(classes)
    before = writer.base.classes if writer.base is not None else None

    # Find the annotated images.
    names_by_id = given if given is not None else before
    options = ReadOptions(
        images=images,
        masks=masks,
        colors=colors,
        reduce_zero_label=reduce_zero_label,
        class_names=tuple(names_by_id.names) if names_by_id is not None else None,
    )
    found = reader.find(source, options)
    system_files = _system_files(source)  # here, where a failure leaves nothing half done
    annotated, repeated = _one_per_image(found.images)
    unchanged = [] if accept_unchanged else [image for image in annotated if image.unchanged]
    annotated = [image for image in annotated if accept_unchanged or not image.unchanged]
    if not annotated:
        raise SourceError(f"{source}: {_say_unchanged(len(unchanged))}")

    # Name the classes.
    renames = map or {}
    naming = name_classes(
        source, found, given=given, renames=renames, before=before, add_class=add_class
    )
    rest_id = unlabelled_id(unlabelled, naming.classes)

    # Assign the splits of images that are new.
    existing = ExistingImages(writer.base, {image.uri for image in annotated})
    new = [image for image in annotated if image.uri not in existing]
    if group_by is not None:
        rules.require_groups([*(image.uri for image in annotated), *existing.uris])
    elif new and rules.group_by is None:
        existing.refuse_groups()
    splits = rules.assign(new, existing.splits_of_groups(rules))

    # Read and draw the images, and write them into shards and `classes.json`.
    drawing = Drawing(reader.read, naming.ids, rest_id, naming.classes.palette)
    with interruptible(), writer.writing():
        result = _write_images(
            annotated, drawing, writer, existing=existing, splits=splits, rules=rules
        )
        untouched = [Skipped(image.labels_uri, NOBODY_CHANGED) for image in unchanged]
        skipped = [*found.skipped, *repeated, *untouched, *result.skipped]
        if not result.images:
            raise SourceError(f"{source}: no image there can be used; {_left_out(skipped)}")
        if not result.shapes and skipped:
            raise SourceError(f"{source}: no shape there could be drawn; {_left_out(skipped)}")
        if not result.has_class:
            raise SourceError(f"{source}: every pixel is void: there is nothing to learn from")
        this_source = {
            "source": storage.normalize(source),
            "format": format,
            "imported": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "images": result.images.total(),
            "shapes": result.shapes,
            "skipped": len(skipped),
            "split": rules.text,
            "group_by": rules.group_by,
        }
        sources = [*(writer.base.sources if writer.base is not None else ()), this_source]
        shards = writer.finish(existing.replaced_ids)
        written = Dataset(writer.uri, naming.classes, shards, sources, result.balance.pixels)
        writer.publish(written, dataset_card(written, result.balance), to_json_lines(skipped))

    rest_name = next((c.name for c in naming.classes if c.id == rest_id), "ignore")
    return ImportReport(
        dataset=writer.uri,
        classes=naming.classes,
        images={split: result.images[split] for split in SPLITS if result.images[split]},
        shapes=result.shapes,
        unlabelled=rest_name if "unlabelled" in reader.options else None,
        balance=result.balance,
        skipped=skipped,
        replaced=result.replaced,
        added=naming.added,
        notes=[
            *([_say_unchanged(len(unchanged))] if unchanged else []),
            *([_grouped_as_before(recorded)] if group_by is None and new and recorded else []),
            *system_files,
            *_warnings(
                naming.classes, result.balance, reader, "--append" if append else "--overwrite"
            ),
            *_say_turned(result),
            *_notes(found, annotated, renames, rules, result.balance),
        ],
    )


def _reader(format: str, options: Mapping[str, object]) -> Reader:
    """The reader of ``format``. Raises :class:`~segbatch.errors.InputError` if there is none, or if
    an option is given that it does not take.
    """
    if format not in READERS:
        raise InputError(f"--from {format}: no such format; there is {', '.join(READERS)}")
    for option, value in options.items():
        if value and option not in READERS[format].options:
            takers = [name for name, reader in READERS.items() if option in reader.options]
            raise InputError(f"--{option} goes with --from {' or '.join(takers)}, not {format}")
    return READERS[format]


def _one_per_image(
    images: Sequence[AnnotatedImage],
) -> tuple[list[AnnotatedImage], list[Skipped]]:
    """The images by URI; if an image has several labels, the first that are no suggestion."""
    by_uri: dict[str, AnnotatedImage] = {}
    repeated = []
    for image in sorted(images, key=lambda image: (image.uri, image.unchanged, image.labels_uri)):
        first = by_uri.setdefault(image.uri, image)
        if first is not image:
            why = f"its image, {image.uri}, has other labels already: {first.labels_uri}"
            repeated.append(Skipped(image.labels_uri, why))
    return list(by_uri.values()), repeated


# ---------------------------------------------------------------------------------- read and draw


@dataclass(frozen=True)
class Drawing:
    """How every image is drawn; pickled, for other processes. See
    :class:`~segbatch.formats.format.Reader`.
    """

    read: Callable[[AnnotatedImage, Mapping[str, int], int], LabelledImage]
    ids: Mapping[str, int]
    unlabelled: int
    palette: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DrawnImage:
    """One image with its mask: the columns of its row that depend on it alone, and facts."""

    columns: Mapping[str, Any]
    sha256: str
    pixels: Mapping[int, int]
    shapes: int
    skipped: tuple[Skipped, ...]
    perhaps_turned: bool


def _drawn(
    images: Sequence[AnnotatedImage], drawing: Drawing
) -> Iterator[tuple[AnnotatedImage, DrawnImage | Skipped]]:
    """Every image, drawn by several processes, in order; or why it cannot be used."""
    tasks = ((drawing, images[start : start + CHUNK]) for start in range(0, len(images), CHUNK))
    with ImageBar("import", len(images)) as bar, closing(in_order(_draw_chunk, tasks)) as chunks:
        for image, drawn in zip(images, chain.from_iterable(chunks), strict=True):
            bar.add(1)
            yield image, drawn


def _draw_chunk(task: tuple[Drawing, Sequence[AnnotatedImage]]) -> list[DrawnImage | Skipped]:
    """Draw some images, in any process. Raises what the format's ``read`` raises, except
    :class:`~segbatch.formats.format.Unusable`.
    """
    drawing, images = task
    with ThreadPoolExecutor(CHUNK) as threads:
        return list(threads.map(lambda image: _draw(drawing, image), images))


def _draw(drawing: Drawing, image: AnnotatedImage) -> DrawnImage | Skipped:
    try:
        labelled = drawing.read(image, drawing.ids, drawing.unlabelled)
    except Unusable as error:
        return Skipped(image.uri, str(error))
    name = storage.name_of(image.uri) + part_extension(image.uri, labelled.image)
    mask = encode_mask(labelled.label_map, drawing.palette)
    columns = {
        "uri": image.uri,
        "image": {"bytes": labelled.image, "path": name},
        "mask": {"bytes": mask, "path": f"{PurePosixPath(name).stem}.png"},
        "width": labelled.width,
        "height": labelled.height,
    }
    return DrawnImage(
        columns,
        hashlib.sha256(labelled.image).hexdigest(),
        count_pixels(labelled.label_map),
        labelled.shapes,
        labelled.skipped,
        labelled.perhaps_turned,
    )


# ------------------------------------------------------------------------------------------ write


@dataclass
class WrittenImages:
    """Counts of the images that were written; ``balance`` is that of the whole dataset.

    ``has_class``: some of their pixels belong to a class. ``perhaps_turned``: the URIs of those of
    which :class:`~segbatch.formats.format.LabelledImage` says so.
    """

    images: Counter[str] = field(default_factory=Counter)
    shapes: int = 0
    replaced: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    has_class: bool = False
    perhaps_turned: list[str] = field(default_factory=list)
    balance: Balance = field(default_factory=Balance)


def _write_images(
    images: Sequence[AnnotatedImage],
    drawing: Drawing,
    writer: DatasetWriter,
    *,
    existing: ExistingImages,
    splits: Mapping[str, str],
    rules: Splits,
) -> WrittenImages:
    """Draw every image and add it to the dataset; new ones are numbered in their order."""
    result = WrittenImages()
    next_id = existing.next_id
    for image, drawn in _drawn(images, drawing):
        if isinstance(drawn, Skipped):
            result.skipped.append(drawn)
            continue
        group = rules.group_of(image.uri)
        old = existing.replace(image.uri, drawn.sha256)
        if old is not None:
            split, image_id, group = old.split, old.image_id, group or old.group
            result.replaced += 1
        else:
            split, image_id = splits[image.uri], next_id
            next_id += 1
        writer.add(split, {**drawn.columns, "image_id": image_id, "group": group})
        result.images[split] += 1
        result.shapes += drawn.shapes
        result.skipped += drawn.skipped
        result.perhaps_turned += [image.uri] * drawn.perhaps_turned
        result.has_class |= any(class_id != IGNORE_INDEX for class_id in drawn.pixels)
        result.balance.add(split, drawn.pixels)
    for row in existing.remaining:
        result.balance.add(row.split, row.pixels)
    return result


def _left_out(skipped: Sequence[Skipped]) -> str:
    """What was left out, in one line."""
    first = skipped[0]
    why = first.why.removeprefix(f"{first.where}: ")
    number = f"{len(skipped):,} things were left out, the first one" if skipped[1:] else "left out:"
    return f"{number} {first.where}: {why}"


def _say_unchanged(number: int) -> str:
    return (
        f"{number:,} images are suggestions that nobody has changed, and are left out: correct and"
        " save them, or import them as they are with --accept-unchanged"
    )


def _grouped_as_before(recorded: str) -> str:
    return f"new images are grouped as in earlier imports: --group-by {shlex.quote(recorded)}"


def _system_files(source: str) -> list[str]:
    """How many system files there are in the folder ``source``."""
    system = storage.SystemFiles()
    root = storage.normalize(source)
    with storage.reading_input(source, SourceError, "no such file, folder or bucket"):
        paths = (storage.path_below(file.uri, root) for file in storage.list_files(root))
        for _ in system.left_out(paths, str):
            pass
    return [f"left out {system}"] if system.counts else []


def _warnings(classes: Classes, balance: Balance, reader: Reader, option: str) -> list[str]:
    """What makes a dataset useless for training, although every file of it is in order.

    ``option`` is the one with which the same import can be typed again: --append or --overwrite.
    """
    *of_classes, void = balance.shares(classes)
    absent = [share.name for share in of_classes if not share.pixels]
    warnings = []
    if absent:
        warnings.append(
            f"warning: no pixel of {', '.join(absent)}: a training would not learn"
            f" {'it' if len(absent) == 1 else 'them'}"
        )
    if absent and void.pixels and "colors" in reader.options:
        meant = absent[-1]
        lines = [f"{c.id} {c.id} {c.id} {c.name}" for c in classes if c.name not in absent]
        lines.append(f"255 255 255 {meant}")
        warnings.append(
            f"255 is void in masks of ids; if it is {meant} here, put the lines"
            f" {', '.join(map(repr, lines))} into a file and import with"
            f" --colors FILE {option}"
        )
    if void.share > MOSTLY_VOID:
        advice = ""
        if "unlabelled" in reader.options:
            new_class = absent[0] if absent else "background"
            is_new = new_class not in classes.names
            names = ",".join([new_class] * is_new + classes.names)
            add = ["--add-class"] * (is_new and option == "--append")
            typed = shlex.join(["--classes", names, "--unlabelled", new_class, option, *add])
            advice = f": give the pixels that no shape covers a class, for instance with {typed}"
        void_share = f"{void.share:.1%} of all pixels are void"
        warnings.append(f"warning: {void_share}, from which nothing is learnt{advice}")
    return warnings


def _say_turned(result: WrittenImages) -> list[str]:
    """A warning of images that are perhaps labelled as they are stored, because another one is."""
    as_stored = next((entry.where for entry in result.skipped if AS_STORED in entry.why), None)
    if as_stored is None or not result.perhaps_turned:
        return []
    first, number = result.perhaps_turned[0], len(result.perhaps_turned)
    return [
        f"warning: EXIF turns {first}{f' and {number - 1:,} more' * (number > 1)}, and the size"
        f" does not show whether the labels are for {AS_STORED}, as those of {as_stored}, which is"
        " left out: if they are, remove the orientation from the EXIF, and import again with"
        " --append"
    ]


def _notes(
    found: Annotations,
    images: Sequence[AnnotatedImage],
    renames: Mapping[str, str],
    rules: Splits,
    balance: Balance,
) -> list[str]:
    """Hints for the user that need no correction."""
    notes = []
    named = sorted({image.split for image in images if image.split is not None})
    if rules.by_default and named:
        notes.append(
            f"folders or files are named {', '.join(named)}: --split folder would keep those splits"
        )
    present = set(map(storage.clean_name, found.names))
    unused = [name for name in renames if storage.clean_name(name) not in present]
    if unused:
        notes.append(f"--map: no label has the name {', '.join(unused)}")
    notes += [
        f"no image is in {split}, although {rules.text} gives it a share: use a larger share, or"
        " choose its images with --split-list"
        for split in rules.wanted
        if not balance.splits.get(split)
    ]
    return notes
