"""Text that users hand over: files in any Unicode encoding, with any line ends, and names in them.

Editors write byte order marks, Windows line ends and UTF-16; file systems and keyboards compose
letters with accents in different ways. Every text file of a user is decoded here, and every name
that has to meet another one is brought to one form here.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Collection

from segbatch.errors import InputError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_CODECS = {"utf-32-le": "utf-32", "utf-32-be": "utf-32", "utf-16-le": "utf-16",
           "utf-16-be": "utf-16", "utf-8": "utf-8-sig"}  # fmt: skip
_ADVICE = "save it as UTF-8"
_INVISIBLE = "\ufeff\u200b\u2060\u00ad"  # marks, joiners and hyphens that no screen shows
_NO_BREAK = re.compile("[\u00a0\u2007\u202f]")


def decode_text(data: bytes, where: str, wrong: type[InputError] = InputError) -> str:
    """The text in ``data``, with ``\\n`` as line ends and without a byte order mark.

    UTF-8, or UTF-16 or UTF-32 with a byte order mark. Raises ``wrong``, which names ``where`` and
    the line, for anything else.
    """
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    if not mark and data[:1000].count(b"\0") > len(data[:1000]) / 4:
        raise wrong(f"{where}: is UTF-16 without a byte order mark, or no text: {_ADVICE}")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + data[: len(mark) + error.start].count(b"\n")
        raise wrong(f"{where}: line {line} is not {encoding.upper()} text: {_ADVICE}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def csv_reader(text: str, columns: Collection[str]) -> csv.DictReader[str] | None:
    """A reader of the CSV in ``text``; ``None`` unless it has the ``columns``.

    Its separator is a comma, a semicolon or a tab: spreadsheets of each country have their own.
    """
    readers = (csv.DictReader(io.StringIO(text, newline=""), delimiter=each) for each in ",;\t")
    return next((each for each in readers if set(columns) <= set(each.fieldnames or ())), None)


def encoding_of(head: bytes) -> str:
    """The codec for a text that begins with ``head``, by its byte order mark, which it removes."""
    return next((_CODECS[name] for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def composed(text: str) -> str:
    """``text`` in Unicode's form NFC, in which equal names are equal strings."""
    return unicodedata.normalize("NFC", text)


def clean_name(text: str) -> str:
    """A name as people mean it: NFC, without blanks and invisible characters around it, and with
    ordinary blanks instead of no-break ones.
    """
    text = _NO_BREAK.sub(" ", composed(text))
    while text != (stripped := text.strip().strip(_INVISIBLE)):
        text = stripped
    return text
