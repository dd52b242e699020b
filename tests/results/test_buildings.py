"""The view ``buildings(column)``."""

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from segbatch.errors import InputError
from segbatch.masks.classes import Classes
from segbatch.results.buildings import create_buildings, select_buildings
from segbatch.results.query import sql
from segbatch.results.runinfo import write_info
from segbatch.run import Run, open_run
from tests.conftest import S3
from tests.written_run import label_map, write_run

FORMULAS = {"window_to_wall": "window / wall"}


def with_formula(uri: str, *, finished: bool) -> Run:
    run = write_run(uri, finished=finished)
    run.info.job = {"formulas": FORMULAS}
    write_info(run.uri, run.info)
    return open_run(uri)


@pytest.fixture(scope="module", params=["finished", "unfinished", "on S3"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if request.param == "on S3":
        s3: S3 = request.getfixturevalue("s3")
        return with_formula(s3.uri("buildings/march"), finished=True)
    folder = tmp_path_factory.mktemp("runs")
    return with_formula(str(folder / "march"), finished=request.param == "finished")


def test_shares_and_formulas_are_those_of_all_pixels_of_a_building(run: Run) -> None:
    found = sql(
        [run],
        "SELECT building, images, failed, coverage.window, formulas.window_to_wall"
        " FROM buildings(Building_ID) ORDER BY building",
    )
    expected = []
    for name, ids in {"B0": (0, 1), "B1": (2, 3), "B5": (10, 11)}.items():
        maps = [label_map(image_id) for image_id in ids]
        window, wall = (sum(int((m == c).sum()) for m in maps) for c in (2, 1))
        share = pytest.approx(window / sum(m.size for m in maps))
        expected.append((name, 2, 0, share, pytest.approx(window / wall)))
    rows = {row[0]: row for row in found.fetchall()}
    assert [rows[row[0]] for row in expected] == expected
    assert rows["B6"] == ("B6", 0, 2, None, None), "both of its images failed"


def test_the_best_image_is_the_least_uncertain(run: Run) -> None:
    found = sql([run], "SELECT best_image, best_uri FROM buildings(city) WHERE building = 'Bern'")
    assert found.fetchall() == [(8, "s3://photos/0008.jpg")], "of 2, 5, 8 and 11"


def test_where_no_image_has_an_uncertainty_the_best_is_the_largest() -> None:
    con = duckdb.connect()
    con.execute(
        "CREATE TABLE photos AS SELECT *, {wall: 1, glass: 2} AS pixels,"
        " NULL::FLOAT AS uncertainty, 'u' || image_id AS uri"
        " FROM (VALUES (1, 'ok', 10, 10), (2, 'ok', 30, 10),"
        " (3, 'failed', 90, 90)) AS t(image_id, status, width, height)"
    )
    con.execute("ALTER TABLE photos ADD COLUMN mask_width INT DEFAULT 3")
    con.execute("ALTER TABLE photos ADD COLUMN mask_height INT DEFAULT 1")
    for columns in (["uncertainty"], []):
        part = select_buildings("march", "photos", Classes(["wall", "glass"]), {}, columns)
        con.execute(create_buildings([part]).replace("CREATE", "CREATE OR REPLACE"))
        assert con.sql("SELECT best_image, best_uri FROM buildings(1)").fetchall() == [(2, "u2")]


def test_a_large_photograph_counts_more_and_a_division_by_zero_is_null() -> None:
    con = duckdb.connect()
    con.execute(
        "CREATE TABLE photos AS SELECT * FROM (VALUES"
        " (1, 'a', 'ok', 10, 10, {wall: 100, glass: 0}),"
        " (2, 'a', 'ok', 30, 10, {wall: 0, glass: 300}),"
        " (3, 'b', 'ok', 10, 10, {wall: 0, glass: 100}),"
        " (4, NULL, 'failed', NULL, NULL, NULL))"
        " AS t(image_id, building_id, status, mask_width, mask_height, pixels)"
    )
    con.execute("ALTER TABLE photos ADD COLUMN uncertainty FLOAT DEFAULT 0")
    con.execute("ALTER TABLE photos ADD COLUMN uri VARCHAR DEFAULT ''")
    con.execute("ALTER TABLE photos ADD COLUMN width INT DEFAULT 1")
    con.execute("ALTER TABLE photos ADD COLUMN height INT DEFAULT 1")
    part = select_buildings(
        "march", "photos", Classes(["wall", "glass"]), {"ratio": "glass / wall"}, ["uncertainty"]
    )
    con.execute(create_buildings([part]))
    rows = con.sql(
        "SELECT building, images, failed, coverage.glass, formulas.ratio"
        " FROM buildings(building_id) ORDER BY building NULLS LAST"
    ).fetchall()
    assert rows == [("a", 2, 0, 0.75, 3.0), ("b", 1, 0, 1.0, None), (None, 0, 1, None, None)]


def test_any_expression_groups(run: Run) -> None:
    rows = sql([run], "SELECT building, images FROM buildings(uri LIKE '%000%.jpg') ORDER BY 1")
    assert rows.fetchall() == [(False, 2), (True, 10)]


def test_runs_with_other_classes_and_formulas_are_side_by_side(tmp_path: Path) -> None:
    march = with_formula(str(tmp_path / "march"), finished=True)
    other = write_run(str(tmp_path / "other"), names=["background", "facade", "window"])
    rows = sql(
        [march, other],
        "SELECT run, coverage.wall IS NULL, coverage.window, formulas.window_to_wall IS NULL"
        " FROM buildings(building_id) WHERE building = 'B5' ORDER BY run",
    ).fetchall()
    window = rows[0][2]
    assert rows == [("march", False, window, False), ("other", True, window, True)]
    assert window > 0.1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("FROM buildings('city')", "write buildings(city) without quotes"),
        ("FROM buildings(town)", "groups by columns of yours (city, building_id)"),
        ("SELECT foo FROM buildings(city)", "no column foo: buildings groups by"),
        ("SELECT 1 FROM buildings(building_id) WHERE city = 'x'", "no column city: buildings"),
        ("FROM buildings", "needs a column of yours to group by, such as buildings(building_id)"),
        ("SELECT coverage.windw FROM buildings(city)", "did you mean coverage.window?"),
    ],
)
def test_a_wrong_column_is_one_line_that_says_what_to_do(
    run: Run, question: str, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        sql([run], question)


def test_a_text_that_looks_like_the_view_is_a_text(run: Run) -> None:
    question = "SELECT count(*) FROM images WHERE uri LIKE '%FROM buildings(''x%'"
    assert sql([run], question).fetchall() == [(0,)]


def test_groups_are_exported_as_a_table(run: Run, tmp_path: Path) -> None:
    exported = run.export(str(tmp_path / "out"), "csv", by="CITY")
    assert exported.written == 14
    with duckdb.connect() as con:
        written = con.read_csv(str(tmp_path / "out" / "buildings.csv"))
        assert written.columns[:4] == ["run", "building", "images", "failed"]
        rows = con.sql("SELECT building, images, failed FROM written ORDER BY building").fetchall()
    assert rows == [("Basel", 4, 1), ("Bern", 4, 0), ("Zurich", 4, 1)]
    with pytest.raises(InputError, match="is not empty"):
        run.export(str(tmp_path / "out"), "csv", by="city")


def test_a_run_without_rows_has_no_groups(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"), num_ok=0, failed=(), finished=False)
    exported = run.export(str(tmp_path / "out"), "csv", by="city")
    assert exported.line("out") == "0 of 0 images in out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "csv", "by": "town"}, "there are city, building_id"),
        ({"to": "csv", "by": "citi"}, "did you mean city?"),
        ({"to": "png", "by": "city"}, "--to csv or --to parquet"),
        ({"to": "csv", "by": "city", "limit": 3}, "without --where and --limit"),
    ],
)
def test_an_export_by_what_cannot_be_grouped_by_is_refused(
    run: Run, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        run.export(str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_table_of_that_name_in_a_query_is_the_querys_own(run: Run) -> None:
    question = "WITH buildings AS (SELECT 7 AS floors) SELECT floors FROM buildings"
    assert sql([run], question).fetchall() == [(7,)]
