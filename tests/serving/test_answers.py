import pytest

from segbatch.serving.answers import JPEG, JSON, PNG, accepted


@pytest.mark.parametrize(
    ("header", "type"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("IMAGE/JPEG", JPEG),
        ("image/*", PNG),
        ("image/*;q=0.5, image/jpeg", JPEG),
        ("text/html, image/avif, image/webp, */*;q=0.8", JSON),
        ("application/json;q=0.1, image/png; q=0.2", PNG),
        ("image/png;q=0, */*;q=0.1", JSON),
        ("image/png;level=1;q=x", PNG),
        ("text/html", None),
        ("image/webp, text/*", None),
        ("image/png;q=0", None),
    ],
)
def test_a_client_gets_the_type_that_it_prefers(header: str | None, type: str | None) -> None:
    assert accepted(header) == type
