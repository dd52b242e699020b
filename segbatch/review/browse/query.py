"""What the browse page asks for: which images, and in which order."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[str, Field(pattern=r"^-?\d{1,38}$")]  # an integer that JavaScript would round


class GridQuery(BaseModel):
    """Which images the page asks for, and in which order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ranges: dict[str, tuple[Number | Whole | None, Number | Whole | None]] = {}
    """Lowest and highest value by name of a measure, both included."""
    kinds: list[str] | None = None
    """``ok`` or kinds of errors; ``null``: all."""
    values: dict[str, list[str | None]] = {}
    """Values by text column, of which an image has one."""
    texts: dict[str, str] = {}
    """Substrings by text column, in any case."""
    condition: str = ""
    """An SQL expression, as after ``WHERE``."""
    sort: str = "image_id"
    """The name of a measure, or ``texts.`` and a text column."""
    descending: bool = False
    after: tuple[Number | str | None, int] | None = None
    """The end of the previous page: its last value and ``image_id``."""
