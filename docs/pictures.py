"""Makes the pictures of the documents from the results of a demo: scripts/docs pictures [DEMO].

| file | shows | used in |
|---|---|---|
| overlay.jpg | what `segbatch predict` writes | segmenting.md |
| sheet.jpg | the contact sheet of `segbatch labels check`, its first rows | labels.md |
| report.jpg | the page of `segbatch report`, its upper part | report.md |
| browse.jpg | the page of `segbatch browse` | browsing.md |

Needs Chromium on PATH. The run's photographs were in the demo's S3 server, which ended with the
demo. They are copied into a new server together with the run: the pictures show no local folders.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from segbatch import storage
from segbatch.demo.tour import BUCKET, own_s3
from segbatch.errors import InputError
from segbatch.labels.check import check_dataset
from segbatch.labels.sheet import CAPTION, GAP, PADDING, SIDE, write_sheet
from segbatch.review.browse.site import Site
from segbatch.review.predict.images import predict_files
from segbatch.run import open_run

PICTURES = Path(__file__).with_name("pictures")
MAX_BYTES = 60_000  # the repository's history keeps every version
PHOTOGRAPH = "0007.jpg"
WIDTH, HEIGHT = 1100, 900  # of the browser's window

SHEET_HEIGHT = 3 * (
    SIDE + CAPTION + 2 * PADDING + GAP
)  # of the contact sheet: the first of its rows

# True once everything in view is loaded: pictures, and the contents of tiles.
COMPLETE = """() => [...document.querySelectorAll("img, .tile[data-id]")].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && box.bottom > 0 && box.top < innerHeight;
}).every(one => one.complete ? one.naturalWidth : one.hasChildNodes())"""


def make(demo: Path, folder: Path = PICTURES) -> None:
    """Write all pictures into ``folder``.

    Raises :class:`~segbatch.errors.InputError` if ``demo`` is not the folder of a demo, and the
    errors of the functions that it calls.
    """
    for part in ("run", "labels", "model", "facades"):
        if not (demo / part).is_dir():
            raise InputError(f"{demo}: contains no {part}; create it with scripts/demo")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, own_s3():
        made = Path(scratch)
        predict_files(
            str(demo / "facades" / PHOTOGRAPH), str(demo / "model"), f"{made}/overlay.png"
        )
        write_sheet(check_dataset(str(demo / "labels")), f"{made}/sheet.png")
        storage.filesystem(BUCKET)[0].mkdir(BUCKET.removeprefix("s3://"))
        for part in ("facades", "run"):
            _upload(demo, part)
        open_run(f"{BUCKET}/run").report(f"{made}/report.html", by="city")
        with _served(f"{BUCKET}/run") as url, _chromium() as chromium:
            _photograph(chromium, f"file://{made}/report.html", f"{made}/report.png")
            _photograph(chromium, url, f"{made}/browse.png", _by_windows)
        for name in ("overlay", "sheet", "report", "browse"):
            with Image.open(made / f"{name}.png") as picture:
                shown = (
                    picture.crop((0, 0, picture.width, SHEET_HEIGHT))
                    if name == "sheet"
                    else picture
                )
                _save(shown, folder / f"{name}.jpg")


def _upload(demo: Path, part: str) -> None:
    for file in (demo / part).rglob("*"):
        if file.is_file():
            storage.write_bytes(f"{BUCKET}/{file.relative_to(demo)}", file.read_bytes())


@contextmanager
def _served(run_uri: str) -> Iterator[str]:
    site = Site(run_uri, "127.0.0.1", 0)
    thread = Thread(target=site.run)
    thread.start()
    try:
        yield site.url
    finally:
        site.stop()
        thread.join()


@contextmanager
def _chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise InputError("no chromium on PATH to look at pages with: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


def _photograph(
    chromium: Browser, url: str, where: str, prepare: Callable[[Page], None] | None = None
) -> None:
    page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(url)
    if prepare is not None:
        prepare(page)
    page.wait_for_function(COMPLETE)
    page.screenshot(path=where)


def _by_windows(page: Page) -> None:
    """Show the images with the most glass first."""
    page.wait_for_selector("#sort option[value='coverage.window']", state="attached")
    page.select_option("#sort", "coverage.window")
    with page.expect_response(lambda response: "/count?" in response.url):
        page.check("#descending")
    page.wait_for_selector("#grid img")


def _save(picture: Image.Image, where: Path) -> None:
    """Save a JPEG of at most ``MAX_BYTES``, scaled down if needed but at the same quality."""
    for side in range(WIDTH, WIDTH // 3, -50):
        smaller = picture.convert("RGB")
        smaller.thumbnail((side, side))
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=75, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            where.write_bytes(buffer.getvalue())
            return
    raise InputError(f"{where}: no JPEG of it is smaller than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute())
    except InputError as error:
        sys.exit(f"scripts/docs: {error}")
