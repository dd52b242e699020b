"""HTML for notebooks: a picture with the shares of its classes, and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from segbatch.masks.classes import Classes

LONG_SIDE = 640  # pixels of a picture in a notebook, which keeps it in its file
QUALITY = 85


def picture_html(picture: Image.Image, rows: Iterable[tuple[str, str]], classes: Classes) -> str:
    """``picture`` beside a table: a class name with its colour, and a text, in each row."""
    small = picture.convert("RGB")
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=QUALITY)
    data = base64.b64encode(sink.getvalue()).decode()
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f'<img src="data:image/jpeg;base64,{data}" style="max-width:65%">'
        f"{table_html([(swatch(classes, name), escape(text)) for name, text in rows])}</div>"
    )


def swatch(classes: Classes, name: str) -> str:
    """The name of a class, escaped, behind a square of its colour."""
    color = next(c.color for c in classes if c.name == name)
    style = f"display:inline-block;width:.8em;height:.8em;background:rgb{color}"
    return f'<span style="{style}"></span> {escape(name)}'


def table_html(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = [f"<tr>{head}</tr>"] if head else []
    for row in rows:
        cells = "".join(f'<td style="text-align:left">{cell}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"
