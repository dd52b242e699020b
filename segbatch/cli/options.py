"""Options that several commands share, and how facts are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from typer import Argument, Option, style

from segbatch.errors import InputError

JobFile = Annotated[str, Argument(metavar="JOB", help="Job file (any URI; - is stdin).")]
RunUri = Annotated[str, Argument(metavar="RUN", help="The run's folder (any URI).")]
Bundle = Annotated[str, Argument(metavar="BUNDLE", help="A model bundle or zoo:NAME.")]

Format = Annotated[Literal["text", "json"], Option("--format", help="Output format.")]
Overrides = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a key: predict.batch_size=64."),
]
RetryFailed = Annotated[bool, Option("--retry-failed", help="Process failed images again.")]
Only = Annotated[
    str | None, Option(metavar="KIND,…", help="With --retry-failed: only these kinds.")
]
Repair = Annotated[
    bool, Option("--repair", help="First move damaged files away and process their images again.")
]
Extend = Annotated[
    bool, Option("--extend", help="Add the images that the source has gained since the start.")
]
Prices = Annotated[str | None, Option(metavar="FILE", help="Your own table of prices.")]
Variables = Annotated[
    list[str] | None,
    Option("--env", metavar="NAME[=VALUE]", help="Send a variable of this shell along."),
]

# JSON has these keys; the text says what they mean.
LABELS = {"twice": "duplicated", "twice_ids": "duplicated_ids", "rest_s": "time left"}
TIMES = ("created", "updated", "since", "heartbeat")  # seconds since 1970
IDENTIFIERS = ("pid", "exit_code")  # printed without a thousands separator


def kinds_of(only: str | None) -> list[str]:
    """The kinds of error that ``--only`` names."""
    return [kind.strip() for kind in (only or "").split(",") if kind.strip()]


def require_extension(output: str, *extensions: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` unless ``output`` ends in one of ``extensions``,
    in any case: an output is what its name says.
    """
    if not output.lower().endswith(extensions):
        raise InputError(f"-o {output}: must end in {' or '.join(extensions)}")


def print_facts(facts: Any, format: str = "text") -> None:
    """Print a mapping, or a list of mappings, to stdout: as JSON, or one line a key."""
    if format == "json":
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for index, entry in enumerate(facts if isinstance(facts, list) else [facts]):
        if index:
            print()
        print(_lines(entry, _width(entry)))


# Facts of a run, those that belong together in one block.
STATUS_BLOCKS = (
    ("run", "status"),
    ("images", "ok", "failed", "remaining", "duplicates"),
    ("images_per_second", "rest_s", "starts", "pass", "driver", "submission"),
    ("model", "created", "updated"),
)
STATUS_COLOURS = {"complete": "green", "failed": "red"}  # all others are yellow


def print_status(summary: Mapping[str, Any], format: str = "text") -> None:
    """Print the summary of a run to stdout: as JSON, or in blocks, without what is empty."""
    if format == "json":
        print_facts(summary, format)
        return
    status = str(summary["status"])
    coloured = style(status, fg=STATUS_COLOURS.get(status, "yellow"))
    reason = f" ({summary['reason']})" if summary["reason"] else ""
    facts = {**summary, "status": f"{coloured if sys.stdout.isatty() else status}{reason}"}
    if not facts["duplicates"]:
        facts["duplicates"] = None
    width = _width(facts)
    blocks = (
        {key: facts[key] for key in block if facts[key] not in (None, {}, [])}
        for block in STATUS_BLOCKS
    )
    print("\n\n".join(_lines(block, width) for block in blocks if block))


def _width(facts: Mapping[str, Any]) -> int:
    """Printed width of the longest key."""
    return max(len(LABELS.get(key, key)) for key in facts)


def _lines(facts: Mapping[str, Any], width: int) -> str:
    """One line a key, with the values in one column."""
    return "\n".join(
        f"{LABELS.get(key, key):{width}}  {_as_text(key, value)}" for key, value in facts.items()
    )


RUN_COLUMNS = ("run", "status", "images", "ok", "failed", "model", "updated")


def print_runs(summaries: Sequence[Mapping[str, Any]], format: str = "text") -> None:
    """Print a list of runs to stdout, the one that changed last first: as JSON, or one a line."""
    newest_first = sorted(summaries, key=lambda summary: -summary["updated"])
    if format == "json":
        print_facts(newest_first, format)
        return
    counted = ({**facts, "failed": sum(facts["failed"].values())} for facts in newest_first)
    rows = [[_as_text(column, facts[column]) for column in RUN_COLUMNS] for facts in counted]
    print_table([RUN_COLUMNS, *rows])


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Print cells in columns to stdout."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _as_text(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_as_text(k, v)}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(_as_text("", item) for item in value) or "-"
    if value is None:
        return "-"
    if key in TIMES and isinstance(value, int | float):
        text = f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    elif key == "rest_s":
        text = str(timedelta(seconds=value))
    elif isinstance(value, int) and not isinstance(value, bool) and key not in IDENTIFIERS:
        text = f"{value:,}"
    else:
        text = str(value)
    return text
