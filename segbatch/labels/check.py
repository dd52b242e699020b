"""Check: whether a labelled dataset can be trained on, and what is odd about it. Read-only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segbatch import storage
from segbatch.console import Pace
from segbatch.errors import Incomplete, SourceError
from segbatch.labels.balance import Balance
from segbatch.labels.dataset import Dataset, Shard, open_dataset
from segbatch.labels.rows import Row, survey
from segbatch.masks.classes import IGNORE_INDEX
from segbatch.signals import interruptible

Level = Literal["error", "warning"]

# More ids than this without a class, and a mask holds colours or grey values rather than ids.
MANY_IDS = 8
SHOWN_IDS = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``error``: it cannot be trained on) or odd (``warning``)."""

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
    """What a check found. ``rows`` are all rows that could be read, without their bytes."""

    dataset: Dataset
    rows: Sequence[Row]
    findings: Sequence[Finding]
    balance: Balance

    @property
    def errors(self) -> int:
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
    """Decode every image and mask, and look for what would spoil a training.

    Raises :class:`~segbatch.errors.SourceError` where there is no dataset, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    with interruptible():
        dataset = open_dataset(uri)
        findings: list[Finding] = []

        def damaged(shard: Shard, error: SourceError) -> None:
            findings.append(Finding("error", str(error), shard=shard.path))

        rows: list[Row] = []
        with Pace("check", sum(dataset.splits.values())) as pace:
            for some in survey(dataset, decode=True, damaged=damaged):
                rows += some
                pace.add(len(some))
    balance = Balance()
    for row in rows:
        balance.add(row.split, row.pixels)
        findings += _of_row(row, dataset)
    findings += _together(rows)
    findings += _of_classes(dataset, balance)
    findings += _strays(dataset)
    findings.sort(key=lambda finding: finding.level)  # errors first
    return CheckReport(dataset, rows, findings, balance)


def _of_row(row: Row, dataset: Dataset) -> Iterator[Finding]:
    whats: list[tuple[Level, str]] = [("error", fault) for fault in row.faults]
    foreign = sorted(set(row.pixels) - {c.id for c in dataset.classes} - {IGNORE_INDEX})
    if foreign:
        ids = ", ".join(map(str, foreign[:SHOWN_IDS])) + (", …" if foreign[SHOWN_IDS:] else "")
        guess = (
            "; so many look like colours taken for ids: import such masks with --colors"
            if len(foreign) > MANY_IDS
            else ""
        )
        whats.append(("error", f"the mask has ids that are no class: {ids}{guess}"))
    if row.split != (folder := row.shard.partition("/")[0]):
        whats.append(("error", f"says that it is in split {row.split} and lies in {folder}/"))
    if set(row.pixels) == {IGNORE_INDEX}:
        whats.append(("warning", "every pixel is void: it teaches nothing"))
    for level, what in whats:
        yield Finding(level, what, row.image_id, row.uri, row.shard)


def _together(rows: Sequence[Row]) -> Iterator[Finding]:
    """What is odd about rows only beside each other."""
    for first, row in _repeated(rows, lambda row: row.image_id):
        what = f"its image_id is also that of {first.uri} in {first.shard}"
        yield Finding("error", what, row.image_id, row.uri, row.shard)
    for first, row in _repeated(rows, lambda row: row.sha256):
        leak = "" if first.split == row.split else ", so what is trained on is measured on"
        what = f"the same image as {first.image_id} ({first.uri}) in {first.split}{leak}"
        yield Finding("warning", what, row.image_id, row.uri, row.shard)
    splits: dict[str, Row] = {}
    for row in rows:
        if row.group is not None and splits.setdefault(row.group, row).split != row.split:
            first = splits[row.group]
            what = f"its group {row.group!r} is also in {first.split}: image {first.image_id}"
            yield Finding("warning", what, row.image_id, row.uri, row.shard)


def _repeated(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> Iterator[tuple[Row, Row]]:
    """Rows whose key an earlier one has, with that one."""
    first: dict[Hashable, Row] = {}
    for row in rows:
        if first.setdefault(key(row), row) is not row:
            yield first[key(row)], row


def _of_classes(dataset: Dataset, balance: Balance) -> Iterator[Finding]:
    for split in ("train", "val"):
        if split not in balance.splits:
            yield Finding("warning", f"{split} has no image")
            continue
        for seg_class in dataset.classes:
            if not balance.images(split, seg_class.id):
                yield Finding("warning", f"{split} has no pixel of {seg_class.name}")


def _strays(dataset: Dataset) -> Iterator[Finding]:
    try:
        paths = dataset.unnamed_files()
    except OSError as error:
        raise Incomplete(f"{dataset.uri}: cannot be listed: {storage.one_line(error)}") from error
    for path in paths:
        what = "does not belong to the dataset: a killed import's is deleted by the next import"
        yield Finding("warning", what, shard=path)
