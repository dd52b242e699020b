"""Pictures and classes in HTML: data URIs for pages, and what notebooks show."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from segbatch.masks.classes import SegClass

LONG_SIDE = 640  # pixels of a picture in a notebook, which keeps it in its file
QUALITY = 85


def data_uri(kind: str, content: bytes) -> str:
    """The bytes of a picture as a URI; ``kind`` is ``png`` or ``jpeg``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(picture: Image.Image, quality: int) -> str:
    """An RGB picture as the data URI of a JPEG; ``quality`` is Pillow's, 1 to 95."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=quality, optimize=True)
    return data_uri("jpeg", sink.getvalue())


def picture_html(picture: Image.Image, rows: Sequence[tuple[SegClass, str]]) -> str:
    """``picture``, RGB, next to a table with a class and a text in each row."""
    small = picture.copy()
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    return (
        '<div style="display:flex;gap:1em;align-items:flex-start">'
        f'<img src="{jpeg_uri(small, QUALITY)}" style="max-width:65%">'
        f"{table_html([(swatch(c), escape(text)) for c, text in rows])}</div>"
    )


def swatch(seg_class: SegClass) -> str:
    """The name of a class, escaped, behind a square of its colour."""
    style = f"display:inline-block;width:.8em;height:.8em;background:rgb{seg_class.color}"
    return f'<span style="{style}"></span> {escape(seg_class.name)}'


def table_html(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = [f"<tr>{head}</tr>"] if head else []
    for row in rows:
        cells = "".join(f'<td style="text-align:left">{cell}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"
