"""What pydantic finds wrong, in one line each."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from segbatch.config.validation import explain


class Inner(BaseModel):
    layout: Literal["nchw", "nhwc"]


class Outer(BaseModel):
    size: int
    inner: Inner


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"size": "x", "inner": {"layout": "a"}}, [
            "model.size: should be a valid integer, unable to parse string as an integer, not 'x'",
            "model.inner.layout: should be 'nchw' or 'nhwc', not 'a'",
        ]),
        ({"size": 1, "inner": []}, ["model.inner: should have keys and values"]),
        ({"size": 1}, ["model.inner: is missing"]),
        ([], ["model: should have keys and values"]),
    ],
)  # fmt: skip
def test_each_mistake_is_a_line_with_its_key_and_what_was_given(
    given: Any, lines: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(given)
    assert list(explain(caught.value, "model")) == lines


def test_a_long_document_that_is_no_json_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json(b"{" + b"x" * 100_000)
    [line] = explain(caught.value)
    assert line.startswith("Invalid JSON")
    assert len(line) < 200
