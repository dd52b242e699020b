"""The template of the report page, and how numbers are written in it."""

from __future__ import annotations

from jinja2 import Template

from segbatch import masks
from segbatch.masks.drawing import CHANGED
from segbatch.review.pages import page_environment


def report_template() -> Template:
    environment = page_environment("segbatch.review.report")
    environment.globals.update(
        count="{:,}".format,
        percent=_percent,
        number=_number,
        points=_points,
        changed_color=f"rgb{CHANGED}",
    )
    return environment.get_template("report.html")


def _percent(share: float | None) -> str:
    """A share for reading; a small one that is not zero is not shown as 0%."""
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}"
    return masks.share(share)


def _points(change: float | None) -> str:
    """A change of a share, in percentage points."""
    if change is None:
        return "–"
    return f"{100 * change:+.1f}".replace("-", "−") if abs(change) >= 0.0005 else "0"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:#.3g}".rstrip(".")
