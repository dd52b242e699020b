"""Job files to start from, with comments: one for each kind of job."""

from __future__ import annotations

from importlib.resources import files


def template(kind: str) -> str:
    """The text of the job file of a kind: ``segment``, ``finetune`` or ``evaluate``."""
    return files(__name__).joinpath(f"{kind}.yaml").read_text(encoding="utf-8")
