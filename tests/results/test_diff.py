"""Two runs compared: by class, by pixel, and by the images that only one of them has."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segbatch.cli.main import main
from segbatch.errors import RunError
from segbatch.masks.classes import Classes
from segbatch.results.diff import Diff
from segbatch.results.disagreement import compare_masks, count_confusion
from segbatch.results.encode import Encoding, encode
from segbatch.results.finish import write_stats
from segbatch.results.runinfo import RunInfo, write_info
from segbatch.results.schema import rows_schema, stats_schema
from segbatch.results.stats import pixels_per_class
from segbatch.results.table import Table
from segbatch.results.write import write_file
from segbatch.run import Run, open_runs
from tests.conftest import S3
from tests.written_run import write_run

NAMES = ["sky", "wall", "window"]
SKY, WALL, WINDOW = 0, 1, 2
ROWS_PER_FILE = 3


def filled(*parts: int, shape: tuple[int, int] = (4, 10)) -> np.ndarray:
    """A label map of equal columns: ``filled(SKY, WALL)`` is half sky, half wall."""
    return np.repeat(np.array([parts], np.uint8), shape[1] // len(parts), 1).repeat(shape[0], 0)


def run_of(
    folder: Path, images: Sequence[tuple[str, np.ndarray | str]], names: Sequence[str] = NAMES,
    *, masks: bool = True, finished: bool = True,
) -> Run:  # fmt: skip
    """A run of these URIs, each with its label map or with its error."""
    classes = Classes(names)
    schema = rows_schema(classes)
    maps = [None if isinstance(found, str) else found for _, found in images]
    sizes = [(None, None) if m is None else m.shape[::-1] for m in maps]
    columns: dict[str, Iterable[Any]] = {
        "image_id": range(len(images)),
        "uri": [uri for uri, _ in images],
        "error": [found if isinstance(found, str) else None for _, found in images],
        "message": [None] * len(images),
        **{key: [width for width, _ in sizes] for key in ("width", "mask_width")},
        **{key: [height for _, height in sizes] for key in ("height", "mask_height")},
        "class_pixels": [None if m is None else pixels_per_class(m, len(names)) for m in maps],
        "class_confidence": [None if m is None else np.ones(len(names), np.float32) for m in maps],
        "uncertainty": [None if m is None else 0.0 for m in maps],
        "label_map": [None if m is None else m.tobytes() for m in maps],
    }
    stage = pa.table({name: pa.array(values) for name, values in columns.items()})
    stage = stage.set_column(2, "error", stage["error"].cast(pa.string()))
    rows = encode(stage, Encoding(classes, schema, store_masks=masks))
    table = Table.create(str(folder / "rows"), schema)
    groups: dict[tuple[int, str], list[int]] = {}
    for index, (_, found) in enumerate(images):
        kind = found if isinstance(found, str) else "ok"
        groups.setdefault((index // ROWS_PER_FILE, kind), []).append(index)
    table.commit(
        [write_file(rows.take(ids), table.uri, 1, kind) for (_, kind), ids in groups.items()]
    )
    if finished:
        write_stats(table, Table.create(str(folder / "stats"), stats_schema(schema)), 1)
    content = {
        "status": "complete" if finished else "running",
        "created": 0.0,
        "identity": {},
        "job": {} if masks else {"masks": "none"},
        "model": {"uri": f"models/{folder.name}", "sha256": "", "classes": classes.to_json()},
        "manifest": {"rows": len(images), "duplicates": 0, "files": []},
    }
    return Run(str(folder), RunInfo.model_validate(content))


def disagreements(found: Diff) -> dict[str, float | None]:
    rows = found.images.query("images", "SELECT uri, disagreement FROM images").fetchall()
    return dict(rows)


@pytest.fixture
def before(tmp_path: Path) -> Run:
    images = [(f"{number}.jpg", filled(SKY, WALL)) for number in range(5)]
    return run_of(tmp_path / "before", images)


@pytest.fixture
def after(tmp_path: Path) -> Run:
    """Image 1 has a fifth of its wall as window, image 3 all of it, image 4 its sky as wall."""
    images = [(f"{number}.jpg", filled(SKY, WALL)) for number in range(5)]
    images[1] = ("1.jpg", filled(*[SKY] * 5, *[WALL] * 4, WINDOW))
    images[3] = ("3.jpg", filled(SKY, WINDOW))
    images[4] = ("4.jpg", filled(WALL, WALL, shape=(4, 10)))
    return run_of(tmp_path / "after", images)


# --------------------------------------------------------------------------------- what changed


@pytest.mark.parametrize("where", ["finished", "unfinished, on S3"])
def test_a_run_does_not_differ_from_one_with_the_same_masks(
    where: str, s3: S3, tmp_path: Path
) -> None:
    one = write_run(str(tmp_path / "one"))
    finished = where == "finished"
    uri = str(tmp_path / "other") if finished else s3.uri("runs/other")
    other = write_run(uri, finished=finished)
    facts = one.diff(other).facts
    assert (facts["ok_in_both"], facts["identical"], facts["disagreement"]) == (12, 12, 0)
    assert facts["failed_in_both"] == 2
    assert one.diff(other).most_changed().fetchall() == []


def test_disagreement_is_the_share_of_pixels_with_another_class(before: Run, after: Run) -> None:
    found = before.diff(after)
    assert disagreements(found) == {
        "0.jpg": 0, "1.jpg": 0.1, "2.jpg": 0, "3.jpg": 0.5, "4.jpg": 0.5,
    }  # fmt: skip
    assert found.facts["disagreement"] == pytest.approx(1.1 / 5)
    assert found.facts["identical"] == 2


def test_coverage_is_the_mean_of_each_class_in_either_run_and_its_change(
    before: Run, after: Run
) -> None:
    rows = {name: values for name, *values in before.diff(after).coverage.fetchall()}
    assert rows == {
        "sky": pytest.approx([0.5, 0.4, -0.1]),
        "wall": pytest.approx([0.5, 0.48, -0.02]),
        "window": pytest.approx([0, 0.12, 0.12]),
    }


def test_confusion_counts_pixels_by_their_class_in_either_run(before: Run, after: Run) -> None:
    found = before.diff(after)
    assert sorted(found.confusion.fetchall()) == [
        ("sky", "sky", 80, 0.8), ("sky", "wall", 20, 0.2),
        ("wall", "wall", 76, 0.76), ("wall", "window", 24, 0.24),
    ]  # fmt: skip
    assert [row[:2] for row in found.changed_pixels().fetchall()] == [
        ("wall", "window"), ("sky", "wall")
    ]  # fmt: skip


def test_the_images_that_changed_most_come_first(before: Run, after: Run) -> None:
    rows = before.diff(after).most_changed(2).fetchall()
    assert [row[0] for row in rows] == ["3.jpg", "4.jpg"]
    assert rows[0][3] == pytest.approx({"sky": 0, "wall": -0.5, "window": 0.5})


def test_every_image_has_a_row_in_the_order_of_the_first_run(before: Run, after: Run) -> None:
    found = before.diff(after).images
    assert found.columns == [
        "uri", "image_id_a", "image_id_b", "status_a", "status_b", "error_a", "error_b",
        "disagreement", "resized", "coverage_distance", "change",
    ]  # fmt: skip
    rows = found.fetchall()
    assert [row[0] for row in rows] == [f"{number}.jpg" for number in range(5)]
    assert [row[9] for row in rows] == pytest.approx([0, 0.1, 0, 0.5, 0.5])


# ---------------------------------------------------------------------------------- which images


def test_images_are_joined_on_their_uris_in_any_order(
    before: Run, after: Run, tmp_path: Path
) -> None:
    shuffled = [(f"{number}.jpg", filled(SKY, WALL)) for number in (4, 2, 0, 3, 1)]
    shuffled[4] = ("1.jpg", filled(*[SKY] * 5, *[WALL] * 4, WINDOW))
    other = run_of(tmp_path / "shuffled", shuffled)
    assert disagreements(before.diff(other)) == {
        "0.jpg": 0, "1.jpg": 0.1, "2.jpg": 0, "3.jpg": 0, "4.jpg": 0,
    }  # fmt: skip


def test_images_with_one_uri_are_joined_in_their_order(tmp_path: Path) -> None:
    sky, wall = filled(SKY, SKY), filled(WALL, WALL)
    one = run_of(tmp_path / "a", [("x", sky), ("y", sky), ("x", wall), ("x", sky)])
    other = run_of(tmp_path / "b", [("y", wall), ("x", sky), ("x", wall)])
    rows = one.diff(other).images.fetchall()
    assert [(row[0], row[1], row[2], row[7]) for row in rows] == [
        ("x", 0, 1, 0), ("y", 1, 0, 1), ("x", 2, 2, 0), ("x", 3, None, None)
    ]  # fmt: skip


def test_images_in_one_run_only_or_failed_in_one_only_are_named(tmp_path: Path) -> None:
    sky = filled(SKY, SKY)
    one = run_of(
        tmp_path / "a",
        [("both", sky), ("a failed", "timeout"), ("b failed", sky), ("no", "not_found"),
         ("only a", sky)],
    )  # fmt: skip
    other = run_of(
        tmp_path / "b",
        [("both", sky), ("a failed", sky), ("b failed", "truncated"), ("no", "timeout"),
         ("only b", sky), ("only b, failed", "forbidden")],
    )  # fmt: skip
    found = one.diff(other)
    counted = [
        "ok_in_both",
        "failed_in_a",
        "failed_in_b",
        "failed_in_both",
        "only_in_a",
        "only_in_b",
    ]
    assert [found.facts[key] for key in counted] == [1, 1, 1, 1, 1, 2]
    assert found.one_sided().fetchall() == [
        ("a failed", "failed", "ok", "timeout"),
        ("b failed", "ok", "failed", "truncated"),
        ("only a", "ok", None, None),
        ("only b", None, "ok", None),
        ("only b, failed", None, "failed", "forbidden"),
    ]
    assert [row[0] for row in found.one_sided(2).fetchall()] == ["a failed", "b failed"]


def test_the_committed_rows_of_a_running_run_are_compared(before: Run, tmp_path: Path) -> None:
    begun = [(f"{number}.jpg", filled(SKY, WINDOW)) for number in range(4)]
    facts = before.diff(run_of(tmp_path / "begun", begun, finished=False)).facts
    assert (facts["ok_in_both"], facts["only_in_a"], facts["disagreement"]) == (4, 1, 0.5)


def test_a_run_without_any_row_gives_a_diff_without_any_pair(before: Run, tmp_path: Path) -> None:
    early = Run(str(tmp_path / "early"), before.info.model_copy(update={"status": "running"}))
    found = before.diff(early).to_json()
    assert (found["ok_in_both"], found["only_in_a"], found["disagreement"]) == (0, 5, None)
    assert found["coverage"][0] == {
        "class": "sky", "coverage_a": None, "coverage_b": None, "change": None
    }  # fmt: skip


def test_runs_without_an_image_in_common_are_refused(before: Run, tmp_path: Path) -> None:
    other = run_of(tmp_path / "other", [("s3://elsewhere/0.jpg", filled(SKY, WALL))])
    with pytest.raises(RunError, match=r"no image in common.*0\.jpg in the first and s3://else"):
        before.diff(other)


# -------------------------------------------------------------------------- classes, grids, masks


def test_classes_are_compared_by_name_and_not_by_id(before: Run, tmp_path: Path) -> None:
    names = ["Window", "sky", "wall", "roof"]
    images = [(f"{number}.jpg", filled(1, 2)) for number in range(5)]
    found = before.diff(run_of(tmp_path / "other", images, names))
    assert found.facts["disagreement"] == 0
    assert found.facts["classes_only_in_b"] == ["roof"]
    assert [row[0] for row in found.coverage.fetchall()] == [*NAMES, "roof"]
    assert found.changed_pixels().fetchall() == []


def test_a_class_that_one_run_does_not_have_has_no_change(before: Run, tmp_path: Path) -> None:
    images = [(f"{number}.jpg", filled(0, 1)) for number in range(5)]
    found = before.diff(run_of(tmp_path / "other", images, ["sky", "roof"]))
    assert found.facts["classes_only_in_a"] == ["wall", "window"]
    assert found.coverage.fetchall() == [
        ("sky", 0.5, 0.5, 0), ("wall", 0.5, None, None), ("window", 0, None, None),
        ("roof", None, 0.5, None),
    ]  # fmt: skip
    assert found.facts["disagreement"] == 0.5  # the pixels that were wall have another class now
    assert found.most_changed(1).fetchall()[0][2:] == (
        0.5, {"sky": 0, "wall": None, "window": None, "roof": None}
    )  # fmt: skip


def test_the_smaller_of_two_masks_is_resized_to_the_larger_and_a_note_says_so(
    tmp_path: Path,
) -> None:
    small = filled(SKY, WALL, shape=(2, 4))
    large = filled(SKY, WALL, shape=(8, 16))
    large[0, 0] = WINDOW
    one = run_of(tmp_path / "a", [("x", small), ("y", large)])
    other = run_of(tmp_path / "b", [("x", large), ("y", large)])
    for found in (one.diff(other), other.diff(one)):
        assert disagreements(found) == {"x": 1 / 128, "y": 0}
        assert found.facts["resized"] == 1
        assert "nearest neighbour" in found.notes()[0]


def test_without_masks_only_coverage_is_compared_and_a_note_says_so(
    before: Run, after: Run, tmp_path: Path
) -> None:
    images = [(f"{number}.jpg", filled(SKY, WALL)) for number in range(4)]
    unmasked = run_of(tmp_path / "c", [*images, ("4.jpg", filled(WINDOW, WALL))], masks=False)
    found = before.diff(unmasked)
    assert set(disagreements(found).values()) == {None}
    assert found.facts["disagreement"] is None
    assert "5 images have no mask" in found.notes()[0]
    assert [row[:3] for row in found.most_changed().fetchall()] == [("4.jpg", None, 0.5)]
    unsaid = Run(unmasked.uri, unmasked.info.model_copy(update={"job": {}}))  # as older runs
    assert unsaid.diff(after).facts["without_mask"] == 5


def test_pixels_are_counted_by_both_ids_for_large_masks_and_many_classes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 700, 900), np.uint8)
    expected = np.zeros((256, 256), int)
    np.add.at(expected, (a, b), 1)
    np.testing.assert_array_equal(count_confusion(a, b, 255, 255), expected)
    few = count_confusion(a, b, 3, 2)
    np.testing.assert_array_equal(few[:3, :2], expected[:3, :2])
    assert few[3, 2] == expected[3:, 2:].sum()


def test_an_unreadable_mask_is_one_line_that_names_it(before: Run, after: Run) -> None:
    table = after.table("rows")
    assert table is not None
    path = Path(table.uri, table.files()[0].name)
    rows = pq.read_table(path)
    torn = [row[:40] for row in rows["mask"].to_pylist()]
    index = rows.schema.get_field_index("mask")
    pq.write_table(rows.set_column(index, "mask", pa.array(torn, pa.binary())), path)
    with pytest.raises(RunError, match=r"after: image_id 0 \(0.jpg\): .*PNG.*audit") as wrong:
        before.diff(after)
    assert "\n" not in str(wrong.value)


def test_only_a_few_files_are_read_ahead(before: Run) -> None:
    table = before.table("rows")
    assert table is not None
    first, second = (file.name for file in table.files())
    endless = itertools.cycle([(first, 0, first, 0), (second, 3, second, 3)])
    assert next(compare_masks(before, before, endless)).num_pairs == 1


# --------------------------------------------------------------------------------- command line


def segbatch(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["segbatch", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """URIs of two runs; the second has another name for walls, and no image 11."""
    one = write_run(str(tmp_path / "runs" / "2026-10"))
    names = ["background", "facade", "window"]
    other = write_run(str(tmp_path / "runs" / "2026-11"), names=names, num_ok=11, failed=())
    return one.uri, other.uri


def test_diff_prints_what_changed(
    two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segbatch(monkeypatch, "diff", *two, "--limit", "2") == 0
    out = capsys.readouterr().out
    assert "classes_only_in_b  facade" in out
    assert "0000.jpg         0.8167" in out  # 490 of 600 pixels are wall
    assert "0002.jpg" not in out
    assert "Images in one run only, or failed in one only" in out


def test_diff_says_the_same_in_json(
    two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segbatch(monkeypatch, "diff", *two, "--format", "json", "--limit", "1") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["only_in_a"] == 3
    assert [row["uri"] for row in facts["most_changed"]] == ["s3://photos/0000.jpg"]
    assert facts["one_sided"] == [
        {"uri": "s3://photos/0011.jpg", "status_a": "ok", "status_b": None, "error": None}
    ]
    assert {"class_a": "wall", "class_b": "facade"}.items() <= facts["confusion"][0].items()


def test_diff_writes_a_row_per_image(
    two: tuple[str, str], s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.uri("answers/changes.parquet")
    assert segbatch(monkeypatch, "diff", *two, "-o", uri) == 0
    key = uri.removeprefix("s3://").split("/", 1)
    body = s3.client.get_object(Bucket=key[0], Key=key[1])["Body"].read()
    rows = pq.read_table(pa.BufferReader(body))
    assert rows["image_id_a"].to_pylist() == list(range(14))
    assert rows["change"][0].as_py()["window"] == 0
    assert segbatch(monkeypatch, "diff", *two, "-o", str(tmp_path / "changes.csv")) == 0
    header, first, *_ = (tmp_path / "changes.csv").read_text().splitlines()
    assert header.endswith("change_background,change_wall,change_window,change_traffic_light,"
                           "change_facade")  # fmt: skip
    assert first.startswith("s3://photos/0000.jpg,0,0,ok,ok,,,0.81666")


def test_diff_refuses_an_unknown_extension_before_it_reads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segbatch(monkeypatch, "diff", "a", "b", "-o", "changes.ods") == 2
    assert capsys.readouterr().err == (
        "segbatch: changes.ods: the extension must be one of .parquet, .csv, .json, .xlsx\n"
    )


# ------------------------------------------------------------------------------- globs of runs


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_glob_names_the_folders_that_hold_a_run(
    where: str, s3: S3, tmp_path: Path, before: Run
) -> None:
    root = s3.uri("runs") if where == "s3" else str(tmp_path)
    for name in ("2026-11", "2026-10", "2025-12", "2026-12/deeper"):
        write_info(f"{root}/{name}", before.info.model_copy(update={"identity": {}}))
    runs = open_runs([f"{root}/2026-*/", f"{root}/2026-10"])
    assert [run.uri for run in runs] == [f"{root}/2026-10", f"{root}/2026-11"]
    assert [run.name for run in open_runs([f"{root}/*/deep?r"])] == ["deeper"]


def test_a_query_over_a_glob_compares_its_runs(
    two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    select = "SELECT run, count(coverage.window), count(coverage.facade) FROM images GROUP BY run"
    glob = two[0].replace("2026-10", "2026-*")
    assert segbatch(monkeypatch, "query", glob, f"{select} ORDER BY run", "--format", "csv") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["2026-10,12,0", "2026-11,11,11"]


def test_a_run_whose_name_looks_like_a_glob_is_that_run(before: Run, tmp_path: Path) -> None:
    for name in ("a[b]", "ab"):
        write_info(str(tmp_path / name), before.info.model_copy(update={"identity": {}}))
    assert [run.name for run in open_runs([str(tmp_path / "a[b]")])] == ["a[b]"]


@pytest.mark.parametrize("where", ["disk", "s3", "no bucket"])
def test_a_glob_that_matches_nothing_is_one_line(
    where: str, s3: S3, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    roots = {"disk": str(tmp_path), "s3": s3.uri("runs"), "no bucket": "s3://no-such-bucket/runs"}
    glob = f"{roots[where]}/2026-*"
    assert segbatch(monkeypatch, "query", glob, "SELECT 1") == 2
    assert capsys.readouterr().err == (
        f"segbatch: {glob}: no run matches (no folder with a run.json in it)\n"
    )


def test_a_notebook_shows_how_much_differs_and_each_class(before: Run, after: Run) -> None:
    found = before.diff(after)
    assert repr(found).endswith("5 images are ok in both, on average 22.00% of an image differs)")
    page = found._repr_html_()
    assert "<td" in page
    for name in NAMES:
        assert name in page
