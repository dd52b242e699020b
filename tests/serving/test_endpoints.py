"""The server over HTTP: answers, refusals, and the page."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segbatch import load_model
from segbatch.model.bundle import fingerprint
from segbatch.review.predict.images import predict_files
from segbatch.run import Run
from segbatch.serving.endpoints import STATUS
from tests.collection import encoded, image, jpeg
from tests.review.conftest import Visitor, browser
from tests.serving.conftest import LIMITS, Served, ask

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser"]  # a fixture


def stored(run: Run) -> dict[str, bytes]:
    """The mask of each image of a run, by its URI."""
    return dict(run.sql("SELECT uri, mask FROM masks WHERE mask IS NOT NULL").fetchall())


def local(uri: str) -> bytes:
    return Path(uri.removeprefix("file://")).read_bytes()


def test_masks_are_the_bytes_that_a_segment_job_stores(url: str, whole_run: Run) -> None:
    masks = stored(whole_run)
    assert len(masks) == 14
    for uri, mask in masks.items():
        answer = ask(f"{url}predict", local(uri), accept="image/png")
        assert (answer.status, answer.type) == (200, "image/png")
        assert answer.body == mask, uri


def test_requests_at_the_same_time_get_the_same_masks(url: str, whole_run: Run) -> None:
    masks = stored(whole_run)
    uris = [*masks] * 3
    with ThreadPoolExecutor(len(uris)) as clients:
        answers = clients.map(
            lambda uri: ask(f"{url}predict", local(uri), accept="image/png"), uris
        )
        assert [answer.body for answer in answers] == [masks[uri] for uri in uris]


def test_requests_that_come_together_are_predicted_together(served: Served) -> None:
    served.batches.unlink(missing_ok=True)
    served.hold.touch()
    with ThreadPoolExecutor(9) as clients:
        running = [clients.submit(ask, f"{served.url}predict", jpeg(i)) for i in range(9)]
        time.sleep(0.5)
        served.hold.unlink()
        assert {client.result().status for client in running} == {200}
    sizes = [int(line) for line in served.batches.read_text().split()]
    assert sum(sizes) == 9
    assert max(sizes) == 4, "what came during the first batch, as many as the network takes"


def test_images_that_a_job_cannot_use_get_the_reason_that_it_records(
    url: str, whole_run: Run
) -> None:
    failures = whole_run.sql("SELECT uri, error, message FROM failures").fetchall()
    assert {error for _, error, _ in failures} == {*STATUS}
    for uri, error, message in failures:
        answer = ask(f"{url}predict", local(uri))
        assert answer.status == STATUS[error], uri
        if "bytes" not in uri:  # storage words that limit
            assert answer.detail == f"{error}: {message}"


def test_facts_are_those_of_predict(url: str, model_uri: str) -> None:
    answer = ask(f"{url}predict", encoded(image(3), "PNG"))
    assert (answer.status, answer.type) == (200, "application/json")
    facts = json.loads(answer.body)
    model = load_model(model_uri, device="cpu")
    prediction = model.predict(image(3))
    assert (facts["width"], facts["height"]) == (128, 96)
    assert (facts["model_width"], facts["model_height"]) == (128, 96)
    assert facts["coverage"] == prediction.coverage
    assert facts["pixels"] == dict(zip(model.classes.names, prediction.pixels, strict=True))
    assert facts["confidence"] == prediction.confidence
    assert facts["uncertainty"] == prediction.uncertainty
    assert [c["name"] for c in facts["classes"]] == list(model.classes.names)
    assert facts["model"] == {"uri": model_uri, "sha256": fingerprint(model_uri)}


def test_an_overlay_of_a_narrow_photograph_is_drawn(url: str) -> None:
    answer = ask(f"{url}predict", encoded(image(5, 3, 2000)), accept="image/jpeg")
    assert answer.status == 200
    assert Image.open(io.BytesIO(answer.body)).width == 2000


def test_an_overlay_is_the_one_that_segbatch_predict_writes(
    url: str, model_uri: str, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"  # larger than the model takes it
    photo.write_bytes(encoded(image(5, 300, 200), "PNG"))
    predict_files(str(photo), model_uri, str(tmp_path / "overlay.jpg"))
    answer = ask(f"{url}predict", photo.read_bytes(), accept="image/jpeg")
    assert answer.type == "image/jpeg"
    ours, theirs = (
        np.asarray(Image.open(io.BytesIO(data)))
        for data in (answer.body, (tmp_path / "overlay.jpg").read_bytes())
    )
    assert ours.shape[1] == 200
    assert np.array_equal(ours, theirs)


def test_a_body_that_is_too_long_is_refused_before_it_is_all_there(url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    whole = ask(f"{url}predict", bytes(LIMITS["max_bytes"] + 1))
    chunked = ask(f"{url}predict", endless())
    for answer in (whole, chunked):
        assert answer.status == 413
        assert "200,000 bytes" in answer.detail


def test_requests_that_nobody_offers_are_refused_in_one_line(url: str) -> None:
    assert ask(f"{url}predict", jpeg(1), accept="text/html").status == 406
    assert "image/png" in ask(f"{url}predict", jpeg(1), accept="text/html").detail
    form = ask(f"{url}predict", b"--x--", content_type="multipart/form-data; boundary=x")
    assert form.status == 415
    assert "--data-binary" in form.detail
    assert ask(f"{url}predict", b"").status == 422
    for path, status in {"nothing": 404, "page/endpoints.py": 404, "predict": 405}.items():
        answer = ask(f"{url}{path}")
        assert answer.status == status
        assert answer.detail


def test_the_server_says_that_it_is_well_and_what_it_offers(url: str) -> None:
    assert json.loads(ask(f"{url}healthz").body) == {"status": "ok"}
    described = json.loads(ask(f"{url}openapi.json").body)
    answers = described["paths"]["/predict"]["post"]["responses"]
    assert {*answers} >= {"200", "406", "413", "415", "422"}
    assert {*answers["200"]["content"]} == {"application/json", "image/png", "image/jpeg"}


def test_the_page_shows_the_overlay_of_a_photograph_and_asks_no_other_host(
    url: str,
    browser: Visitor,
    tmp_path: Path,
) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg(2))

    def look(page: Page) -> tuple[int, str]:
        page.set_input_files("#file", tmp_path / "photo.jpg")
        page.wait_for_selector("#overlay")
        width = page.locator("#overlay").bounding_box()["width"]
        return width, page.inner_text("pre")

    width, commands = browser.visit(url, look)
    assert width >= 128
    assert f"{url}predict" in commands
