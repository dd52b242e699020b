"""Options that several commands share, and how facts are printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from typer import Argument, Option

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
        width = max(len(LABELS.get(key, key)) for key in entry)
        for key, value in entry.items():
            print(f"{LABELS.get(key, key):{width}}  {_as_text(key, value)}")


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
