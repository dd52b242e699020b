"""Options: what several commands take, and what goes together with what."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    pass

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="Job file, any URI; - is stdin.")]


RunUri = Annotated[str, typer.Argument(metavar="RUN", help="The run's folder, any URI.")]


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: predict.batch_size=64."),
]


RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Take failed images up again.")]


Only = Annotated[
    str | None, typer.Option(metavar="KIND,…", help="With --retry-failed: these kinds only.")
]


Repair = Annotated[
    bool, typer.Option("--repair", help="First move damaged files away, and do them again.")
]


def kinds_of(only: str | None) -> list[str]:
    """The kinds of error that ``--only`` names."""
    return [kind.strip() for kind in (only or "").split(",") if kind.strip()]


# Facts: how the command line prints what it knows, as text or as JSON.


class Facts(StrEnum):
    """How facts are printed."""

    text = "text"
    json = "json"


FactsFormat = Annotated[Facts, typer.Option("--format", help="How facts are printed.")]


def print_facts(facts: Any, format: Facts) -> None:
    """Facts, or a list of such, on stdout."""
    if format is Facts.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    entries = facts if isinstance(facts, list) else [facts]
    for index, entry in enumerate(entries):
        if index:
            print()
        width = max(len(key) for key in entry)
        for key, value in entry.items():
            print(f"{key:{width}}  {_readable(key, value)}")


def _readable(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(k, v)}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(_readable("", item) for item in value) or "-"
    if value is None:
        return "-"
    if key in ("created", "updated", "since", "heartbeat") and isinstance(value, int | float):
        from datetime import UTC, datetime

        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if key not in ("pid", "exit_code") else str(value)
    return str(value)
