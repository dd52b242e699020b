"""The Jinja environment of pages that are one self-contained file."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from segbatch import storage
from segbatch.review.theme import THEME


def page_environment(package: str) -> Environment:
    """The environment of the templates in ``package``.

    They find ``theme``, :func:`without_signature` and ``base_name``, the last part of a URI.
    """
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        theme=THEME,
        without_signature=without_signature,
        base_name=lambda uri: storage.name_of(without_signature(uri)),
    )
    return environment


def without_signature(uri: str) -> str:
    """``uri`` for a page that people pass on: the query of a web address may be a signature.

    The fragment stays, since it may name a part of the object.
    """
    is_web = storage.scheme_of(uri) in storage.HTTP_SCHEMES
    return re.sub(r"\?[^#]*", "", uri, count=1) if is_web else uri
