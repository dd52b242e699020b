import codecs
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segbatch.errors import InputError, SourceError
from segbatch.storage import clean_name, decode_text

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXT = st.text(st.characters(exclude_characters="\r\n\0\ufeff", exclude_categories=["Cs"]))


@given(st.lists(TEXT), st.sampled_from(list(ENCODINGS)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_text_is_the_same_in_every_encoding_and_with_any_line_ends(
    lines: list[str], encoding: str, line_end: str
) -> None:
    data = ENCODINGS[encoding] + line_end.join(lines).encode(encoding)
    assert decode_text(data, "names.txt") == "\n".join(lines)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"wall\nT\xfcr\n", "names.txt: line 2 is not UTF-8 text: save it as UTF-8"),
        ("wall\nTür\n".encode("utf-16-le"), "names.txt: is UTF-16 without a byte order mark"),
        (b"\xff\xfew\0\x00", "names.txt: line 1 is not UTF-16-LE text"),
        (b"\x89PNG\r\n\x1a\n", "names.txt: line 1 is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(data: bytes, told: str) -> None:
    with pytest.raises(SourceError) as caught:
        decode_text(data, "names.txt", SourceError)
    assert str(caught.value).startswith(told)
    assert isinstance(caught.value, InputError)


BLANKS = st.text("\ufeff\u200b\u2060\u00a0\u202f \t\n", max_size=4)


@given(BLANKS, BLANKS, st.sampled_from(["NFC", "NFD"]))
def test_a_name_is_the_same_whatever_surrounds_it_and_however_it_is_composed(
    before: str, after: str, form: str
) -> None:
    written = unicodedata.normalize(form, "Tür 门")  # type: ignore[arg-type]
    assert clean_name(f"{before}{written}{after}") == "Tür 门"


@given(st.text())
def test_a_clean_name_stays_as_it_is(text: str) -> None:
    assert clean_name(clean_name(text)) == clean_name(text)
