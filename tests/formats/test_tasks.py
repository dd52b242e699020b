"""The forms of Label Studio's exports, and which annotation of a task counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from segbatch.formats.format import Annotations, ReadOptions, Skipped
from segbatch.formats.labelstudio import find_labelstudio
from segbatch.formats.tasks import Task, read_tasks
from tests.labels.files import left_out, photograph, write

SHAPE = {"x": 1, "y": 2, "width": 3, "height": 4}


def annotation(label: str, **keys: Any) -> dict[str, Any]:
    value = {**SHAPE, "rectanglelabels": [label]}
    return {"result": [{"id": "a", "type": "rectanglelabels", "value": value}], **keys}


def read(content: Any) -> list[Task | Skipped]:
    return list(read_tasks(content, "export.json"))


def label(content: Any) -> str:
    """The label that counts in a file of one task."""
    [task] = read(content)
    assert isinstance(task, Task)
    [region] = task.drawing.regions
    [name] = region.names
    return name


@pytest.mark.parametrize(("annotations", "counts"), [
    ([annotation("one"), annotation("two")], "two"),
    ([annotation("one", updated_at="2026-03-02T10:00:00.5Z"),
      annotation("two", updated_at="2026-03-01T23:00:00.1Z")], "one"),
    ([annotation("one", created_at="2026-03-02"), annotation("two")], "one"),
    ([annotation("one", ground_truth=True), annotation("two", updated_at="2026-03-01")], "one"),
    ([annotation("one"), annotation("two", was_cancelled=True)], "one"),
    ([annotation("one"), annotation("two", skipped=True), 17, None], "one"),
])  # fmt: skip
def test_the_ground_truth_counts_or_else_what_was_changed_last(
    annotations: list[Any], counts: str
) -> None:
    task = {"data": {}, "annotations": annotations, "predictions": [annotation("model")]}
    assert label([task]) == counts


def test_every_form_of_an_export_is_read() -> None:
    data = {"image": "a.jpg"}
    shape = {**SHAPE, "rectanglelabels": ["wall"], "original_width": 30, "original_height": 20}
    record = {"image": "a.jpg", "id": 5, "label": [shape], "annotator": 1, "annotation_id": 7,
              "created_at": "2026-03-01", "updated_at": "2026-03-02", "lead_time": 3.5,
              "sentiment": "good"}  # fmt: skip
    for content in (
        [{"id": 5, "data": data, "annotations": [annotation("wall")]}],
        {"id": 5, "data": data, "annotations": [annotation("wall")]},
        [{"id": 5, "data": data, "completions": [annotation("wall")]}],
        [record],
        {"id": 7, "task": {"id": 5, "data": data}, **annotation("wall")},
    ):
        assert label(content) == "wall"
        [task] = read(content)
        assert isinstance(task, Task)
        assert task.place == "export.json: task 5"
        assert task.data["image"] == "a.jpg"
        assert not task.drawing.is_prediction
    [task] = read([record])
    assert isinstance(task, Task)
    assert (task.drawing.size, task.drawing.changed) == ((30, 20), "2026-03-02")


@pytest.mark.parametrize(("keys", "why"), [
    ({}, "has no annotation"),
    ({"annotations": [], "predictions": []}, "has no annotation"),
    ({"annotations": [annotation("wall", was_cancelled=True)]}, "was skipped in Label Studio"),
])  # fmt: skip
def test_a_task_that_nobody_annotated_is_left_out(keys: Mapping[str, Any], why: str) -> None:
    assert read([{"id": 3, "data": {}, **keys}]) == [Skipped("export.json: task 3", why)]


def test_an_annotation_without_regions_counts() -> None:
    [task] = read([{"data": {}, "annotations": [annotation("one"), {"result": []}]}])
    assert isinstance(task, Task)
    assert task.drawing.regions == []
    assert task.place == "export.json: entry 1"


def test_sizes_that_are_no_numbers_are_unknown() -> None:
    for width in (None, "30", float("nan"), float("inf"), 30.5):
        result = {**annotation("wall")["result"][0], "original_width": width, "original_height": 2}
        [task] = read([{"data": {}, "annotations": [{"result": [result]}]}])
        assert isinstance(task, Task)
        assert task.drawing.size is None


# ------------------------------------------------------------------------------------- of an image


def find(folder: Path) -> Annotations:
    return find_labelstudio(str(folder), ReadOptions())


def test_of_several_tasks_of_an_image_one_counts(tmp_path: Path) -> None:
    def task(number: int, **keys: Any) -> dict[str, Any]:
        return {"id": number, "data": {"image": "a.jpg"}, **keys}

    write(tmp_path, {
        "a.jpg": photograph(),
        "1.json": [task(1, annotations=[annotation("old", updated_at="2026-01-01")])],
        "2.json": [task(2, annotations=[annotation("new", updated_at="2026-02-02")])],
        "3.json": [task(3, predictions=[annotation("model")])],
    })  # fmt: skip
    found = find(tmp_path)
    assert found.names == ["new"]
    assert [image.unchanged for image in found.images] == [False]
    why = f"another drawing of its image counts: {tmp_path}/2.json: task 2"
    assert left_out(tmp_path, found) == {"1.json: task 1": why}


def test_what_only_a_model_drew_is_a_suggestion(tmp_path: Path) -> None:
    predictions = [annotation("one", created_at="2026-02"), annotation("two", created_at="2026-01")]
    task = {"data": {"image": "a.jpg"}, "annotations": [], "predictions": predictions}
    write(tmp_path, {"a.jpg": photograph(), "1.json": [task]})
    found = find(tmp_path)
    assert [image.unchanged for image in found.images] == [True]
    assert found.names == ["one"]
