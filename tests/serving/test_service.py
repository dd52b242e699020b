from typing import Any

import pytest

from segbatch.cli.serving import serve
from segbatch.errors import InputError
from segbatch.serving import service
from segbatch.serving.service import check_name, require_serve, service_of, url_of


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model": "zoo:facades", "replica": 2}, "replica: "),
        ({"model": "zoo:facades", "replicas": 3, "max_replicas": 2}, "max_replicas is 2, below"),
        ({"model": "zoo:facades", "predict": {"decode": "device"}}, "a server decodes on CPUs"),
        ({"model": "zoo:facades", "predict": {"batch_sise": 4}}, "predict.batch_sise: "),
        ({"replicas": 1}, "model: "),
    ],
)
def test_a_wrong_service_is_refused_by_its_key(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        service_of(keys)


def test_limits_are_those_of_jobs() -> None:
    limits = service_of({"model": "zoo:facades"})
    assert (limits.max_bytes, limits.max_pixels) == (256_000_000, 200_000_000)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_serve()
    monkeypatch.setattr(service, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'segbatch\[serve\]'"):
        require_serve()


@pytest.mark.parametrize("name", ["", "a{b}", "a b", "a/b", "..", "-a"])
def test_a_name_that_serve_cannot_use_is_refused_before_anything_starts(name: str) -> None:
    with pytest.raises(InputError, match=r"--name '.*': must be of letters, digits, _, . and -"):
        serve("zoo:facades", name=name)
    for good in ("segbatch", "streets-2", "my_model.v1"):
        check_name(good)


def test_a_long_side_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="--long-side ²: must be a number of pixels"):
        serve("zoo:facades", long_side="²")


def test_another_name_is_another_path() -> None:
    assert url_of("127.0.0.1", 8000, "segbatch") == "http://127.0.0.1:8000/"
    assert url_of("::1", 8000, "streets") == "http://[::1]:8000/streets/"
