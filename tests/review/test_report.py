"""The report page of a run, opened in a browser."""

import io
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segbatch import storage
from segbatch.cli.main import main
from segbatch.errors import Incomplete, InputError
from segbatch.masks.classes import Classes
from segbatch.masks.drawing import CHANGED, highlight
from segbatch.review.distribution import NUM_BINS, measure_distribution
from segbatch.review.report import groups
from segbatch.review.report.pairs import changed_pixels
from segbatch.run import Run
from segbatch.storage import clients
from tests.conftest import S3
from tests.images.test_web import Web
from tests.review.conftest import Visitor
from tests.written_run import NAMES, damage_mask, with_uris, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

GONE = "s3://photos/0003.jpg"
KINDS = ("photo", "mask", "overlay")
WHITE = "rgb(255, 255, 255)"
IN_VIEW = """selector => {
  const top = document.querySelector(selector).getBoundingClientRect().top;
  return top >= 0 && top < innerHeight / 2;
}"""


@pytest.fixture(scope="module")
def run(photos: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Twelve images and two failed ones; the photograph of one is no longer there."""
    photograph = storage.read_bytes(GONE)
    photos.client.delete_object(Bucket="photos", Key="0003.jpg")
    yield write_run(str(tmp_path_factory.mktemp("runs") / "facades"))
    photos.put(GONE, photograph)


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of its report with everything in it."""
    folder = tmp_path_factory.mktemp("pages")
    before = write_run(str(folder / "before"), names=["background", "wall", "glass", "sign"])
    run.report(str(folder / "report.html"), by="city", against=before)
    return (folder / "report.html").as_uri()


def shown(page: "Page", within: str = "") -> list[str]:
    """What each picture that can be switched shows, as far as a reader sees it."""
    script = "all => all.filter(img => img.checkVisibility()).map(img => img.className)"
    return list(page.eval_on_selector_all(f"{within}button.picture img", script))


def texts(page: "Page", selector: str) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(selector).all_inner_texts()]


def report_of(run: Run, folder: Path, **options: Any) -> str:
    run.report(str(folder / "report.html"), **options)
    return (folder / "report.html").as_uri()


# --------------------------------------------------------------------------------- what it shows


def test_the_page_says_what_was_run_what_came_out_and_what_failed(
    browser: Visitor, page: str
) -> None:
    def look(page: "Page") -> tuple[list[str], ...]:
        selectors = ("h1", "#top a", ".facts dd", "#failures article", "#coverage th")
        return tuple(texts(page, selector) for selector in selectors)

    title, links, facts, failures, classes = browser.visit(page, look)
    assert title == ["Run facades: 12 of 14 segmented"]
    assert links == ["2 failed"]
    assert "models/facades" in facts
    assert failures == [
        "not_found 1 image 0012.jpg it was not_found",
        "timeout 1 image 0013.jpg it was timeout",
    ]
    assert set(NAMES) <= set(classes)


def test_the_contents_and_the_failures_lead_to_their_sections(browser: Visitor, page: str) -> None:
    def look(page: "Page") -> tuple[list[str], list[str]]:
        page.click("#top a")
        page.wait_for_function(IN_VIEW, arg="#failures")
        links = page.locator(".contents a")
        targets = [str(link.get_attribute("href")) for link in links.all()]
        links.last.click()
        page.wait_for_function(IN_VIEW, arg="#gallery")
        marked = page.locator(".contents [aria-current]")
        marked.get_by_text("More images").wait_for()
        return targets, texts(page, "main section h2")

    targets, titles = browser.visit(page, look, width=1400)
    assert len(targets) == len(titles)
    assert targets[:2] == ["#typical", "#coverage"]


def test_shares_and_quartiles_are_those_of_the_images_that_have_a_class(
    browser: Visitor, page: str, run: Run
) -> None:
    rows = browser.visit(page, lambda page: texts(page, "#coverage tbody tr"))
    glass = np.array(run.sql("SELECT coverage.window FROM images WHERE status = 'ok'").fetchall())
    quartiles = [f"{share:.1%}" for share in np.quantile(glass, [0.25, 0.5, 0.75])]
    [row] = [row for row in rows if row.startswith("window")]
    assert row.split()[1:6] == [f"{glass.mean():.1%}", "100%", *quartiles]
    assert [row.split()[2:5] for row in rows if row.startswith("traffic")] == [["0%", "0%", "–"]]


def test_a_distribution_counts_every_image_once_and_odd_ones_at_its_ends() -> None:
    import duckdb

    values = np.append(np.random.default_rng(0).normal(0, 1, 999), 1e6)
    con = duckdb.connect()
    con.execute("CREATE TABLE answer AS SELECT unnest(?) AS v", [[*values.tolist(), None]])

    def ask(select: str) -> list[tuple[Any, ...]]:
        return con.execute(select).fetchall()

    found = measure_distribution(ask, "v")
    assert found is not None
    assert (found.num, sum(found.bins), len(found.bins)) == (1000, 1000, NUM_BINS)
    assert found.quartiles == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
    assert found.high < 4 < found.maximum == 1e6
    assert min(found.bins[8:16]) > max(found.bins[0], 20)
    assert measure_distribution(ask, "nullif(v, v)") is None


def test_groups_of_a_column_add_up_and_what_is_left_out_is_said(
    browser: Visitor, page: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = browser.visit(page, lambda page: texts(page, "#groups tbody tr"))
    assert [row.split()[:3] for row in rows] == [
        ["Basel", "5", "1"],
        ["Zurich", "5", "1"],
        ["Bern", "4", "0"],
    ]
    monkeypatch.setattr(groups, "NUM_GROUPS", 5)
    url = report_of(run, tmp_path, by="BUILDING_ID")
    said = browser.visit(url, lambda page: texts(page, "#groups p"))
    assert said[-1] == "Left out: 2 smaller groups with 4 images."


def test_groups_of_times_with_a_zone_are_in_utc(tmp_path: Path) -> None:
    run = write_run(
        str(tmp_path / "run"),
        user_columns=[pa.field("taken", pa.timestamp("us", "UTC"))],
        user_values={"taken": lambda image_id: datetime(2026, 7, 1, image_id % 2, tzinfo=UTC)},
    )
    found = groups.group_images(run, "taken", [], [])
    hours = [(f"2026-07-01 0{hour}:00:00+00", 7, 1, []) for hour in (0, 1)]
    assert found.rows == hours


def test_bars_compare_the_groups_of_a_column(browser: Visitor, page: str) -> None:
    script = """bars => bars.map(({ parentElement: cell, style }) => [
      cell.dataset.label, cell.firstChild.textContent, style.width])"""

    def look(page: "Page") -> list[tuple[str, str, str]]:
        return list(page.eval_on_selector_all("#groups .bar", script))

    bars = [bar for bar in browser.visit(page, look) if bar[0] == "window"]
    assert len(bars) == 3
    for _, share, width in bars:
        largest = max(float(other.rstrip(" %\n")) for _, other, _ in bars)
        expected = 100 * float(share.rstrip(" %\n")) / largest
        assert float(width.rstrip("%")) == pytest.approx(expected, abs=1)


def test_another_run_is_compared_with_pictures_of_both(browser: Visitor, page: str) -> None:
    def look(page: "Page") -> tuple[list[str], list[str], list[str], int]:
        assert "pixels of another class, mean per image" in texts(page, "#comparison dt")
        pairs = page.locator(".pair")
        above = texts(page, ".pair >> nth=0 >> .four p")
        num = pairs.locator("button").count()
        return texts(page, "#comparison dd"), texts(page, ".pair figcaption"), above, num

    facts, pairs, above, num_pictures = browser.visit(page, look)
    assert facts[0] == "12"
    assert "0012.jpg" not in " ".join(pairs)
    assert "0011.jpg" in pairs[0]  # its window, which is glass there, is the widest
    assert above == ["photograph", "before", "facades", "changed"]
    assert num_pictures == 2 * len(pairs)


def test_the_difference_is_where_classes_of_the_same_name_differ() -> None:
    before, after = Classes(["wall", "window"]), Classes(["roof", "window", "wall"])
    old = np.array([[0, 0, 1, 1, 255]], np.uint8)
    new = np.array([[2, 0, 1, 255, 255]], np.uint8)
    changed = changed_pixels(old, new, before, after)
    assert changed.tolist() == [[False, True, False, True, False]]
    photo = np.full((1, 5, 3), 80, np.uint8)
    shown = np.asarray(highlight(photo, changed))
    assert (shown[changed] == CHANGED).all()
    assert len({tuple(pixel) for pixel in shown[~changed]}) == 1


# ------------------------------------------------------------------------------------ its pictures


def test_a_switch_turns_all_pictures_and_a_click_one(browser: Visitor, page: str) -> None:
    def look(page: "Page") -> None:
        num = page.locator("button.picture").count()
        assert shown(page) == ["overlay"] * num
        page.get_by_label("mask").check()
        assert shown(page) == ["mask"] * num
        page.keyboard.press("ArrowLeft")
        assert shown(page) == ["photo"] * num
        page.locator("button.picture").first.click()
        assert shown(page) == ["mask", *["photo"] * (num - 1)]
        page.keyboard.press("Enter")
        assert shown(page) == ["overlay", *["photo"] * (num - 1)]

    browser.visit(page, look)


def test_the_gallery_holds_what_is_typical_uncertain_and_extreme(
    browser: Visitor, page: str, run: Run
) -> None:
    def look(page: "Page") -> dict[str, list[str]]:
        titles = texts(page, "#gallery h3")
        cards = page.locator("#gallery .cards")
        return {title: [str(uri.get_attribute("title"))
                        for uri in page.locator(f"#gallery .cards >> nth={i} >> .uri").all()]
                for i, title in enumerate(titles[: cards.count()])}  # fmt: skip

    sections = browser.visit(page, look)

    def first(order: str, num: int) -> Sequence[str]:
        rows = run.sql(f"SELECT uri FROM images WHERE status = 'ok' ORDER BY {order} LIMIT {num}")
        return [uri for (uri,) in rows.fetchall()]

    assert sections["Least certain"] == first("uncertainty DESC, image_id", 6)
    most, least = first("coverage.window DESC", 2), first("coverage.window", 1)
    assert sections["window: most and least"] == [*most, *least]
    assert "traffic light: most and least" not in sections


def test_a_model_that_gives_class_ids_alone_has_no_certain_images(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"), finished=False, photos=str(tmp_path))
    for path in Path(run.uri, "rows").glob("*.parquet"):
        rows = pq.read_table(path)
        for name in ("confidence", "uncertainty"):
            at = rows.schema.get_field_index(name)
            nulls = pa.nulls(len(rows), rows.schema.field(name).type)
            rows = rows.set_column(at, rows.schema.field(name), nulls)
        pq.write_table(rows, path)
    run.report(str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "window: most and least" in page
    assert "certain</h3>" not in page


def test_an_image_that_is_gone_is_named_and_the_others_are_shown(
    browser: Visitor, page: str
) -> None:
    def look(page: "Page") -> tuple[list[str], bool]:
        loaded = "all => all.every(img => img.complete && img.naturalWidth > 0)"
        cards = texts(page, ".card:has(.problem)")
        return cards, page.eval_on_selector_all("img", loaded)

    problems, all_loaded = browser.visit(page, look)
    assert problems
    assert all("not_found" in text and storage.name_of(GONE) in text for text in problems)
    assert all_loaded


def test_a_damaged_mask_is_named_with_its_image_and_the_others_are_shown(
    photos: S3, browser: Visitor, tmp_path: Path
) -> None:
    damaged = write_run(str(tmp_path / "run"))
    damage_mask(damaged, 10)  # and 11, which is in the same part of the file
    before = write_run(str(tmp_path / "before"))
    url = report_of(damaged, tmp_path, against=before)

    def look(page: "Page") -> tuple[list[str], str, int]:
        cards = texts(page, ".card:has(.problem)")
        return cards, page.inner_text("#comparison"), page.locator("button.picture").count()

    cards, compared, num_pictures = browser.visit(url, look)
    named = {name for card in cards for name in card.split() if name.endswith(".jpg")}
    assert named >= {"0010.jpg", "0011.jpg"}
    assert all("damaged mask: " in card for card in cards if "0003.jpg" not in card)
    assert "could not be compared" in compared
    assert num_pictures > 3


def test_on_paper_every_picture_is_there_in_all_three_kinds(browser: Visitor, page: str) -> None:
    def look(page: "Page") -> None:
        num = page.locator(".cards button.picture").count()
        page.emulate_media(media="print", color_scheme="dark")
        assert shown(page, ".cards ") == list(KINDS) * num
        assert not page.locator(".segmented").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == WHITE

    browser.visit(page, look)


def test_at_night_the_page_is_dark(browser: Visitor, page: str) -> None:
    def look(page: "Page") -> str:
        page.emulate_media(color_scheme="dark")
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert browser.visit(page, look) != WHITE


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_hangs_over_the_side(browser: Visitor, page: str, width: int) -> None:
    def look(page: "Page") -> tuple[int, int]:
        groups = page.locator("#groups .table")
        hidden = groups.evaluate("table => table.scrollWidth - table.clientWidth")
        return page.evaluate("document.documentElement.scrollWidth"), hidden

    inside, hidden = browser.visit(page, look, width=width)
    assert inside == width
    assert hidden <= 0 or width == 768  # between a phone and a desk it may scroll


# ------------------------------------------------------------------------------------- other runs


def test_hostile_names_stay_text_and_long_ones_inside(
    photos: S3, browser: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = '<img src=x onerror="hacked=1"></script><script>hacked=1</script>\'"{{7*7}}'
    monkeypatch.setattr("tests.written_run.CITIES", [attack, f"{attack}b", f"{attack}c"])
    hostile = write_run(
        str(tmp_path / "<b>run"), names=["</style><script>hacked=1</script>", "x" * 200, attack]
    )
    hostile.info.model.uri = attack
    url = report_of(hostile, tmp_path, by="city")

    def look(page: "Page") -> tuple[bool, list[str], int, int]:
        page.locator("button.picture").first.click()
        return (
            page.evaluate("typeof hacked === 'undefined'"),
            texts(page, "#groups tbody th"),
            page.locator("script").count(),
            page.evaluate("document.documentElement.scrollWidth"),
        )

    cities = [attack, f"{attack}b", f"{attack}c"]
    assert browser.visit(url, look, width=360) == (True, cities, 1, 360)


@pytest.mark.parametrize("num_ok", [12, 0])
def test_a_run_that_is_not_finished_is_reported_as_far_as_it_is(
    photos: S3, browser: Visitor, tmp_path: Path, num_ok: int
) -> None:
    unfinished = write_run(str(tmp_path / "run"), num_ok=num_ok, finished=False)
    unfinished.info.manifest.rows = 1_000_000
    text = browser.visit(report_of(unfinished, tmp_path), lambda page: page.inner_text("body"))
    assert f"not finished (interrupted): {num_ok + 2} of 1,000,000 images are in it" in text
    assert ("Least certain" in text) == bool(num_ok)


def test_without_masks_the_photographs_are_shown(
    photos: S3, browser: Visitor, tmp_path: Path
) -> None:
    url = report_of(write_run(str(tmp_path / "run"), masks=False), tmp_path)

    def look(page: "Page") -> tuple[int, int]:
        page.get_by_label("mask").check()
        return page.locator(".picture img:visible").count(), page.locator("button.picture").count()

    num_photos, num_switched = browser.visit(url, look)
    assert num_photos
    assert not num_switched


def test_a_page_has_no_signature_of_a_web_address(tmp_path: Path) -> None:
    """Photographs, failures, the comparison, the map and the facts at the top name addresses."""
    jpeg = io.BytesIO()
    Image.new("RGB", (60, 40), "gray").save(jpeg, "JPEG")
    web = Web()
    names = [f"p/{image_id}.jpg?X-Amz-Signature=a/b%3D{image_id}" for image_id in range(4)]
    uris = [web.put(name, jpeg.getvalue()) for name in names]
    uris[1] += "#yaw=0&pitch=0&fov=90&size=64"
    runs = [
        with_uris(
            write_run(
                str(tmp_path / name),
                names=NAMES[:size],
                num_ok=3,
                failed=("timeout",),
                finished=False,
                user_columns=[pa.field(name, pa.float64()) for name in ("lat", "lon")],
                user_values={"lat": float, "lon": float},
            ),
            uris.__getitem__,
        )
        for name, size in (("march", 3), ("february", 4))
    ]
    runs[0].info.job["images"] = f"{uris[0]}&list.csv"
    served = threading.Thread(target=web.serve_forever)
    served.start()
    try:
        report_of(runs[0], tmp_path, against=runs[1])
    finally:
        web.shutdown()
        served.join()
        web.server_close()
    page = (tmp_path / "report.html").read_text()
    assert "X-Amz-Signature" not in page
    assert ">0.jpg</bdi>" in page
    assert ">1.jpg#yaw=0&amp;pitch=0&amp;fov=90&amp;size=64</bdi>" in page
    assert f'"http://127.0.0.1:{web.server_port}/p/2.jpg"' in page, "a point of the map"


def test_the_command_line_writes_one_small_file_anywhere(
    run: Run, photos: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = photos.uri("shared/report.html")
    monkeypatch.setattr(sys, "argv", ["segbatch", "report", run.uri, "-o", uri, "--by", "city"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    page = storage.read_bytes(uri)
    assert page.startswith(b"<!DOCTYPE html>")
    assert b"http://" not in page
    assert uri in capsys.readouterr().err


def test_where_a_page_cannot_be_written_the_exit_code_says_whose_fault_it_is(
    run: Run, photos: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(clients, "MAX_BACKOFF_S", 0.02)
    with pytest.raises(InputError, match="cannot write s3://no-such-bucket"):
        run.report("s3://no-such-bucket/report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"cannot write {tmp_path}/folder: is a folder: name a"):
        run.report(str(tmp_path / "folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    where = photos.uri("pages") + "/report.html"
    photos.break_down({"method": "PUT", "part": "report.html", "kind": "reset"})
    with pytest.raises(Incomplete, match="run it again"):
        run.report(where)
    photos.break_down()
    assert not storage.exists(where)


def test_what_cannot_be_asked_is_said_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(InputError, match=r"--by citty: .* did you mean city"):
        run.report(str(out), by="citty")
    plain = write_run(str(tmp_path / "plain"), user_columns=[])
    with pytest.raises(InputError, match="no columns of yours"):
        plain.report(str(out), by="city")
    assert not out.exists()
