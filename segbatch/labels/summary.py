"""The summary of an import: what it wrote, and everything that it left out."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segbatch.formats.format import Skipped
from segbatch.labels.balance import Balance
from segbatch.masks.classes import Classes

NUM_EXAMPLES = 3
UNLIMITED = 100_000


@dataclass(frozen=True)
class ImportReport:
    """The result of `segbatch labels import`."""

    dataset: str
    classes: Classes
    images: Mapping[str, int]
    """Number of images of this import, by split."""
    shapes: int
    """Number of shapes of this import; a mask file counts as one."""
    unlabelled: str | None
    """The class of pixels that no shape covers, or ``ignore``; ``None`` for mask files."""
    balance: Balance
    """The balance of the whole dataset."""
    skipped: Sequence[Skipped] = ()
    replaced: int = 0
    """Number of images of the dataset that imported ones replaced."""
    added: Sequence[str] = ()
    """Classes that the dataset did not have before."""
    notes: Sequence[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "images": dict(self.images),
            "images_in_dataset": self.balance.splits,
            "shapes": self.shapes,
            "replaced": self.replaced,
            "added_classes": list(self.added),
            "unlabelled": self.unlabelled,
            "classes": [share.to_json() for share in self.balance.shares(self.classes)],
            "notes": list(self.notes),
            "skipped": [{"where": entry.where, "why": entry.why} for entry in self.skipped],
        }


def to_json_lines(skipped: Sequence[Skipped]) -> bytes:
    """One JSON object per line."""
    entries = ({"where": entry.where, "why": entry.why} for entry in skipped)
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries).encode()


def print_summary(report: ImportReport, skipped_file: str) -> None:
    """Print images, shapes, classes, and what was left out, by reason."""
    console = _console()
    imported = ", ".join(f"{split} {count:,}" for split, count in report.images.items())
    facts = {
        "dataset": report.dataset,
        "images": imported or "none",
        "in the dataset": ", ".join(
            f"{split} {count:,}" for split, count in report.balance.splits.items()
        ),
        "replaced": f"{report.replaced:,}" if report.replaced else "",
        "new classes": ", ".join(report.added),
        "shapes": f"{report.shapes:,}",
        "pixels that no shape covers": report.unlabelled or "",
    }
    if report.images == report.balance.splits:
        del facts["in the dataset"]
    width = max(map(len, facts))
    for name, value in facts.items():
        if value:
            console.print(Text(f"{name:{width}}  {value}"), soft_wrap=True)
    console.print()
    console.print(balance_table(report.balance, report.classes))
    for line in _skipped_lines(report.skipped, skipped_file):
        console.print(Text(line), soft_wrap=True)


def balance_table(balance: Balance, classes: Classes) -> Table:
    """Pixels, their share, and images by split, of each class and of void."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("class")
    for name in ("pixels", "share", *(f"{split} images" for split in balance.splits)):
        table.add_column(name, justify="right")
    for share in balance.shares(classes):
        images = (f"{count:,}" for count in share.images.values())
        table.add_row(Text(share.name), f"{share.pixels:,}", f"{share.share:.2%}", *images)
    return table


def print_balance(balance: Balance, classes: Classes) -> None:
    """Print :func:`balance_table`."""
    _console().print(balance_table(balance, classes))


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=UNLIMITED)


def _skipped_lines(skipped: Sequence[Skipped], skipped_file: str) -> list[str]:
    if not skipped:
        return ["", "Nothing was left out."]
    by_reason: dict[str, list[Skipped]] = defaultdict(list)
    for entry in skipped:
        by_reason[_reason(entry.why)].append(entry)
    lines = ["", f"Left out: {len(skipped):,}"]
    for entries in sorted(by_reason.values(), key=len, reverse=True):
        lines.append(f"{len(entries):7,} × {entries[0].why}")
        lines += [f"          {entry.where}" for entry in entries[:NUM_EXAMPLES]]
        if len(entries) > NUM_EXAMPLES:
            lines.append(f"          and {len(entries) - NUM_EXAMPLES:,} more")
    return [*lines, f"All of them: {skipped_file}"]


def _reason(why: str) -> str:
    """The reason without numbers and quoted names, so that similar reasons are counted as one."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*", "…", why)
