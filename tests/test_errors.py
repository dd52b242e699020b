import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segbatch.errors import (
    MAX_LINE,
    Damaged,
    InputError,
    Interrupted,
    SegbatchError,
    UnreadableMask,
    presentable,
)


def test_a_long_value_is_cut_in_the_middle_and_the_words_around_it_stay() -> None:
    value = "1,2," * 5000
    message = str(InputError(f"labels.json: annotation 7: {value}: is no polygon: draw it again"))
    assert message.startswith("labels.json: annotation 7: 1,2,1,2,")
    assert message.endswith(": is no polygon: draw it again") or message.endswith("draw it again")
    assert len(message) < 400
    many = str(InputError(f"m.csv: no column uri; there are {'column ' * 5000}: say uri_column"))
    assert many.startswith("m.csv: no column uri; there are ")
    assert many.endswith(": say uri_column")


def test_web_addresses_are_shown_without_their_queries() -> None:
    said = "m.csv: https://h/a.csv?sig=S: is ragged; {glob: HTTP://h/b.jpg?sig=S}, or https://h?"
    assert str(InputError(said)) == (
        "m.csv: https://h/a.csv: is ragged; {glob: HTTP://h/b.jpg}, or https://h?"
    )


def test_control_characters_never_reach_a_terminal() -> None:
    assert str(InputError("a\x1b[31mred\r\0b: \u009b1m")) == r"a\x1b[31mred\r\x00b: \x9b1m"


@given(st.text())
def test_a_presentable_message_stays_as_it_is(text: str) -> None:
    shown = presentable(text)
    assert presentable(shown) == shown
    assert all(len(line) <= MAX_LINE for line in shown.split("\n"))
    assert shown == text or len(text) > 200 or any(not c.isprintable() for c in text)


@pytest.mark.parametrize(
    "error",
    [
        InputError("wrong"),
        InputError(),
        Damaged("s3://b/run", "it is gone"),
        UnreadableMask("run", 7, "s3://b/7.jpg", Damaged("s3://b/f.parquet", "it is cut")),
        Interrupted(15),
    ],
    ids=repr,
)
def test_errors_travel_between_processes(error: SegbatchError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert (there.exit_code, vars(there)) == (error.exit_code, vars(error))
