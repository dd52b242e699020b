"""docs/reading-results.md: every block of it runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segbatch.masks.classes import Classes
from segbatch.results.query import sql
from segbatch.results.schema import ERRORS, rows_schema, stats_schema
from segbatch.run import Run, open_run
from tests.written_run import label_map, write_run

PAGE = Path(__file__).parents[2] / "docs" / "reading-results.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SQL = [code for language, code in BLOCKS if language == "sql"]
SHELL = [code for language, code in BLOCKS if language == "sh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's reader is: a run, and a table of their own beside it."""
    folder = tmp_path_factory.mktemp("reader")
    owners = "".join(f"B{number},Owner {number % 3}\n" for number in range(13))
    (folder / "buildings.csv").write_text("building_id,owner\n" + owners)
    write_run(str(folder / "runs" / "2026-11"), num_ok=24)
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(folder)
    return open_run("runs/2026-11")


@pytest.mark.parametrize("question", SQL)
def test_queries_of_the_page_find_something(run: Run, question: str) -> None:
    found = sql([run], question)
    assert found.fetchall()
    assert "window" not in found.columns  # a keyword: the page's names are others


def test_python_of_the_page_runs(run: Run) -> None:
    values: dict[str, object] = {}
    for number, code in enumerate(PYTHON):
        exec(compile(code, f"block {number} of {PAGE.name}", "exec"), values)
    np.testing.assert_array_equal(values["mask"], label_map(7))
    assert values["png"] is not None
    assert values["names"] == run.classes.names
    assert len(values["windows"]) == 1  # type: ignore[arg-type]


def test_commands_of_the_page_run(run: Run) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in SHELL:
        done = subprocess.run(
            command, shell=True, check=True, capture_output=True, text=True,
            env=os.environ | {"PATH": path},
        )  # fmt: skip
        assert "s3://photos/0023.jpg" in done.stdout


def test_the_page_has_the_columns_of_the_schema() -> None:
    section = PAGE.read_text().split("## Columns")[1].split("## SQL")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    rows_columns = rows_schema(
        Classes(["a"]), stats=["confidence", "components", "boxes"], formulas=["f"]
    )
    places = [name for name in stats_schema(rows_columns).names if name not in rows_columns.names]
    assert named == [*rows_columns.names, *places]
    for error in ERRORS:
        assert error in section


def test_the_page_has_the_views(run: Run) -> None:
    names = {name for (name,) in sql([run], "SHOW TABLES").fetchall()}
    section = PAGE.read_text().split("| view |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == names
