"""Writes docs/job-file.md from the types and docstrings of segbatch/config/, and the job files in
jobs/ from those that `segbatch init` prints: scripts/docs.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from segbatch.config.images import SOURCES
from segbatch.config.job import JOBS
from segbatch.config.templates import template
from segbatch.config.training import FromBackbone, FromBundle

PAGE = Path(__file__).with_name("job-file.md")
JOB_FILES = Path(__file__).parents[1] / "jobs"

INTRODUCTION = """\
# Job files

*Generated from `segbatch/config/` by `scripts/docs`; edit the docstrings there.*

A job file is one YAML document that starts with `kind`. segbatch refuses unknown and duplicate
keys, wrong types and contradictions, and names the file, line and key. `null` means off; `1e-3` is
a number; quote a class called `on`. `--set predict.batch_size=64` overrides any key, and `${VAR}`
inserts an environment variable as text; for a number or boolean use `--set predict.batch_size=$N`.
`$VAR` and `${VAR:-default}` are not replaced. Relative paths are relative to the current folder.
Credentials belong in the environment.

Keys marked ● are part of the run's identity: running a job again on the same `output` resumes it,
and a change of such a key is refused. All other keys may change from one start to the next.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for kind, model in JOBS.items():
        parts.append(f"\n## `kind: {kind}`\n\n{_table(model)}")
    parts.append("\n## Sources of images\n\nThe full forms of an entry of `images:`.\n")
    for kind, source in SOURCES.items():
        parts.append(f"\n**{kind}**: {_text(source.__doc__)}\n\n{_table(source)}")
    parts.append("\n## Networks to train\n\nThe forms of `model:` in a fine-tune job.\n")
    for network in (FromBackbone, FromBundle):
        parts.append(f"\n{_text(network.__doc__)}\n\n{_table(network)}")
    return "".join(parts)


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|", *_rows(model, "", False)]
    return "\n".join(rows) + "\n"


def _rows(model: type[BaseModel], prefix: str, identity: bool) -> list[str]:
    rows: list[str] = []
    for field, info in model.model_fields.items():
        name = info.alias or field
        inside = _model_of(info)
        marked = identity or info.json_schema_extra == {"identity": True}
        if inside is None or info.description:
            mark = " ●" if marked else ""
            rows.append(
                f"| `{prefix}{name}`{mark} | {_default(info)} | {_text(info.description)} |"
            )
        if inside is not None:
            rows += _rows(inside, f"{prefix}{name}.", marked)
    return rows


def _model_of(info: FieldInfo) -> type[BaseModel] | None:
    options = [info.annotation]
    if isinstance(info.annotation, types.UnionType):
        options = list(typing.get_args(info.annotation))
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0] if models else None


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    if isinstance(info.default, BaseModel):
        return ""
    return f"`{_yaml(info.default)}`"


def _yaml(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(_yaml(item) for item in value)}]"
        case int():
            return f"{value:_}"
    return str(value)


def _text(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(page())
    for job in JOBS:
        (JOB_FILES / f"{job}.yaml").write_text(template(job))
