"""The page of the worst predictions, opened in a browser."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from segbatch.jobs import worst
from segbatch.jobs.worst import WorstImage, worst_page
from segbatch.masks.classes import Classes
from tests.review.conftest import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Page

CLASSES = Classes(["wall", "window", "sign", "<b>shop"])
CONFUSION = np.array([[90, 10, 0, 0], [30, 69, 0, 1], [0, 0, 0, 0], [0, 0, 0, 50]])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("worst") / "worst.html"
    path.write_text(page(), encoding="utf-8")
    return path.as_uri()


def page() -> str:
    iou: dict[str, float | None] = {"wall": 0.7, "window": 0.6, "sign": None, "<b>shop": 0.9}
    truth = np.zeros((4, 6), np.uint8)
    truth[:, 4:] = 255
    image = WorstImage(
        "s3://photos/street/7.jpg",
        0.5,
        iou,
        np.full((8, 12, 3), 90, np.uint8),
        truth,
        np.ones((4, 6), np.uint8),
    )
    means = ("miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "boundary_f")
    metrics: dict[str, Any] = {
        **dict.fromkeys(means, 0.75),
        "images": 1,
        "split": "val",
        "dataset": {"uri": "labels"},
        "model": {"uri": "models/facades"},
        "iou": iou,
        "accuracy": iou,
        "boundary_f_per_class": iou,
        "pixels": dict(zip(CLASSES.names, CONFUSION.sum(axis=1).tolist(), strict=True)),
    }
    return worst_page("Evaluation", metrics, [image], CLASSES, CONFUSION)


def test_the_confusion_matrix_has_the_shares_of_each_truth(url: str, browser: Visitor) -> None:
    def look(page: "Page") -> list[list[str]]:
        rows = page.locator(".confusion tbody tr").all()
        return [row.locator("th, td").all_inner_texts() for row in rows]

    rows = browser.visit(url, look)
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["wall", "90", "10", ""],
        ["window", "30", "69", "1"],
        ["<b>shop", "", "", "100"],
    ]


def test_bars_are_as_long_as_the_iou_and_of_the_classs_colour(url: str, browser: Visitor) -> None:
    script = "bars => bars.map((bar) => [bar.style.width, bar.style.background])"
    bars = browser.visit(url, lambda page: page.eval_on_selector_all(".classes .bar", script))
    assert [width for width, _ in bars] == ["70%", "60%", "90%"]
    assert bars[1][1] == f"rgb{CLASSES[1].color}"


def test_what_is_wrong_is_marked_and_what_is_ignored_is_not(url: str, browser: Visitor) -> None:
    script = """image => {
      const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      return [[2, 4], [11, 4]].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data]);
    }"""

    def look(page: "Page") -> tuple[list[str], list[list[int]]]:
        captions = page.locator("figcaption").all_inner_texts()
        return captions, page.locator("figure img").last.evaluate(script)

    captions, (wrong, ignored) = browser.visit(url, look)
    assert captions == ["photograph", "truth", "prediction", "wrong"]
    assert wrong[0] > 200
    assert wrong[1] < 100
    assert max(ignored[:3]) - min(ignored[:3]) < 30


@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_hangs_over_the_side(url: str, browser: Visitor, width: int) -> None:
    inside = browser.visit(
        url, lambda page: page.evaluate("document.documentElement.scrollWidth"), width=width
    )
    assert inside == width


def test_of_many_classes_the_largest_are_in_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst, "MAX_CLASSES", 2)
    assert "Left out, because they have fewer pixels: sign, &lt;b&gt;shop." in page()
