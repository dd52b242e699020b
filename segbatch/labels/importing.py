"""Import: annotated images of any format → a labelled dataset.

    find ──► name the classes ──► deal the splits ──► read and draw ──► shards ──► classes.json

What can be known to be wrong is found before the first image is read, and the dataset is what it
was until ``classes.json`` is written, the last step. Images are numbered in the order of their
URIs, so the same labels give the same dataset.
"""

from __future__ import annotations

import hashlib
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
from segbatch.console import Pace
from segbatch.errors import InputError, SourceError
from segbatch.formats import READERS
from segbatch.formats.format import Found, Item, Labelled, Options, Skipped, Unusable
from segbatch.labels.balance import Balance, count_pixels
from segbatch.labels.card import card
from segbatch.labels.dataset import SPLITS, Dataset
from segbatch.labels.naming import given_classes, name_classes, unlabelled_id
from segbatch.labels.pool import in_order
from segbatch.labels.report import ImportReport, to_lines
from segbatch.labels.splits import Splits
from segbatch.labels.target import Known, Target
from segbatch.masks import encode_mask
from segbatch.signals import interruptible

# Reading: annotated images → rows of a dataset, a few at a time, in any process.


CHUNK = 4  # images a task; each of its threads waits for storage while others draw


@dataclass(frozen=True)
class ItemReader:
    """What turns every item into a sample; it goes to other processes."""

    read: Callable[[Item, Mapping[str, int], int], Labelled]
    ids: Mapping[str, int]
    unlabelled: int
    palette: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """One image with its mask: the columns of its row that follow from it alone, and facts."""

    row: Mapping[str, Any]
    sha256: str
    pixels: Mapping[int, int]
    shapes: int
    skipped: tuple[Skipped, ...]


def read_chunk(task: tuple[ItemReader, Sequence[Item]]) -> list[Drawn | Skipped]:
    """What some items become, in their order; :class:`~segbatch.formats.format.Skipped` for an
    image that cannot be used. Raises what else the format's ``read`` raises.
    """
    reader, items = task
    with ThreadPoolExecutor(CHUNK) as threads:
        return list(threads.map(lambda item: _read(reader, item), items))


def _read(reader: ItemReader, item: Item) -> Drawn | Skipped:
    try:
        labelled = reader.read(item, reader.ids, reader.unlabelled)
    except Unusable as error:
        return Skipped(item.uri, str(error))
    name = storage.name_of(item.uri)
    mask = encode_mask(labelled.label_map, reader.palette)
    row = {
        "uri": item.uri,
        "image": {"bytes": labelled.image, "path": name},
        "mask": {"bytes": mask, "path": f"{PurePosixPath(name).stem}.png"},
        "width": labelled.width,
        "height": labelled.height,
    }
    return Drawn(
        row,
        hashlib.sha256(labelled.image).hexdigest(),
        count_pixels(labelled.label_map),
        labelled.shapes,
        labelled.skipped,
    )


# Options that mean something to some formats only.
FORMATS_WITH: Mapping[str, Sequence[str]] = {
    "masks": ["pairs"],
    "colors": ["pairs", "voc"],
    "reduce-zero-label": ["pairs"],
    "unlabelled": ["labelme", "coco"],  # mask files say something of every pixel
}


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
) -> ImportReport:
    """Make a labelled dataset of annotated images, or add them to one.

    ``source`` and ``dataset`` are folders, any URI; ``format`` is a key of
    :data:`~segbatch.formats.READERS`. ``classes``: names by id, or what ``--classes`` takes.
    ``map``: names in the labels to names of classes, or to ``__ignore__``. ``unlabelled``: the
    class of pixels that no shape covers, or ``ignore``. The other options are those of
    :class:`~segbatch.formats.format.Options` and :class:`~segbatch.labels.splits.Splits`.

    ``append``: images keep their split and class ids never move; an image of the same URI or
    content as one in the dataset takes its place. ``add_class``: new names become classes.
    ``overwrite``: the dataset is made anew.

    Processes are started for all but a few images: in a script, call this under
    ``if __name__ == "__main__":``. Raises :class:`~segbatch.errors.InputError` for what the user
    can mend (:class:`~segbatch.errors.SourceError` where it is the labels or the dataset), and
    :class:`~segbatch.errors.Incomplete` for what passes.
    """
    target = Target(dataset, append=append, overwrite=overwrite)
    if add_class and not append:
        raise InputError("--add-class goes with --append")
    _check_format(
        format,
        {
            "masks": masks,
            "colors": colors,
            "reduce-zero-label": reduce_zero_label,
            "unlabelled": unlabelled,
        },
    )
    rules = Splits(split, split_list, group_by)
    given = given_classes(classes)
    before = target.kept.classes if target.kept is not None else None
    of_ids = given if given is not None else before
    options = Options(
        images=images,
        masks=masks,
        colors=colors,
        reduce_zero_label=reduce_zero_label,
        class_names=tuple(of_ids.names) if of_ids is not None else None,
    )
    found = READERS[format].find(source, options)
    naming = name_classes(
        source, found, given=given, renames=map or {}, before=before, add_class=add_class
    )
    rest = unlabelled_id(unlabelled, naming.classes)
    items, twice = _distinct(found.items)
    known = Known(target.kept, {item.uri for item in items})
    coming = [item for item in items if item.uri not in known]
    splits = rules.assign(coming, known.splits_of_groups(rules))
    reader = ItemReader(READERS[format].read, naming.ids, rest, naming.classes.palette)
    with interruptible(), target.writing():
        taken = _take(items, reader, target, known=known, splits=splits, rules=rules)
        taken.skipped[:0] = [*found.skipped, *twice]
        if not taken.images:
            raise SourceError(
                f"{source}: no image there can be used; {len(taken.skipped)} things were left"
                f" out, the first one {taken.skipped[0].where}: {taken.skipped[0].why}"
            )
        entry = {
            "source": storage.normalize(source),
            "format": format,
            "imported": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "images": taken.images.total(),
            "shapes": taken.shapes,
            "skipped": len(taken.skipped),
            "split": rules.text,
        }
        sources = [*(target.kept.sources if target.kept is not None else ()), entry]
        shards = target.finish(known.replaced)
        made = Dataset(target.uri, naming.classes, shards, sources)
        target.publish(made, card(made, taken.balance), to_lines(taken.skipped))
    names = {c.id: c.name for c in naming.classes}
    return ImportReport(
        dataset=target.uri,
        classes=naming.classes,
        images={split: taken.images[split] for split in SPLITS if taken.images[split]},
        shapes=taken.shapes,
        unlabelled=names.get(rest, "ignore") if format in FORMATS_WITH["unlabelled"] else None,
        balance=taken.balance,
        skipped=taken.skipped,
        replaced=taken.replaced,
        added=naming.added,
        notes=_notes(found, items, map or {}, rules, taken),
    )


def _check_format(format: str, options: Mapping[str, object]) -> None:
    if format not in READERS:
        raise InputError(f"--from {format}: no such format; there is {', '.join(READERS)}")
    for option, formats in FORMATS_WITH.items():
        if options[option] and format not in formats:
            raise InputError(f"--{option} goes with --from {' or '.join(formats)}, not {format}")


@dataclass
class Taken:
    """What became of the items. ``balance`` is that of the whole dataset."""

    images: Counter[str] = field(default_factory=Counter)
    shapes: int = 0
    replaced: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    balance: Balance = field(default_factory=Balance)


def _take(
    items: Sequence[Item],
    reader: ItemReader,
    target: Target,
    *,
    known: Known,
    splits: Mapping[str, str],
    rules: Splits,
) -> Taken:
    """Read every item and add it to ``target``, numbered in their order."""
    taken = Taken()
    next_id = known.next_id
    for item, drawn in _drawn(items, reader):
        if isinstance(drawn, Skipped):
            taken.skipped.append(drawn)
            continue
        group = rules.group_of(item.uri)
        old = known.replace(item.uri, drawn.sha256)
        if old is not None:
            split, image_id, group = old.split, old.image_id, group or old.group
            taken.replaced += 1
        else:
            split, image_id = splits[item.uri], next_id
            next_id += 1
        target.add(split, {**drawn.row, "image_id": image_id, "group": group})
        taken.images[split] += 1
        taken.shapes += drawn.shapes
        taken.skipped += drawn.skipped
        taken.balance.add(split, drawn.pixels)
    for row in known.remaining:
        taken.balance.add(row.split, row.pixels)
    return taken


def _drawn(items: Sequence[Item], reader: ItemReader) -> Iterator[tuple[Item, Drawn | Skipped]]:
    tasks = ((reader, items[start : start + CHUNK]) for start in range(0, len(items), CHUNK))
    with Pace("import", len(items)) as pace, closing(in_order(read_chunk, tasks)) as chunks:
        for item, drawn in zip(items, chain.from_iterable(chunks), strict=True):
            pace.add(1)
            yield item, drawn


def _distinct(items: Sequence[Item]) -> tuple[list[Item], list[Skipped]]:
    """The items by URI; of several for one image the first."""
    distinct: dict[str, Item] = {}
    twice = []
    for item in sorted(items, key=lambda item: (item.uri, item.labels_uri)):
        first = distinct.setdefault(item.uri, item)
        if first is not item:
            why = f"its image, {item.uri}, has other labels already: {first.labels_uri}"
            twice.append(Skipped(item.labels_uri, why))
    return list(distinct.values()), twice


def _notes(
    found: Found, items: Sequence[Item], renames: Mapping[str, str], rules: Splits, taken: Taken
) -> list[str]:
    """What a user should know and need not mend."""
    notes = []
    said = sorted({item.split for item in items if item.split is not None})
    if rules.by_default and said:
        notes.append(
            f"folders or files speak of {', '.join(said)}: --split folder would keep those splits"
        )
    unused = [name for name in renames if name not in found.names]
    if unused:
        notes.append(f"--map: nothing is called {', '.join(unused)}")
    notes += [
        f"no image fell to {split}, of which {rules.text} asks a share: give a larger one, or say"
        " which with --split-list"
        for split in rules.wanted
        if not taken.balance.splits.get(split)
    ]
    return notes
