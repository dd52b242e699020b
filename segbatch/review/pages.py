"""The Jinja environment of pages that are one self-contained file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from segbatch import storage
from segbatch.review.theme import THEME


def page_environment(package: str) -> Environment:
    """The environment of the templates in ``package``, which find ``theme`` and ``base_name``."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(theme=THEME, base_name=storage.name_of)
    return environment
