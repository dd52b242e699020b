"""A real browser for the pages that people look at, and photographs for runs written by hand."""

import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.conftest import S3

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Seen = TypeVar("Seen")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--enable-unsafe-swiftshader",  # draws maps without a GPU
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


REFUSED = "the server responded with a status of 400"


class Visitor:
    """A headless Chromium in a thread of its own.

    Playwright keeps an event loop running in its thread, where storage could start none.
    """

    def __init__(self, chromium: "Browser", thread: ThreadPoolExecutor) -> None:
        self._chromium = chromium
        self._thread = thread

    def visit(
        self,
        url: str,
        look: Callable[["Page"], Seen],
        *,
        width: int = 1280,
        height: int = 800,
        is_refused: bool = False,
    ) -> Seen:
        """What ``look`` gives for a fresh page at ``url``.

        Fails if the page says an error on its console, raises one, or asks for anything from
        another place than its own. ``is_refused`` says that the server refuses a request of the
        page, which browsers say on their console.
        """
        return self._thread.submit(self._visit, url, look, width, height, is_refused).result()

    def _visit(
        self,
        url: str,
        look: Callable[["Page"], Seen],
        width: int,
        height: int,
        is_refused: bool,
    ) -> Seen:
        own = urlsplit(url)[:2]
        wrong: list[str] = []
        console: list[str] = []

        def request(asked: str) -> None:
            parts = urlsplit(asked)
            if parts.scheme not in ("data", "blob") and parts[:2] != own:
                wrong.append(f"asked for {asked}")

        page = self._chromium.new_page(viewport={"width": width, "height": height})
        try:
            page.on("console", lambda said: said.type == "error" and console.append(said.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda asked: request(asked.url))
            page.goto(url)
            seen = look(page)
        finally:
            page.close()
        assert not wrong
        assert [text for text in console if not (is_refused and REFUSED in text)] == []
        return seen


@pytest.fixture(scope="session")
def browser() -> Iterator[Visitor]:
    """The Chromium on PATH; without one the test is skipped."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on PATH")
    from playwright.sync_api import sync_playwright

    with ThreadPoolExecutor(1) as thread:
        playwright = thread.submit(lambda: sync_playwright().start()).result()
        try:
            chromium = thread.submit(
                lambda: playwright.chromium.launch(executable_path=program, args=list(FLAGS))
            ).result()
            yield Visitor(chromium, thread)
            thread.submit(chromium.close).result()
        finally:
            thread.submit(playwright.stop).result()


@pytest.fixture(scope="session")
def photos(s3: S3) -> S3:
    """The photographs of :func:`tests.written_run.write_run` where its rows say that they are."""
    s3.client.create_bucket(Bucket="photos")
    for image_id in range(12):
        noise = np.random.default_rng(image_id).integers(0, 255, (4, 6, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((60, 40)).save(buffer, "JPEG")
        s3.put(f"s3://photos/{image_id:04d}.jpg", buffer.getvalue())
    return s3
