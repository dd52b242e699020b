"""The look that the report, the browse page and the page of the worst predictions share."""

from __future__ import annotations

from importlib.resources import files

THEME = files("segbatch.review").joinpath("theme.css").read_text("utf-8")
"""A style sheet: colours in light and dark, and the small parts that all pages have."""
