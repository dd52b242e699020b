"""The facts at the top of the report page, from ``run.json``."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from segbatch.config.images import location_of, parse_source
from segbatch.config.keys import recorded
from segbatch.results import cost
from segbatch.results.prices import Prices
from segbatch.results.runfolder import RunFolder
from segbatch.review.pages import without_signature


def overview(run: RunFolder, prices: Prices) -> dict[str, str]:
    """The facts at the top of the page, from ``run.json``; unknown ones are left out."""
    info, model = run.info, run.info.model
    pace = info.images_per_second
    seconds = sum(start.wall_s for start in info.starts)
    network = " · ".join(filter(None, (model.arch, model.backbone)))
    facts = {
        "run": run.uri,
        "model": f"{model.uri} ({network})" if network else model.uri,
        "images": ", ".join(map(without_signature, _sources(info.job.get("images", [])))),
        "started": _time(info.created),
        "ended": _time(info.finished) if info.finished else "",
        "took": f"{_duration(seconds)}, {pace:,.3g} images per second" if pace else "",
        **cost.cost_facts(info.starts, prices, cost.object_storage_use(run)),
        "engine": f"{info.engine or 'torch'} {info.precision}" if info.precision else "",
        "why it ended early": info.reason or "",
    }
    return {name: value for name, value in facts.items() if value}


def _sources(images: Any) -> list[str]:
    """The locations under the job's ``images`` key; those of a job that is no longer valid as they
    are written.
    """
    entries = images if isinstance(images, list) else [images]
    with suppress(ValueError):
        return [location_of(parse_source(entry)) for entry in entries]
    return [str(entry) for entry in recorded(entries)]


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
