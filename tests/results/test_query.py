import io
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, time
from pathlib import Path
from threading import Timer

import duckdb
import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from rich.console import Console

from segbatch import storage
from segbatch.cli import runs
from segbatch.errors import Incomplete, InputError, RunError, UnreadableMask
from segbatch.results import workbook
from segbatch.results.answer import AnswerFormat, _print_table, write_answer
from segbatch.results.lookup import mask_png
from segbatch.results.query import sql
from segbatch.results.schema import rows_schema
from segbatch.results.table import DataFile, Table, file_name
from segbatch.run import Run, open_run
from tests.conftest import S3
from tests.drivers import cli
from tests.written_run import damage_mask, label_map, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(str(tmp_path_factory.mktemp("runs") / "march"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(str(tmp_path_factory.mktemp("runs") / "april"), finished=False)


@pytest.fixture(scope="module", params=["finished", "unfinished", "finished on S3", "on S3"])
def any_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    s3 = "S3" in request.param
    uri = (
        request.getfixturevalue("s3").uri("runs/march")
        if s3
        else str(tmp_path_factory.mktemp("runs") / "march")
    )
    return write_run(uri, finished="finished" in request.param.split())


def columns_of(run: Run, view: str) -> list[str]:
    return sql([run], f"FROM {view}").columns


# ---------------------------------------------------------------------------------------- views


def test_a_filter_on_a_class_finds_the_same_on_every_storage(any_run: Run) -> None:
    found = sql([any_run], "SELECT image_id, run FROM images WHERE coverage.window >= 0.15")
    assert found.fetchall() == [(8, "march"), (9, "march"), (10, "march"), (11, "march")]


def test_masks_are_a_view_of_their_own(any_run: Run) -> None:
    [(png,)] = sql([any_run], "SELECT mask FROM masks WHERE image_id = 7").fetchall()
    assert png == mask_png(any_run, 7)
    assert "mask" not in columns_of(any_run, "images")


def test_failures_have_their_reason_and_the_users_columns(any_run: Run) -> None:
    assert columns_of(any_run, "failures") == [
        "run", "image_id", "uri", "error", "message", "width", "height", "city", "building_id"
    ]  # fmt: skip
    found = sql([any_run], "SELECT image_id, error, message, city FROM failures ORDER BY image_id")
    assert found.fetchall() == [
        (12, "not_found", "it was not_found", "Zurich"),
        (13, "timeout", "it was timeout", "Basel"),
    ]


def test_classes_has_one_row_for_each_image_and_class(any_run: Run) -> None:
    found = sql([any_run], "SELECT * EXCLUDE (run, uri) FROM classes WHERE image_id = 3")
    assert found.columns == ["image_id", "class", "class_id", "pixels", "coverage", "confidence"]
    rows = sorted(found.fetchall(), key=lambda row: row[2])
    assert [row[:4] for row in rows] == [
        (3, "background", 0, 100), (3, "wall", 1, 460), (3, "window", 2, 40),
        (3, "traffic light", 3, 0),
    ]  # fmt: skip
    assert rows[2][4:] == (pytest.approx(40 / 600), pytest.approx(0.5 + 40 / 1200))
    assert rows[3][4:] == (0, None)
    [(count,)] = sql([any_run], "SELECT count(*) FROM classes").fetchall()
    assert count == 12 * 4


def test_views_are_the_same_before_and_after_the_finish(run: Run, running: Run) -> None:
    for view in ("images", "masks", "wide", "classes", "failures", "runs"):
        before, after = sql([running], f"FROM {view}"), sql([run], f"FROM {view}")
        assert (before.columns, before.types) == (after.columns, after.types), view


def test_images_has_the_columns_of_the_schema(run: Run) -> None:
    schema = rows_schema(
        run.classes, stats=["confidence", "components", "boxes"], formulas=["window_to_wall"]
    )
    names = [name for name in schema.names if name != "mask"]
    assert columns_of(run, "images") == ["run", *names, "city", "building_id"]


def test_wide_is_flat(run: Run) -> None:
    wide = sql([run], "FROM wide")
    assert {kind.id for kind in wide.types} <= {"varchar", "bigint", "integer", "float"}
    assert "coverage_traffic_light" in wide.columns
    assert "window_to_wall" in wide.columns
    [row] = sql(
        [run], "SELECT pixels_window, coverage_window, window_to_wall FROM wide WHERE image_id = 5"
    ).fetchall()
    assert row == (60, pytest.approx(0.1), pytest.approx(60 / 440))


def test_a_users_column_named_like_one_of_wide_is_still_there(tmp_path: Path) -> None:
    extra = pa.field("Coverage_Window", pa.string())
    run = write_run(str(tmp_path / "run"), user_columns=[extra])
    assert columns_of(run, "wide").count("coverage_window") == 1
    assert "Coverage_Window_" in columns_of(run, "wide")


def test_times_with_a_zone_are_utc_wherever_the_machine_is(tmp_path: Path) -> None:
    """ICU finds the zone of the machine when a process begins."""
    run = write_run(
        str(tmp_path / "run"),
        user_columns=[pa.field("taken", pa.timestamp("us", "UTC"))],
        user_values={"taken": lambda image_id: datetime(2026, 7, 1, 12, image_id, tzinfo=UTC)},
    )
    program = (
        "from segbatch.results.answer import write_answer\n"
        "from segbatch.results.query import sql\n"
        "from segbatch.review.browse.grid import Grid\n"
        "from segbatch.run import open_run\n"
        f"run = open_run({run.uri!r})\n"
        "write_answer(sql([run], 'SELECT taken FROM images ORDER BY image_id LIMIT 1'))\n"
        f"for name in ('a.csv', 'a.xlsx', 'a.parquet'):\n"
        f"    format, out = name[2:], {str(tmp_path)!r} + '/' + name\n"
        "    write_answer(sql([run], 'FROM images ORDER BY image_id'), format, out)\n"
        "print(Grid(run).image(0)['columns']['taken'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[2].strip(), lines[-1]] == 2 * ["2026-07-01 12:00:00+00"]
    assert "2026-07-01 12:00:00+00" in (tmp_path / "a.csv").read_text().splitlines()[1]
    header, first, *_ = openpyxl.load_workbook(tmp_path / "a.xlsx")["answer"].values
    assert dict(zip(header, first, strict=True))["taken"] == datetime(2026, 7, 1, 12)
    assert pq.read_schema(tmp_path / "a.parquet").field("taken").type == pa.timestamp("us", "UTC")


def test_runs_has_one_row_a_run(run: Run, running: Run) -> None:
    found = sql([run, running], "SELECT run, uri, status, model, images FROM runs ORDER BY run")
    assert found.fetchall() == [
        ("april", running.uri, "interrupted", "models/facades", 14),
        ("march", run.uri, "complete", "models/facades", 14),
    ]
    [(age,)] = sql([run], "SELECT now() AT TIME ZONE 'UTC' - created FROM runs").fetchall()
    assert abs(age.total_seconds()) < 3600


def test_runs_with_one_name_are_identified_by_their_uris(run: Run, tmp_path: Path) -> None:
    other = write_run(str(tmp_path / "march"))
    third = write_run(str(tmp_path / "may"))
    found = sql([run, other, third], "SELECT DISTINCT run FROM images ORDER BY run")
    assert {name for (name,) in found.fetchall()} == {run.uri, other.uri, "may"}


def test_columns_that_one_of_two_runs_lacks_are_null(run: Run, tmp_path: Path) -> None:
    other = write_run(
        str(tmp_path / "other"),
        names=["background", "facade", "window"],
        user_columns=[pa.field("owner", pa.string())],
        finished=False,
    )
    found = sql(
        [run, other],
        "SELECT run, coverage.window, coverage.wall, coverage.facade, city"
        " FROM images WHERE image_id = 5 ORDER BY run",
    )
    tenth, rest = pytest.approx(0.1), pytest.approx(440 / 600)
    assert found.fetchall() == [
        ("march", tenth, rest, None, "Bern"),
        ("other", tenth, None, rest, None),
    ]
    wide = sql([run, other], "SELECT run, coverage_wall, owner FROM wide WHERE image_id = 5")
    assert sorted(wide.fetchall()) == [("march", rest, None), ("other", None, None)]
    names = sql([run, other], "SELECT DISTINCT class FROM classes WHERE class_id = 1")
    assert sorted(names.fetchall()) == [("facade",), ("wall",)]


def test_a_run_without_any_row_has_empty_views_of_the_same_columns(
    run: Run, tmp_path: Path
) -> None:
    empty = write_run(str(tmp_path / "empty"), num_ok=0, failed=(), finished=False)
    for view in ("images", "masks", "wide", "classes", "failures"):
        nothing = sql([empty], f"FROM {view}")
        assert nothing.fetchall() == []
        assert nothing.columns == columns_of(run, view)


def test_a_run_whose_table_is_not_there_yet_has_empty_views(tmp_path: Path, run: Run) -> None:
    early = Run(str(tmp_path), run.info.model_copy(update={"status": "running"}))
    assert sql([early], "SELECT coverage.window FROM images").fetchall() == []
    assert sql([early], "FROM failures").fetchall() == []


HOSTILE_CLASSES = [
    "background", "wall", "window", "a'); DROP TABLE x; --", "select", "x;y", "{0})%s$1", "日本語",
    "🧱", "e\u0301", "image id", "coverage", "run", "null", "a.b", 'a"b c', "\\x", "über größe",
]  # fmt: skip
HOSTILE_COLUMNS = [
    "select", 'a"b', "a.b", "; DROP VIEW images", "'", "{0}", "a,b", "a=b", "x(y)", "é", "e\u0301",
    "$x", "null", "class", "images", "coverage_window", "COVERAGE_WALL", " lead", "%", "\\",
]  # fmt: skip


def test_names_that_contain_sql_are_only_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = [pa.field(name, pa.string()) for name in HOSTILE_COLUMNS]
    uri = str(tmp_path / 'it\'s; a "run"')
    run = write_run(
        uri, names=HOSTILE_CLASSES, num_ok=2, failed=("not_found",), user_columns=columns
    )
    for view in ("images", "wide", "failures", "masks", "runs"):
        assert sql([run], f"SELECT * FROM {view}").fetchall(), view
    assert {row[0] for row in sql([run], "SELECT class FROM classes").fetchall()} == {
        *HOSTILE_CLASSES
    }
    assert {*HOSTILE_COLUMNS} <= {*sql([run], "FROM images").columns}
    assert sql([run], "SELECT DISTINCT run FROM wide").fetchall() == [(run.name,)]
    for field in run.classes.fields:
        assert sql([run], f'SELECT sum(coverage."{field}") FROM images').fetchall()[0][0] >= 0
    for format in ("table", "csv", "json"):
        write_answer(sql([run], "FROM wide"), format)
        assert "DROP" in capsys.readouterr().out


def test_control_characters_in_a_run_do_not_reach_a_terminal(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answer(sql([run], """SELECT 'a' || chr(27) || '[31m' || chr(7) || 'b' AS "x\x1b[2J" """))
    out = capsys.readouterr().out
    assert "a\ufffd[31m\ufffdb" in out
    assert "\x1b" not in out


def test_only_the_views_that_a_query_names_are_made(run: Run) -> None:
    made = "SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'"
    found = sql([run], f"{made} AND view_name <> 'Wide'").fetchall()
    assert sorted(found) == [("images",), ("wide",)]


def test_a_query_that_is_not_valid_text_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="not valid UTF-8 text"):
        sql([run], "SELECT '\udcff'")


def test_a_folder_whose_name_looks_like_a_pattern_is_read(tmp_path: Path) -> None:
    odd = write_run(str(tmp_path / "it's [a-b]*" / "year=2026"))
    assert len(sql([odd], "FROM images").fetchall()) == 14
    assert "year" not in columns_of(odd, "images")


def test_a_filter_on_one_class_reads_that_column_and_no_other(any_run: Run) -> None:
    plans = sql([any_run], "EXPLAIN SELECT image_id FROM images WHERE coverage.window > 0.1")
    [(_, plan)] = plans.fetchall()
    assert "Filters: coverage.window > 0.1" in plan.replace('"', "")
    assert "Projections: image_id " in plan


def test_only_the_requested_columns_of_a_remote_file_are_fetched(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.uri("runs/large")
    run = write_run(uri)
    table = run.table("stats")
    assert table is not None
    [file] = table.files()
    num_rows = 200_000
    small = pq.read_table(io.BytesIO(storage.read_bytes(f"{table.uri}/{file.name}")))
    noise = np.random.default_rng(0).random((num_rows, 4), np.float32)
    struct = small.schema.field("coverage").type
    large = small.take(np.arange(num_rows) % 12).set_column(
        small.schema.get_field_index("coverage"),
        "coverage",
        pa.StructArray.from_arrays(list(map(pa.array, noise.T)), fields=list(struct)),
    )
    pq.write_table(large, tmp_path / "large.parquet", row_group_size=50_000, use_dictionary=False)
    s3.put(f"{table.uri}/{file.name}", (tmp_path / "large.parquet").read_bytes())

    fetched: list[int] = []
    fetch_range = s3fs.S3File._fetch_range

    def fetch(self: object, start: int, end: int) -> bytes:
        data: bytes = fetch_range(self, start, end)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", fetch)
    [(count,)] = sql([run], "SELECT count(*) FROM images WHERE coverage.window > 0.5").fetchall()
    assert count == int((noise[:, 2] > 0.5).sum())
    one_column = num_rows * 4
    assert one_column / 2 < sum(fetched) < 2 * one_column


# ------------------------------------------------------------------------------ what is allowed


@pytest.mark.parametrize(
    ("question", "num_rows"),
    [
        ("SELECT * FROM images;", 14),
        ("SELECT 'ü; -- no comment' AS a -- a comment\n ; -- another", 1),
        ("-- why\nFROM images LIMIT 3", 3),
        ("WITH a AS (FROM images) SELECT count(*) FROM a", 1),
        ("VALUES (1), (2)", 2),
        ("TABLE runs", 1),
        ("SHOW TABLES", 6),
        ("DESCRIBE failures", 9),
        ("SUMMARIZE SELECT image_id FROM images", 1),
        ("EXPLAIN SELECT 1", 1),
        ("-- plan\nEXPLAIN (FORMAT json) SELECT 1;", 1),
        ("explain analyze SELECT count(*) FROM images", 1),
        ("EXPLAIN (SELECT 1)", 1),
        ("PIVOT (SELECT city, status FROM images) ON status USING count(*)", 3),
        ("SELECT image_id FROM images UNION ALL SELECT image_id FROM failures", 16),
    ],
)
def test_sql_that_reads_is_answered(run: Run, question: str, num_rows: int) -> None:
    assert len(sql([run], question).fetchall()) == num_rows


@pytest.mark.parametrize(
    "question",
    [
        "",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY images TO 'out.csv'",
        "COPY images TO 'out.csv'",
        "COPY (PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b)) TO 'out.csv'",
        "EXPLAIN ANALYZE COPY images TO 'out.csv'",
        "EXPLAIN (ANALYZE) COPY images TO 'out.csv'",
        "/* c */ EXPLAIN ANALYZE COPY images TO 'out.csv'",
        "WITH a AS (COPY (SELECT 1) TO 'out.csv') SELECT * FROM a",
        "EXPLAIN ANALYZE WITH a AS (COPY (SELECT 1) TO 'out.csv') SELECT * FROM a",
        "WITH a AS (COPY (SELECT 1 AS x) TO 'out.csv') PIVOT a ON Count USING count(*)",
        "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "FROM query('SELECT * FROM json_execute_' || 'serialized_sql(json_serialize_sql(''x''))')",
        "SELECT * FROM \"QUERY\" /* c */ ('SELECT 1')",
        "CREATE TABLE a AS SELECT 1",
        "INSERT INTO runs SELECT * FROM runs",
        "WITH a AS (DELETE FROM runs RETURNING *) SELECT * FROM a",
        "ATTACH 'out.db'",
        "EXPORT DATABASE 'out'",
        "SET threads = 1",
        "PRAGMA version",
        "CALL pragma_version()",
        "INSTALL httpfs",
        "FROM enable_logging('QueryLog', storage_path = 'out')",
    ],
)
def test_sql_that_writes_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        sql([run], question).fetchall()
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_another_file_can_be_joined(
    any_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("buildings.csv").write_text("building_id,owner\nB0,Ann\nB6,Bob\n")
    found = sql(
        [any_run],
        "SELECT image_id, owner FROM images JOIN 'buildings.csv' USING (building_id) ORDER BY ALL",
    )
    assert found.fetchall() == [(0, "Ann"), (1, "Ann"), (12, "Bob"), (13, "Bob")]


def test_a_file_on_s3_can_be_joined_with_a_local_run(run: Run, s3: S3) -> None:
    uri = s3.uri("buildings.csv")
    s3.put(uri, b"building_id,owner\nB3,Cleo\n")
    found = sql(
        [run], f"SELECT image_id, owner FROM images JOIN '{uri}' USING (building_id) ORDER BY 1"
    )
    assert found.fetchall() == [(6, "Cleo"), (7, "Cleo")]


def test_a_uri_in_a_filter_needs_no_client_for_it(run: Run) -> None:
    found = sql([run], "SELECT count(*) FROM images WHERE uri > 'gs://' AND uri < 'zz9://'")
    assert found.fetchall() == [(14,)]


def test_a_python_variable_is_not_a_table(run: Run) -> None:
    frame = pa.table({"a": [1]})
    with pytest.raises(InputError, match="frame does not exist"):
        sql([run], "FROM frame")
    assert frame.num_rows == 1


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("SELECT window FROM images", "window is an SQL keyword; coverage.window works anywhere"),
        ("SELECT 'ü', uri FROM images WHERE window > 0.4", "window is an SQL keyword"),
        ("SELECT coverage.window window FROM images", "window is an SQL keyword"),
        ("SELECT windo FROM images", "no column windo; did you mean coverage.window"),
        ("SELECT coverage.windw FROM images", "no column windw; did you mean coverage.window"),
        ("SELECT coverage_window FROM images", "did you mean coverage.window"),
        ("SELECT traffic_light FROM images", "did you mean coverage.traffic_light"),
        ("SELECT windo FROM wide", "did you mean coverage_window"),
        ("SELECT buildingid FROM images", "did you mean building_id"),
        (
            'FROM images WHERE city = "Bern"',
            "no column Bern; a text stands in single quotes",
        ),
        ('FROM images WHERE city = "St. Gall\'s"', "in single quotes: 'St. Gall''s'"),
        ("SELECT xyzzy FROM images", '"xyzzy" not found'),
        ("SELECT 1 FROM imges", 'Did you mean "images"'),
        ("SELECT FROM", "syntax error"),
        ("SELECT 'a", "unterminated"),
        ("FROM 'nowhere.csv'", "No files found"),
        ("SELECT $1", "parameters"),
    ],
)
def test_wrong_sql_is_one_line_that_says_what_to_do(run: Run, question: str, message: str) -> None:
    with pytest.raises(InputError) as wrong:
        sql([run], question)
    assert message in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_syntax_error_elsewhere_says_nothing_of_keywords(run: Run) -> None:
    with pytest.raises(InputError, match="syntax error") as wrong:
        sql([run], "SELECT coverage.window FROM images WHERE ORDER BY 1")
    assert "keyword" not in str(wrong.value)


def test_a_missing_bucket_is_one_line(run: Run, s3: S3) -> None:
    with pytest.raises(InputError, match="bucket does not exist") as wrong:
        sql([run], "FROM 's3://no-such-bucket/a.csv'")
    assert "\n" not in str(wrong.value)


def test_deleted_files_are_not_the_fault_of_the_query(any_run: Run) -> None:
    run = write_run(f"{any_run.uri}-{uuid.uuid4().hex}", finished=any_run.finished)
    table = run.table("stats" if run.finished else "rows")
    assert table is not None
    storage.delete(f"{table.uri}/{file.name}" for file in table.files())
    with pytest.raises(Incomplete, match=r"No files found.*ask again"):
        sql([run], "SELECT * FROM images")


def test_files_deleted_while_they_are_read_leave_no_partial_answer(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"))
    begun = sql([run], "SELECT * FROM images")
    for file in Path(run.uri, "stats").glob("*.parquet"):
        file.unlink()
    with pytest.raises(Incomplete, match="ask again"):
        write_answer(begun, "csv", str(tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --------------------------------------------------------------------------------------- output


def test_csv_has_all_rows_and_flat_columns(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer(
        sql([run], "SELECT image_id, coverage, boxes FROM images WHERE image_id IN (3, 12)"), "csv"
    )
    header, ok, failed = capsys.readouterr().out.splitlines()
    assert header.startswith("image_id,coverage_background,coverage_wall,coverage_window,")
    assert ok.startswith("3,0.16666667,0.76666665,0.06666667,0.0,")
    assert '"[{""x"":6,""y"":2,""width"":4,""height"":10,""pixels"":40}]",[]' in ok
    assert failed == "12" + "," * 8


def test_json_is_one_array_of_objects(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer(sql([run], "SELECT image_id, coverage, 0 / 0 AS no FROM images LIMIT 2"), "json")
    first, second = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert first["coverage"]["window"] == pytest.approx(10 / 600)
    assert first["no"] is None
    assert second["image_id"] == 1
    write_answer(sql([run], "SELECT 1 WHERE false"), "json")
    assert json.loads(capsys.readouterr().out) == []


def test_json_has_null_and_base64_at_any_depth(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns and fields may be called as the variable of DuckDB's lambdas."""
    values: dict[str, object] = {
        "[1.5, 1 / 0, 0 / 0, NULL]": [1.5, None, None, None],
        "['-inf'::FLOAT, 2]::FLOAT[2]": [None, 2.0],
        "[[1 / 0], [], NULL]": [[None], [], None],
        "MAP {'a': 1 / 0, 'b': 2.5}": {"a": None, "b": 2.5},
        "{'a b': 1 / 0, 'c': ['\\xFF'::BLOB], 'item': {'d': 0 / 0}}": {
            "a b": None, "c": ["/w=="], "item": {"d": None},
        },
        "[{'item': [1 / 0, 0.5]}]": [{"item": [None, 0.5]}],
        "row(1 / 0, 2)": [None, 2],
        "NULL::STRUCT(a DOUBLE)": None,
        "NULL::MAP(VARCHAR, DOUBLE)": None,
        "['Infinity', 'NaN']": ["Infinity", "NaN"],
    }  # fmt: skip
    columns = ", ".join(f"{value} AS v{i}" for i, value in enumerate(values))
    write_answer(sql([run], f"SELECT {columns}, [1 / 0] AS item"), "json")
    [row] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert dict(zip(values, row.values(), strict=False)) == values
    assert row["item"] == [None]


def test_standard_output_of_another_encoding_takes_every_name(tmp_path: Path) -> None:
    """CSV and JSON are UTF-8 all the same; a table has a mark for letters that are not there."""
    run = write_run(str(tmp_path / "run"), num_ok=1, failed=(), photos="/photos/東京")
    program = (
        "import sys\n"
        "from segbatch.cli.main import main\n"
        "for format in ('csv', 'json', 'table'):\n"
        f"    sys.argv = ['segbatch', 'query', {run.uri!r}, 'SELECT uri FROM images']\n"
        "    sys.argv += ['--format', format]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end.code\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    uri = "/photos/東京/0000.jpg".encode()
    assert done.stdout.startswith(b'uri\n%s\n[\n\t{"uri":"%s"}\n]\n' % (uri, uri))
    assert b"\n/photos/??/0000.jpg" in done.stdout


def test_parquet_keeps_structs_and_bytes(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out.parquet"
    question = "SELECT coverage, mask FROM images JOIN masks USING (image_id) WHERE image_id = 4"
    write_answer(sql([run], question), "parquet", str(out))
    [row] = pq.read_table(out).to_pylist()
    assert list(row["coverage"]) == run.classes.fields
    assert row["mask"] == mask_png(run, 4)
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]


def test_parquet_is_not_for_a_terminal(run: Run) -> None:
    with pytest.raises(InputError, match="-o"):
        write_answer(sql([run], "FROM images"), "parquet")


def test_an_answer_can_be_written_to_s3(run: Run, s3: S3) -> None:
    uri = s3.uri("answers/images.csv")
    write_answer(sql([run], "SELECT image_id FROM images ORDER BY 1 LIMIT 2"), "csv", uri)
    assert storage.read_bytes(uri) == b"image_id\n0\n1\n"
    write_answer(sql([run], "SELECT image_id FROM images LIMIT 1"), "table", uri)
    assert b"1 row" in storage.read_bytes(uri)


def test_columns_with_one_name_are_numbered(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer(sql([run], "SELECT 1 AS a, 2 AS a"), "csv")
    assert capsys.readouterr().out == "a,a_1\n1,2\n"


def test_a_table_shows_forty_rows_and_says_how_many_there_are(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answer(sql([run], "SELECT i, '[red]' AS text, NULL AS no FROM range(1234) t(i)"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["0", "[red]", "–"]
    assert lines[41].split()[0] == "39"
    assert lines[42].startswith("1,234 rows, the first 40 shown")


def test_a_table_of_a_few_rows_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer(sql([run], "SELECT uri, mask FROM masks WHERE image_id = 4"))
    out = capsys.readouterr().out
    png = mask_png(run, 4)
    assert png is not None
    assert f"s3://photos/0004.jpg   {len(png)} bytes" in out
    assert out.endswith("1 row\n")


def test_columns_that_do_not_fit_on_a_terminal_are_named(run: Run) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    _print_table(sql([run], "FROM wide"), console)
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "image_id" in lines[0]
    assert "coverage_window" not in lines[0]
    assert "coverage_window" in " ".join(lines[16:])


def test_ids_and_coordinates_are_printed_in_full_and_shares_are_not(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = (
        "SELECT 190123456::DOUBLE AS id, 2683141.125::DOUBLE AS east, 151.20931::DOUBLE AS lon,"
        " 0.1::DOUBLE + 0.2::DOUBLE AS sum, 1234567::FLOAT AS area, coverage.window AS glass,"
        " 'inf'::FLOAT AS most FROM images WHERE image_id = 3"
    )
    write_answer(sql([run], question))
    expected = ["190123456", "2683141.125", "151.20931", "0.3", "1234567", "0.06667", "inf"]
    assert capsys.readouterr().out.splitlines()[2].split() == expected
    write_answer(sql([run], question), "table", str(tmp_path / "answer.txt"))
    assert (tmp_path / "answer.txt").read_text().splitlines()[2].split() == expected


def test_a_plan_is_printed_as_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer(sql([run], "EXPLAIN SELECT 1"))
    assert "╭─ Projection ───╮\n│ Projections: 1 │" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["table", "csv", "json", "parquet", "xlsx"])
def test_a_value_that_cannot_be_cast_is_the_fault_of_the_query(
    run: Run, tmp_path: Path, format: AnswerFormat
) -> None:
    """Also if it comes after more rows than DuckDB computes before it answers."""
    question = "SELECT if(range < 140_000, '1', 'house')::INT FROM range(140_001)"
    with pytest.raises(InputError, match="Could not convert") as wrong:
        write_answer(sql([run], question), format, str(tmp_path / "out"))
    assert "\n" not in str(wrong.value)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- one mask


def test_a_mask_is_found_by_its_id(any_run: Run) -> None:
    for image_id in range(12):
        mask = any_run.mask(image_id)
        assert mask is not None
        np.testing.assert_array_equal(mask, label_map(image_id))


def test_a_failed_image_has_no_mask_and_it_says_why(any_run: Run) -> None:
    with pytest.warns(match="image 12 has no mask: it failed: not_found: it was not_found"):
        assert any_run.mask(12) is None


def test_a_run_without_masks_has_none_and_says_so(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"), masks=False)
    with pytest.warns(match="image 3 has no mask: the run has none"):
        assert run.mask(3) is None


@pytest.mark.parametrize("image_id", [-1, 14])
def test_an_id_without_a_row_is_an_error(any_run: Run, image_id: int) -> None:
    with pytest.raises(RunError, match=f"image_id {image_id} has no row"):
        mask_png(any_run, image_id)


def test_an_id_in_the_gap_of_a_file_is_found_in_another(tmp_path: Path) -> None:
    """A later pass writes files whose ranges of ids enclose those of other files."""
    run = write_run(str(tmp_path / "run"), finished=False)
    table = Table.open(f"{run.uri}/rows")
    assert table is not None
    first, second, *_ = table.files()
    low, high = (pq.read_table(f"{table.uri}/{file.name}") for file in (first, second))
    names = [file_name(2, "ok"), file_name(2, "ok")]
    pq.write_table(pa.concat_tables([low[:1], high[1:]]), f"{table.uri}/{names[0]}")
    pq.write_table(pa.concat_tables([low[1:], high[:1]]), f"{table.uri}/{names[1]}")
    ranges = {names[0]: (0, 11), names[1]: (1, 6)}
    mixed = [DataFile(name, 1, 6, *ids, "ok", "") for name, ids in ranges.items()]
    table.commit(mixed, [first, second])
    for image_id in range(12):
        mask = run.mask(image_id)
        assert mask is not None
        np.testing.assert_array_equal(mask, label_map(image_id))


def test_the_log_of_a_finished_run_is_read_once_for_many_masks(s3: S3) -> None:
    run = write_run(s3.uri("run"))
    for image_id, is_asked in ((3, True), (8, False)):
        s3.break_down()  # nothing fails; counts requests from here on
        assert run.mask(image_id) is not None
        assert bool(s3.requests("GET", "/_delta_log/")) == is_asked


def test_a_mask_that_was_committed_after_a_query_is_found(s3: S3) -> None:
    run = write_run(s3.uri("run"), finished=False)
    assert len(sql([run], "FROM images").fetchall()) == 14  # which lists the files
    table = Table.open(f"{run.uri}/rows")
    assert table is not None
    rows = pq.read_table(io.BytesIO(storage.read_bytes(f"{table.uri}/{table.files()[0].name}")))
    ids = pa.array(range(20, 20 + len(rows)), pa.int64())
    written = io.BytesIO()
    pq.write_table(rows.set_column(0, "image_id", ids), written)
    name = file_name(2, "ok")
    storage.write_bytes(f"{table.uri}/{name}", written.getvalue())
    table.commit([DataFile(name, len(written.getvalue()), len(rows), 20, 25, "ok", "")])
    mask = open_run(run.uri).mask(23)
    assert mask is not None
    np.testing.assert_array_equal(mask, label_map(3))


def test_a_mask_is_found_after_stats_were_written_again(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"))
    assert mask_png(run, 2) is not None  # which opens the table
    table = Table.open(f"{run.uri}/stats")
    assert table is not None
    [file] = table.files()
    path = Path(table.uri, file.name)
    moved = path.with_name("00000002-stats-b.parquet")
    path.rename(moved)
    again = DataFile(moved.name, file.size, file.rows, 0, 13, "stats", "")
    table.commit([again], remove=table.files())
    assert mask_png(run, 3) == mask_png(open_run(run.uri), 3)


@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_mask_is_reported_with_its_image(tmp_path: Path, finished: bool) -> None:
    run = write_run(str(tmp_path / "run"), finished=finished)
    damage_mask(run, 10)
    assert run.mask(9) is not None
    with pytest.raises(
        UnreadableMask,
        match=rf"run: image_id 10 \(s3://photos/0010.jpg\): {run.uri}/rows/\S+: is damaged: ",
    ):
        run.mask(10)


def test_a_mask_that_is_not_a_png_is_reported_with_its_image(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"))
    for path in Path(run.uri, "rows").glob("*-ok-*.parquet"):
        rows = pq.read_table(path)
        index = rows.schema.get_field_index("mask")
        pq.write_table(rows.set_column(index, "mask", [[b"GIF89a"] * len(rows)]), path)
    with pytest.raises(
        UnreadableMask, match=r"image_id 7 \(s3://photos/0007.jpg\): .* audit the run$"
    ):
        run.mask(7)


# -------------------------------------------------------------------------------------- imports


def test_a_query_imports_neither_torch_nor_ray(run: Run) -> None:
    program = (
        "import sys\n"
        "from segbatch.results.answer import write_answer\n"
        "from segbatch.results.query import sql\n"
        "from segbatch.run import open_run\n"
        f"write_answer(sql([open_run({run.uri!r})], 'SELECT count(*) AS n FROM images'), 'csv')\n"
        "assert not {'torch', 'ray', 's3fs', 'matplotlib', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("n\n14\n", "")


def test_a_file_is_what_its_name_says_and_has_every_row(run: Run, tmp_path: Path) -> None:
    sixty = "SELECT range AS n FROM range(60)"
    for name in ("wide.parquet", "wide.csv", "wide.json"):
        done = cli("query", run.uri, sixty, "-o", str(tmp_path / name))
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.strip().endswith(f"60 rows → {tmp_path / name}")
        assert len(duckdb.sql(f"FROM '{tmp_path / name}'").fetchall()) == 60
    done = cli("query", run.uri, sixty, "--format", "table", "-o", str(tmp_path / "wide.txt"))
    assert done.returncode == 0
    assert sum(map(str.isdigit, (tmp_path / "wide.txt").read_text().split())) >= 60
    for wrong in (["wide.ods"], ["wide"], ["wide.csv", "--format", "parquet"]):
        done = cli("query", run.uri, sixty, "-o", str(tmp_path / wrong[0]), *wrong[1:])
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert wrong[0] in done.stderr


def test_a_notebook_shows_how_far_a_run_is_and_why_images_failed(run: Run) -> None:
    page = run._repr_html_()
    assert f"<b>{run.uri}</b> complete" in page
    facts = run.summary()
    assert facts["failed"]
    for name, number in {"ok": facts["ok"], **facts["failed"]}.items():
        shown = name if name == "ok" else f"failed: {name}"
        assert re.search(rf">{shown}</td><td[^>]*>{number}</td>", page)


def test_a_workbook_has_all_rows_flat_columns_and_no_formula_of_a_stranger(
    run: Run, tmp_path: Path
) -> None:
    question = (
        "SELECT *, '=1+1' AS text, 'https://example.org' AS link, 1.0 / 0 AS endless,"
        " TIMESTAMP '2026-11-29 12:00:00' AS taken FROM images"
    )
    out = str(tmp_path / "answer.xlsx")
    write_answer(sql([run], question), "xlsx", out)
    sheet = openpyxl.load_workbook(out)["answer"]
    header, *rows = sheet.iter_rows(values_only=True)
    assert len(rows) == 14
    first = dict(zip(header, rows[0], strict=True))
    assert first["uri"] == "s3://photos/0000.jpg"
    assert first["coverage_window"] == pytest.approx(10 / 600)
    assert (first["text"], first["link"], first["endless"]) == ("=1+1", "https://example.org", None)
    assert first["taken"] == datetime(2026, 11, 29, 12)
    cell = sheet.cell(2, header.index("text") + 1)
    assert cell.data_type == "s", "a text and no formula"


def test_a_workbook_has_values_of_every_type(run: Run, tmp_path: Path) -> None:
    values = {
        "INTERVAL 36 HOURS": "1 day, 12:00:00",
        "'6f6fb47c-6d41-4b8a-9d4c-3a3c5ff1d2a7'::UUID": "6f6fb47c-6d41-4b8a-9d4c-3a3c5ff1d2a7",
        "TIMESTAMPTZ '2026-07-01 12:00:00+02'": datetime(2026, 7, 1, 10),
        "DATE '2026-07-01'": datetime(2026, 7, 1),
        "TIME '01:02:03'": time(1, 2, 3),
        "1.50::DECIMAL(4, 2)": 1.5,
        "12::UHUGEINT": 12,
        "true": True,
        "'b'::ENUM ('a', 'b')": "b",
        "'101'::BIT": "101",
        "[1, 2]": "[1,2]",
        "MAP {'a': 1}": '{"a":1}',
        "'ab'::BLOB": "2 bytes",
        "NULL": None,
    }
    out = str(tmp_path / "answer.xlsx")
    write_answer(sql([run], f"SELECT {', '.join(values)}"), "xlsx", out)
    _, row = openpyxl.load_workbook(out)["answer"].values
    assert dict(zip(values, row, strict=True)) == values


def test_a_workbook_changes_no_id_of_many_digits_and_no_early_date(
    run: Run, tmp_path: Path
) -> None:
    """A sheet's numbers are doubles, and its calendar begins in 1900."""
    values = {
        "123456789012345": 123456789012345,
        "12345678901234567": "12345678901234567",
        "-1234567890123456::BIGINT": "-1234567890123456",
        "10000000000000000000::UBIGINT": "10000000000000000000",
        "12345678901234567890::DECIMAL(20, 0)": "12345678901234567890",
        "0.12345678901234567::DECIMAL(38, 17)": "0.12345678901234567",
        "0.5::DECIMAL(38, 17)": 0.5,
        "DATE '1850-01-01'": "1850-01-01",
        "DATE '1900-01-01'": datetime(1900, 1, 1),
        "TIMESTAMP '1899-12-31 23:59:59'": "1899-12-31 23:59:59",
        "'-infinity'::DATE": "0001-01-01",
        "DATE '12000-01-01'": "12000-01-01",
    }
    out = str(tmp_path / "answer.xlsx")
    write_answer(sql([run], f"SELECT {', '.join(values)}"), "xlsx", out)
    _, row = openpyxl.load_workbook(out)["answer"].values
    assert dict(zip(values, row, strict=True)) == values


def test_a_workbook_takes_no_more_rows_than_a_sheet_has(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "MAX_ROWS", 13)
    with pytest.raises(InputError, match=r"an Excel sheet takes 13 rows"):
        write_answer(sql([run], "FROM images"), "xlsx", str(tmp_path / "answer.xlsx"))
    assert list(tmp_path.iterdir()) == []


HOURS = "SELECT sum(hash(range)) AS number FROM range(100_000_000_000)"


@pytest.mark.parametrize(
    "command",
    [
        lambda run, folder: runs.query([run, HOURS]),
        lambda run, folder: runs.query([run, HOURS], output=f"{folder}/answer.csv"),
        lambda run, folder: runs.export_command(run, folder, to="png", where=f"({HOURS}) > 0"),
        lambda run, folder: runs.export_command(run, folder, to="csv", where=f"({HOURS}) > 0"),
    ],
    ids=["query", "query to a file", "export of masks", "export of rows"],
)
def test_sigint_ends_a_query_that_takes_hours(
    run: Run, tmp_path: Path, command: Callable[[str, str], None]
) -> None:
    folder = f"{tmp_path}/answers"
    interrupt = Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            command(run.uri, folder)
    finally:
        interrupt.cancel()
    assert signal.set_wakeup_fd(-1) == -1, "as it was before"
    assert list(storage.list_files(folder)) == []
