import csv
import io
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segbatch.errors import InputError
from segbatch.masks import decode_mask
from segbatch.review.browse.grid import PAGE_IMAGES, Grid
from segbatch.review.browse.query import GridQuery
from segbatch.review.browse.site import Site
from segbatch.run import Run
from tests.conftest import S3
from tests.films import film
from tests.review.conftest import Visitor
from tests.written_run import NAMES, damage_mask, label_map, with_uris, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = "<img src=x onerror=alert(1)>"
NUM_OK = 70  # more than a page; windows get wider up to image 23
GONE = 3


@contextmanager
def served(run: Run, host: str = "127.0.0.1", against: str | None = None) -> Iterator[str]:
    """The URL of the page of a run, at this machine's own address."""
    site = Site(run.uri, host, 0, against=against)
    thread = Thread(target=site.run)
    thread.start()
    parts = urlsplit(site.url)
    try:
        yield f"http://127.0.0.1:{parts.port}{parts.path}"
    finally:
        site.stop()
        thread.join()


@pytest.fixture(scope="module")
def run(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose photographs are on S3, except one that has been deleted."""
    s3.client.create_bucket(Bucket="to-browse")
    for image_id in range(NUM_OK):
        jpeg = io.BytesIO()
        Image.new("RGB", (60, 40), (40, 3 * image_id, 90)).save(jpeg, "JPEG")
        if image_id != GONE:
            s3.put(f"s3://to-browse/{image_id:04d}.jpg", jpeg.getvalue())
    uri = str(tmp_path_factory.mktemp("runs") / "march")
    return write_run(uri, names=[*NAMES[:3], HOSTILE], num_ok=NUM_OK, photos="s3://to-browse")


@pytest.fixture(scope="module")
def url(run: Run) -> Iterator[str]:
    with served(run) as address:
        yield address


def get(url: str, **headers: str) -> tuple[int, bytes, Any]:
    """Status, content and headers of the answer."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def ask(url: str, path: str, **query: Any) -> Any:
    status, content, _ = get(f"{url}{path}?{urlencode({'query': json.dumps(query)})}")
    told = json.loads(content)
    assert (status == 200) == ("error" not in told), told
    return told


def ids(url: str, **query: Any) -> list[int]:
    return [image["image_id"] for image in ask(url, "images", **query)["images"]]


# ------------------------------------------------------------------------------ which images


def test_filters_and_the_count_of_hits_go_together(url: str) -> None:
    wanted = {"ranges": {"coverage.window": [0.15, 0.2]}, "texts": {"city": "BERN"}}
    assert ids(url, **wanted) == [8, 11]
    assert ask(url, "count", **wanted) == {"count": 2}
    assert ids(url, kinds=["timeout", "not_found"], descending=True) == [71, 70]
    assert ids(url, condition="image_id < 9 AND city = 'Bern'", kinds=["ok"]) == [2, 5, 8]
    both = {"city": ["Bern", "Basel"], "building_id": ["B0", "B1", None]}
    assert ids(url, values=both) == [1, 2]


@pytest.mark.parametrize(
    "sort",
    ["image_id", "coverage.window", "confidence.window", "uncertainty", "texts.city", "texts.uri"],
)
@pytest.mark.parametrize("descending", [False, True])
def test_pages_follow_one_another_without_a_gap_or_an_image_twice(
    run: Run, sort: str, descending: bool
) -> None:
    grid = Grid(run)
    first = grid.page(GridQuery(sort=sort, descending=descending))
    assert len(first) == PAGE_IMAGES
    after = (first[-1]["value"], first[-1]["image_id"])
    rest = grid.page(GridQuery(sort=sort, descending=descending, after=after))
    values = [image["value"] for image in first + rest if image["value"] is not None]
    assert values == sorted(values, reverse=descending)
    assert {image["image_id"] for image in first + rest} == set(range(NUM_OK + 2))
    assert len(first) + len(rest) == NUM_OK + 2  # those without a value are last


def test_queries_of_many_threads_wait_for_one_another(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PausingLock:
        """The next query runs while a thread pauses behind the lock."""

        lock = Lock()

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()
            time.sleep(0.02)

    grid = Grid(run)
    monkeypatch.setattr(grid, "_lock", PausingLock())
    slow = "(SELECT sum(range) FROM range(5_000_000)) > 0"
    queries = [GridQuery(condition=slow, descending=bool(n % 2)) for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(grid.page, queries))
        counts = list(pool.map(grid.count, queries))
    assert {len(page) for page in pages} == {PAGE_IMAGES}
    assert set(counts) == {NUM_OK + 2}


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("coverage.windw > 0.1", "no column windw; did you mean coverage.window?"),
        ('city = "Luzern"', "no column Luzern; a text stands in single quotes: 'Luzern'"),
        ("window > 0.1", "window is an SQL keyword; coverage.window works"),
        ("true LIMIT 3", 'syntax error at or near "LIMIT"'),
        ("true) ORDER BY (1", "Cannot have any modifiers"),
        ("true); DROP VIEW images; SELECT (1", "Cannot have any modifiers"),
        ("city IN (SELECT content FROM read_text('/etc/passwd'))", "Cannot access file"),
        ("1=1) ORDER BY (SELECT 1 FROM read_csv('/etc/passwd')", "Cannot have any modifiers"),
        ("exists(FROM query /* ' */ ('SELECT 1'))", "must not run text as SQL"),
        ("city", "Could not convert string"),
    ],
)
def test_what_is_no_condition_or_more_than_one_is_told_in_one_line(
    url: str, condition: str, told: str
) -> None:
    error = ask(url, "images", condition=condition)["error"]
    assert told in error
    assert "\n" not in error
    assert ask(url, "count")["count"] == NUM_OK + 2  # and nothing happened


def test_what_the_page_never_asks_for_is_refused(url: str) -> None:
    assert "no such number" in ask(url, "images", sort="coverage.roof")["error"]
    assert "no such text" in ask(url, "count", texts={"image_id": "3"})["error"]
    assert "no such text" in ask(url, "count", values={"status": ["ok"]})["error"]
    assert "no such text" in ask(url, "images", sort="texts.message")["error"]
    assert ask(url, "images", limit=10**9)["error"].startswith("query: limit: ")


def test_columns_of_the_users_may_be_called_as_anything_here_is(tmp_path: Path) -> None:
    names = [
        "kind", "text", "num", "value", "change", "other_id", "lon", "lat", "m0", "v", "bin",
        "Coverage_Distance", "nth", "a", "b", "ours", "others", "chosen", "answer", "images",
        "num0", "high1", "distinct0",
    ]  # fmt: skip
    texts: dict[str, Any] = {
        name: lambda image_id, name=name: f"{name} {image_id % 2}" for name in names
    }
    places: dict[str, Any] = {
        "latitude": lambda image_id: image_id / 10,
        "longitude": lambda image_id: image_id / 5,
    }
    columns = [
        *(pa.field(name, pa.string()) for name in names),
        *(pa.field(name, pa.float64()) for name in places),
    ]
    runs = [
        write_run(str(tmp_path / name), user_columns=columns, user_values=texts | places)
        for name in ("march", "february")
    ]
    grid = Grid(*runs)
    assert grid.kinds() == {"ok": 12, "not_found": 1, "timeout": 1}
    facets = grid.facets()
    assert facets.ranges["columns.latitude"].high == 1.3
    for name in names:
        values = [f"{name} 0", f"{name} 1"]
        assert facets.values[name] == [(value, 7) for value in values]
        page = grid.page(GridQuery(sort=f"texts.{name}"))
        assert [image["value"] for image in page] == 7 * values[:1] + 7 * values[1:]
        assert grid.count(GridQuery(values={name: values[:1]}, texts={name: "0"})) == 7
    points = grid.points(GridQuery(kinds=["ok"], sort="texts.kind"))
    assert [(point["lon"], point["value"]) for point in points[:2]] == [
        (0, "kind 0"),
        (0.2, "kind 1"),
    ]
    assert grid.image(3)["columns"] == {
        **{name: f"{name} 1" for name in names}, "latitude": "0.3", "longitude": "0.6",
    }  # fmt: skip
    assert grid.other_id(3) == 3
    changes = [image["value"] for image in grid.page(GridQuery(sort="coverage_distance_"))]
    assert changes == [0] * 12 + [None] * 2


def test_texts_of_one_moment_have_one_date_whatever_their_zones(tmp_path: Path) -> None:
    texts = ["2026-11-05T00:30:00+01:00", "2026-11-04 23:30:00", "2026-11-04T23:30:00Z",
             "2026-11-04T15:30:00-08", "2026-11-05", "no date"]  # fmt: skip
    run = write_run(
        str(tmp_path / "run"),
        num_ok=len(texts),
        user_columns=[pa.field("taken", pa.string())],
        user_values={"taken": dict(enumerate(texts)).get},
    )
    page = Grid(run).page(GridQuery(sort="dates.taken"))
    moment = datetime(2026, 11, 4, 23, 30, tzinfo=UTC).timestamp()
    assert [image["value"] for image in page[:6]] == [*[moment] * 4, moment + 1800, None]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.decimal128(20)])
def test_ids_of_more_digits_than_a_double_has_are_compared_as_they_are(
    tmp_path: Path, kind: pa.DataType
) -> None:
    first = 12345678901234567
    run = write_run(
        str(tmp_path / "run"),
        num_ok=PAGE_IMAGES + 5,
        user_columns=[pa.field("id", kind)],
        user_values={"id": lambda image_id: first + (7 * image_id) % (PAGE_IMAGES + 7)},
    )
    grid = Grid(run)
    wanted = GridQuery(ranges={"columns.id": (str(first + 3), str(first + 4))})
    assert grid.count(wanted) == 2
    page = grid.page(GridQuery(sort="columns.id"))
    after = (page[-1]["value"], page[-1]["image_id"])
    page += grid.page(GridQuery(sort="columns.id", after=after))
    assert [image["value"] for image in page] == [str(first + n) for n in range(PAGE_IMAGES + 7)]


@pytest.mark.parametrize("num_ok", [6, 0])
def test_a_run_that_goes_on_is_shown_as_far_as_it_is(tmp_path: Path, num_ok: int) -> None:
    running = write_run(str(tmp_path / "april"), num_ok=num_ok, failed=(), finished=False)
    with served(running) as url:
        facts = json.loads(get(f"{url}run")[1])
        assert facts["status"] == "interrupted"  # no driver holds it
        assert ids(url) == list(range(num_ok))


# ------------------------------------------------------------------------------ one image


def test_a_photograph_and_its_mask_are_pictures_of_one_size(url: str) -> None:
    status, photo, _ = get(f"{url}pictures/small/5/photo")
    assert status == 200
    assert Image.open(io.BytesIO(photo)).size == (60, 40)
    ids = decode_mask(get(f"{url}pictures/large/5/mask")[1])
    assert np.array_equal(ids[::2, ::2], label_map(5))


def test_an_image_that_is_gone_has_its_reason_as_a_picture(url: str) -> None:
    status, photo, headers = get(f"{url}pictures/small/{GONE}/photo")
    assert (status, headers["Content-Type"]) == (200, "image/svg+xml")
    assert b"not_found" in photo
    assert get(f"{url}pictures/small/{GONE}/mask")[:2] == (204, b"")
    assert get(f"{url}originals/{GONE}")[0] == 404


def test_a_damaged_mask_is_told_on_its_tile_and_others_are_shown(run: Run, tmp_path: Path) -> None:
    damaged = write_run(str(tmp_path / "may"), photos="s3://to-browse")
    damage_mask(damaged, 10)
    with served(damaged) as url:
        tile = get(f"{url}pictures/small/10/photo")
        assert tile[2]["Content-Type"] == "image/svg+xml"
        assert b"damaged mask" in tile[1]
        assert get(f"{url}pictures/small/9/photo")[2]["Content-Type"] == "image/jpeg"


def test_a_frame_of_a_video_is_downloaded_as_a_picture(tmp_path: Path) -> None:
    film(tmp_path / "street.mp4", size=(40, 60))
    run = write_run(str(tmp_path / "film"), num_ok=4, failed=(), finished=False)
    with_uris(run, lambda n: f"{tmp_path}/street.mp4#t={0.04 * n:.3f}")
    with served(run) as url:
        status, content, headers = get(f"{url}originals/2")
    assert (status, Image.open(io.BytesIO(content)).size) == (200, (60, 40))
    assert headers["Content-Disposition"].endswith("street.mp4%23t%3D0.080.png")


def test_all_that_is_known_of_an_image_is_told(url: str) -> None:
    image = json.loads(get(f"{url}images/9")[1])
    assert image["columns"] == {"city": "Zurich", "building_id": "B4"}
    assert image["measures"]["coverage.window"] == pytest.approx(100 / 600)
    failed = json.loads(get(f"{url}images/{NUM_OK}")[1])
    assert (failed["error"], failed["message"]) == ("not_found", "it was not_found")
    assert get(f"{url}images/999")[0] == 404


def test_the_file_is_given_for_the_disk_and_never_shown(s3: S3, url: str) -> None:
    status, content, headers = get(f"{url}originals/5")
    assert status == 200
    assert content.startswith(b"\xff\xd8")
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''0005.jpg"
    assert headers["Content-Type"] == "application/octet-stream"


# ------------------------------------------------------------------------------ who may ask


def test_only_the_page_itself_may_ask(url: str) -> None:
    port = urlsplit(url).port
    assert get(f"{url}run", Host=f"localhost:{port}")[0] == 200
    for headers in (
        {"Host": f"evil.example:{port}"},  # a name that was pointed at this machine
        {"Host": "[::"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ):
        status, content, answered = get(f"{url}run", **headers)
        assert status == 403
        assert b"march" not in content
        assert "Access-Control-Allow-Origin" not in answered
    request = urllib.request.Request(f"{url}run", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405") as refused:
        urllib.request.urlopen(request)
    refused.value.close()


def test_for_others_than_this_machine_every_address_needs_the_token(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(run, "0.0.0.0") as url:
        parts = urlsplit(url)
        token = parts.path.strip("/")
        assert len(token) >= 32
        assert get(url)[0] == 200
        assert get(f"{url}count", Host="node7:80")[1] == b'{"count":72}'
        for path in ("", "run", "browse.js", f"{token[:-1]}/run", "é/run", f"run?token={token}"):
            bare = f"http://127.0.0.1:{parts.port}/{urllib.request.quote(path, safe='/?=')}"
            assert get(bare)[0] == 403, path
        assert get(url)[2]["Referrer-Policy"] == "no-referrer"
    assert token not in "".join(capfd.readouterr())


# ------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "background"])
def test_the_command_says_where_the_page_is_and_ends_with_ctrl_c(run: Run, ignored: bool) -> None:
    """Also where a shell started it in the background, and so had it ignore SIGINT.

    The signal comes as soon as the address is printed.
    """
    command = [sys.executable, "-m", "segbatch", "browse", run.uri]
    if ignored:
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not ignored:
            assert get(url)[0] == 200
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert told.decode().splitlines() == ["open this page in a browser; Ctrl-C ends it"]


def test_an_address_that_cannot_be_had_is_one_line(run: Run, url: str) -> None:
    for host, port in (("127.0.0.1", urlsplit(url).port), ("192.0.2.1", 0), ("no.such.host", 0)):
        with pytest.raises(InputError, match=r"cannot listen at .*; choose another with"):
            Site(run.uri, host, port or 0)


# ------------------------------------------------------------------------------ in a browser


def test_people_filter_look_and_send_to_labelling(url: str, browser: Visitor) -> None:
    from playwright.sync_api import expect

    def look(page: "Page") -> tuple[list[dict[str, str]], str]:
        figures, hits, title = (page.locator(x) for x in ("#grid figure", "#hits", "#title"))
        expect(hits).to_have_text("72 images")
        for layer in ("photo", "mask"):
            picture = page.locator(f".tile[data-id='0'] .{layer}")
            expect(picture).to_have_attribute("src", f"pictures/small/0/{layer}")
            picture.evaluate("image => image.decode()")
        page.mouse.wheel(0, 9000)
        expect(figures).to_have_count(72)
        page.locator("#measuring").wait_for(state="detached")
        assert HOSTILE in page.locator("#filters").inner_text()

        slide(page, "window at least", 0.2)
        expect(hits).to_have_text("59 images")
        page.select_option("#sort", "uncertainty")
        expect(figures.first.locator(".value")).to_have_text("0.0 %")
        page.locator("figure input").nth(1).check()

        page.locator(".tile").first.click()
        expect(page.locator("#classes tbody tr")).to_have_count(3)
        first = title.inner_text()
        page.keyboard.press("ArrowRight")
        expect(title).not_to_have_text(first)
        assert page.locator("#mark").is_checked()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("m")
        page.keyboard.press("Escape")

        with page.expect_download() as saved:
            page.click("#csv")
        rows = list(csv.DictReader(saved.value.path().read_text().splitlines()))
        with page.expect_download() as saved:
            page.click("#json")
        listed = json.loads(saved.value.path().read_text())
        assert [str(image["image_id"]) for image in listed] == [row["image_id"] for row in rows]
        return rows, page.title()

    rows, title = browser.visit(url, look)
    assert title == "march · segbatch"
    assert len(rows) == 2
    assert rows[0]["uri"] == f"s3://to-browse/{int(rows[0]['image_id']):04d}.jpg"


def slide(page: "Page", name: str, value: float) -> None:
    move: Callable[..., Any] = page.get_by_label(name).first.evaluate
    move(f"e => {{ e.value = {value}; e.dispatchEvent(new Event('input')); }}")


def test_filters_are_those_of_the_users_columns_first(url: str, browser: Visitor) -> None:
    def look(page: "Page") -> tuple[list[str], list[str], str, bool, str]:
        page.locator("#filters .folded").wait_for()
        titles = page.locator("#filters legend").all_inner_texts()
        cities = page.locator("fieldset:has(legend:text-is('city')) label").all_inner_texts()
        absent = page.locator("#filters form > p.quiet").inner_text()
        confidence = page.locator(".folded", has_text="Confidence")
        is_open = confidence.get_attribute("open") is not None
        page.get_by_label("Bern").check()
        page.get_by_label("Basel").check()
        page.locator("#hits", has_text="48 images").wait_for()
        return titles, cities, absent, is_open, page.locator("#active").inner_text()

    titles, cities, absent, is_open, active = browser.visit(url, look)
    assert titles[0] == "city"
    assert titles.index("Classes, by share") > titles.index("Status")
    assert [city.split() for city in cities] == [["Basel", "24"], ["Bern", "24"], ["Zurich", "24"]]
    assert absent == f"In no image: {HOSTILE}"
    assert not is_open
    assert active == "1 set"


def test_sliders_and_numbers_have_all_digits_of_ids_and_coordinates(
    tmp_path: Path, browser: Visitor
) -> None:
    values: dict[str, Any] = {
        "east": lambda image_id: 2683141.125 + image_id / 10,
        "lon": lambda image_id: 151.20 + image_id / 400,
        "building": lambda image_id: 190123456.0 + image_id,
    }
    columns = [pa.field(name, pa.float64()) for name in values]
    columns.append(pa.field("parcel", pa.int64()))
    values["parcel"] = lambda image_id: 12345678901234567 + image_id
    run = write_run(
        str(tmp_path / "run"), user_columns=columns, user_values=values, photos=str(tmp_path)
    )

    def look(page: "Page") -> tuple[list[str], str]:
        page.locator("#measuring").wait_for(state="detached")
        page.select_option("#sort", "columns.building")
        page.locator("figure .value", has_text="190123457").wait_for()
        slide(page, "east at least", 2683141.6)
        page.locator("#hits", has_text="9 images").wait_for()
        slide(page, "lon at most", 151.221)
        page.locator("#hits", has_text="4 images").wait_for()
        page.get_by_label("parcel from").fill("12345678901234574")
        page.get_by_label("parcel from").press("Tab")
        page.locator("#hits", has_text="2 images").wait_for()
        page.select_option("#sort", "columns.parcel")
        page.locator("figure .value", has_text="12345678901234575").wait_for()
        page.reload()
        page.locator("#hits", has_text="2 images").wait_for()
        page.locator("#measuring").wait_for(state="detached")
        names = ("east from", "lon to", "parcel from")
        ends = [page.get_by_label(name).input_value() for name in names]
        return ends, page.url.partition("#")[2]

    with served(run) as url:
        ends, address = browser.visit(url, look)
    assert ends == ["2683141.6", "151.221", "12345678901234574"]
    assert "columns.east=2683141.6.." in address
    assert "columns.parcel=12345678901234574.." in address


def test_an_image_is_called_after_its_address_without_the_signature(
    url: str, browser: Visitor
) -> None:
    names = {
        "https://a.example/b/front.jpg?sv=2024&sig=a/b%3D": "front.jpg",
        "HTTPS://a.example/b/pano.jpg?sig=a/b%3D#yaw=90&pitch=0": "pano.jpg#yaw=90&pitch=0",
        "s3://bucket/b/really?.jpg": "really?.jpg",
    }

    def look(page: "Page") -> list[str]:
        return list(page.evaluate("uris => uris.map(baseName)", list(names)))

    assert browser.visit(url, look) == list(names.values())


def test_the_address_says_what_is_shown_and_marks_outlive_a_reload(
    url: str, browser: Visitor
) -> None:
    def look(page: "Page") -> tuple[str, list[str], str]:
        page.get_by_label("Bern").check()
        slide(page, "window at least", 0.2)
        page.select_option("#sort", "texts.building_id")
        page.check("#descending")
        page.fill("#condition", "image_id < 50")
        page.keyboard.press("Enter")
        page.locator("#hits", has_text="13 images").wait_for()
        page.locator("figure input").first.check()
        page.locator(".tile").nth(2).click()
        page.locator("#classes tbody tr").first.wait_for()
        before = seen(page)
        page.reload()
        page.locator("#classes tbody tr").first.wait_for()
        page.locator(".filter .set").first.wait_for()
        after = seen(page)
        page.go_back()  # from the open image to the grid
        page.locator("#large").wait_for(state="hidden")
        return page.url.partition("#")[2], [*before, *after], page.inner_text("#marked")

    def seen(page: "Page") -> list[str]:
        return [
            page.inner_text("#hits"), page.inner_text("#title"), page.input_value("#sort"),
            page.input_value("#condition"), str(page.get_by_label("Bern").is_checked()),
        ]  # fmt: skip

    address, both, marked = browser.visit(url, look)
    assert both[:5] == both[5:]
    assert both[1].endswith(".jpg")
    assert "coverage.window=0.2.." in address
    assert "image=" not in address
    assert marked == "1 marked for labelling"


def test_a_wrong_condition_is_told_and_what_it_does_not_describe_is_dimmed(
    url: str, browser: Visitor
) -> None:
    def look(page: "Page") -> tuple[str, float, float, int]:
        page.locator("#grid figure").first.wait_for()
        page.fill("#condition", "coverage.windw > 0.1")
        page.click("#sql button[type=submit]")
        page.locator("#wrong").wait_for()
        told = page.inner_text("#wrong")
        dimmed = opacity(page)
        page.fill("#condition", "coverage.window > 0.1")
        page.click("#sql button[type=submit]")
        page.locator("#wrong").wait_for(state="hidden")
        return told, dimmed, opacity(page), page.locator("#error:visible").count()

    def opacity(page: "Page") -> float:
        return float(page.evaluate("getComputedStyle(document.getElementById('grid')).opacity"))

    told, dimmed, again, num_errors = browser.visit(url, look, is_refused=True)
    assert told == "no column windw; did you mean coverage.window?"
    assert dimmed < 0.5
    assert (again, num_errors) == (1, 0)


def test_keys_move_open_zoom_and_close(url: str, browser: Visitor) -> None:
    focused = "document.activeElement.closest('figure')?.dataset.id"

    def look(page: "Page") -> tuple[str, str, str, str, str]:
        page.locator(".tile img").first.wait_for()
        page.locator(".tile").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("m")
        marked = page.inner_text("#marked")
        moved = page.evaluate(focused)
        page.keyboard.press("Enter")
        page.keyboard.press("+")
        zoomed = page.inner_text("#zoom-reset")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.locator("#place", has_text="image_id 3").wait_for()
        fitted = page.inner_text("#zoom-reset")
        page.keyboard.press("Escape")
        page.locator("#large").wait_for(state="hidden")
        return marked, moved, zoomed, fitted, page.evaluate(focused)

    marked, moved, zoomed, fitted, seen_last = browser.visit(url, look)
    assert marked == "1 marked for labelling"
    assert (moved, seen_last) == ("1", "3")
    assert (zoomed, fitted) == ("150 %", "100 %")


def test_the_wheel_zooms_where_it_points_and_dragging_moves(url: str, browser: Visitor) -> None:
    at = """(() => {
      const { x, y } = document.querySelector(".stack").getBoundingClientRect();
      return [x, y];
    })()"""

    def look(page: "Page") -> tuple[list[float], list[float], list[float]]:
        page.locator(".tile").first.click()
        view = page.locator(".view").bounding_box()
        assert view is not None
        x, y = view["x"] + 100, view["y"] + 50
        page.mouse.move(x, y)
        page.mouse.wheel(0, -400)
        page.wait_for_function("() => document.getElementById('zoom-reset').innerText !== '100 %'")
        zoomed = page.evaluate(at)
        page.mouse.down()
        page.mouse.move(x - 30, y - 20)
        page.mouse.up()
        return [view["x"], view["y"]], zoomed, page.evaluate(at)

    start, zoomed, dragged = browser.visit(url, look)
    factor = 2.718281828
    assert zoomed == pytest.approx(
        [start[0] + 100 * (1 - factor), start[1] + 50 * (1 - factor)], abs=2
    )
    assert dragged == pytest.approx([zoomed[0] - 30, zoomed[1] - 20], abs=1)


@pytest.mark.parametrize("width", [360, 700])
def test_on_a_phone_nothing_hangs_over_and_the_header_is_low(
    url: str, browser: Visitor, width: int
) -> None:
    def look(page: "Page") -> tuple[int, float, float, float]:
        page.locator(".tile img").first.wait_for()
        header = page.locator("header").bounding_box()
        tile = page.locator(".tile").first.bounding_box()
        assert header
        assert tile
        page.click("#filters summary")
        page.locator("#filters .folded").wait_for()
        inside = page.evaluate("document.documentElement.scrollWidth")
        return inside, header["height"], tile["width"], tile["height"]

    inside, header, tile_width, tile_height = browser.visit(url, look, width=width, height=740)
    assert inside == width
    assert header < 740 / 8
    assert tile_width == pytest.approx(tile_height)


# ------------------------------------------------------------------------------ two runs


@pytest.fixture(scope="module")
def two(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the run next to an older one with fewer images, whose windows were glass."""
    uri = str(tmp_path_factory.mktemp("runs") / "february")
    names = ["background", "wall", "glass", HOSTILE]
    before = write_run(uri, names=names, num_ok=10, failed=(), photos="s3://to-browse")
    with served(run, against=before.uri) as address:
        yield address


def test_images_are_sorted_by_how_much_their_coverage_distanced(two: str) -> None:
    found = ask(two, "images", sort="coverage_distance", descending=True)["images"]
    changes = [image["value"] for image in found]
    assert [image["image_id"] for image in found[:10]] == list(range(9, -1, -1))
    assert changes[:2] == pytest.approx([100 / 600, 90 / 600])  # all of the window
    assert set(changes[10:]) == {None}  # not in the other run
    assert ask(two, "count", condition="coverage_distance > 0.11")["count"] == 4
    facts = json.loads(get(f"{two}images/9")[1])
    assert facts["other_id"] == 9
    assert json.loads(get(f"{two}images/20")[1])["other_id"] is None
    assert json.loads(get(f"{two}other/images/9")[1])["measures"]["coverage.glass"] > 0


def test_two_runs_are_next_to_each_other(two: str, browser: Visitor) -> None:
    opaque = """() => [...document.querySelectorAll("#large canvas")].map((canvas) => {
      if (canvas.hidden) return 0;
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.filter((value, at) => at % 4 === 3 && value).length;
    })"""

    def look(page: "Page") -> tuple[list[str], list[str], list[int], list[int]]:
        page.locator(".tile").nth(5).click()
        page.locator("#classes tbody tr").nth(3).wait_for()
        page.wait_for_function(f"() => ({opaque})().every((num) => num > 0)")
        names = page.locator(".side figcaption").all_inner_texts()
        rows = page.locator("#classes tbody tr").all_inner_texts()
        before = page.evaluate(opaque)
        page.check("#changes")
        return names, [" ".join(row.split()) for row in rows], before, page.evaluate(opaque)

    names, rows, before, changed = browser.visit(two, look)
    assert names == ["february", "march"]
    assert "window 0.0 % 10.0 % +10.0" in " ".join(rows) or "window – 10.0 % +10.0" in rows
    assert "glass 10.0 % – −10.0" in rows
    assert before == [60 * 40, 60 * 40]
    assert changed == [240, 240]  # a tenth: the window


def test_an_image_that_only_one_run_has_is_said(two: str, browser: Visitor) -> None:
    def look(page: "Page") -> str:
        page.locator(".tile").nth(20).click()
        page.locator("#why").wait_for()
        return page.inner_text("#why")

    assert browser.visit(two, look) == "february does not have this image"
