"""Checks whether a labelled dataset can be trained on, and warns about oddities. Read-only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segbatch import storage
from segbatch.console import ImageBar
from segbatch.errors import SourceError
from segbatch.labels.balance import Balance
from segbatch.labels.dataset import Dataset, Shard, open_dataset
from segbatch.labels.rows import DatasetRow, scan_rows
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.signals import interruptible

Level = Literal["error", "warning"]

# A mask with more ids than this without a class probably holds colours or grey values.
MANY_IDS = 8
SHOWN_IDS = 8


@dataclass(frozen=True)
class Finding:
    """An ``error``, which prevents training, or a ``warning``."""

    level: Level
    what: str
    image_id: int | None = None
    uri: str | None = None
    shard: str | None = None

    def __str__(self) -> str:
        where = [] if self.image_id is None else [f"image {self.image_id}"]
        where += [part for part in (self.uri, self.shard) if part is not None]
        return f"{self.level}: {' · '.join([*where, self.what])}"

    def to_json(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "what": self.what,
            "image_id": self.image_id,
            "uri": self.uri,
            "shard": self.shard,
        }


@dataclass(frozen=True)
class CheckReport:
    """The result of a check. ``rows`` are all rows that could be read, without their bytes."""

    dataset: Dataset
    rows: Sequence[DatasetRow]
    findings: Sequence[Finding]
    balance: Balance

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        return 1 if self.errors else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset.uri,
            "fingerprint": self.dataset.fingerprint,
            "images": self.balance.splits,
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "classes": [share.to_json() for share in self.balance.shares(self.dataset.classes)],
            "findings": [finding.to_json() for finding in self.findings],
        }


def check_dataset(uri: str) -> CheckReport:
    """Decode every image and mask, and report what would spoil a training.

    Raises :class:`~segbatch.errors.SourceError` if there is no dataset, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    with interruptible():
        dataset = open_dataset(uri)
        findings: list[Finding] = []

        def report(shard: Shard, error: SourceError) -> None:
            findings.append(Finding("error", str(error), shard=shard.path))

        rows: list[DatasetRow] = []
        with ImageBar("check", sum(dataset.splits.values())) as bar:
            for chunk in scan_rows(dataset, decode=True, on_damage=report):
                rows += chunk
                bar.add(len(chunk))
    balance = Balance()
    for row in rows:
        balance.add(row.split, row.pixels)
        findings += _check_row(row, dataset)
    findings += _compare_rows(rows)
    findings += _check_balance(dataset, balance)
    findings += _foreign_files(dataset)
    findings.sort(key=lambda finding: finding.level)  # errors first
    return CheckReport(dataset, rows, findings, balance)


def _check_row(row: DatasetRow, dataset: Dataset) -> Iterator[Finding]:
    problems: list[tuple[Level, str]] = [("error", fault) for fault in row.faults]
    foreign = sorted(set(row.pixels) - {c.id for c in dataset.classes} - {IGNORE_INDEX})
    if foreign:
        ids = ", ".join(map(str, foreign[:SHOWN_IDS])) + (", …" if foreign[SHOWN_IDS:] else "")
        guess = (
            "; so many look like colours, not ids: import such masks with --colors"
            if len(foreign) > MANY_IDS
            else ""
        )
        problems.append(("error", f"the mask has ids that are not classes: {ids}{guess}"))
    if row.split != (folder := row.shard.partition("/")[0]):
        problems.append(("error", f"its split is {row.split}, but it is in the folder {folder}/"))
    if set(row.pixels) == {IGNORE_INDEX}:
        problems.append(("warning", "every pixel is void: training learns nothing from it"))
    for level, what in problems:
        yield Finding(level, what, row.image_id, row.uri, row.shard)


def _compare_rows(rows: Sequence[DatasetRow]) -> Iterator[Finding]:
    """Repeated ids and images, and groups in several splits."""
    for first, row in _repeated(rows, lambda row: row.image_id):
        what = f"its image_id is also that of {first.uri} in {first.shard}"
        yield Finding("error", what, row.image_id, row.uri, row.shard)
    for first, row in _repeated(rows, lambda row: row.sha256):
        leak = "" if first.split == row.split else ", so the model is tested on a training image"
        what = f"the same image as {first.image_id} ({first.uri}) in {first.split}{leak}"
        yield Finding("warning", what, row.image_id, row.uri, row.shard)
    splits: dict[str, DatasetRow] = {}
    for row in rows:
        if row.group is not None and splits.setdefault(row.group, row).split != row.split:
            first = splits[row.group]
            what = f"its group {row.group!r} is also in {first.split}: image {first.image_id}"
            yield Finding("warning", what, row.image_id, row.uri, row.shard)


def _repeated(
    rows: Sequence[DatasetRow], key: Callable[[DatasetRow], Hashable]
) -> Iterator[tuple[DatasetRow, DatasetRow]]:
    """Each row whose key an earlier row has, after that row."""
    first: dict[Hashable, DatasetRow] = {}
    for row in rows:
        if first.setdefault(key(row), row) is not row:
            yield first[key(row)], row


def _check_balance(dataset: Dataset, balance: Balance) -> Iterator[Finding]:
    present = [c.name for c in dataset.classes if balance.images("train", c.id)]
    if "train" in balance.splits and len(present) < 2:
        what = (
            f"train has pixels of {present[0]} alone" if present else "every pixel of train is void"
        )
        yield Finding("error", f"{what}: nothing can be learnt")
    for split in ("train", "val"):
        if split not in balance.splits:
            yield Finding("warning", f"{split} has no image")
            continue
        for seg_class in dataset.classes:
            if not balance.images(split, seg_class.id):
                yield Finding("warning", f"{split} has no pixel of {seg_class.name}")


def _foreign_files(dataset: Dataset) -> Iterator[Finding]:
    with storage.translate_errors("cannot list"):
        paths = dataset.unnamed_files()
    for path in paths:
        what = "does not belong to the dataset: if a killed import left it, the next one deletes it"
        yield Finding("warning", what, shard=path)
