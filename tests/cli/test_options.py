"""How facts are printed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.cli.options import print_status
from segbatch.run import open_run
from tests.written_run import write_run


def test_the_status_of_a_run_is_in_blocks_without_what_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = write_run(str(tmp_path / "run"), finished=False).uri
    print_status(open_run(uri).summary())
    blocks = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    keys = [[line.split()[0] for line in block] for block in blocks]
    assert keys[0] == ["run", "status"]
    assert keys[1] == ["images", "ok", "failed", "remaining"]
    assert blocks[0][1].split(maxsplit=1)[1] == (
        "interrupted (its driver is gone; run the same command to resume)"
    )
    assert not {"submission", "driver", "duplicates"} & {key for block in keys for key in block}


def test_quiet_prints_results_and_no_advice_and_ends_with_the_command(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run")).uri
    words = ["report", run, "-o", str(tmp_path / "report.html")]
    said = CliRunner().invoke(app, ["--quiet", *words])
    assert (said.exit_code, said.stderr) == (0, "")
    assert "open it in a browser" in CliRunner().invoke(app, words).stderr
    assert (
        "14" in CliRunner().invoke(app, ["-q", "query", run, "SELECT count(*) FROM images"]).stdout
    )


def test_a_glob_lists_runs_and_a_run_of_such_a_name_is_one(tmp_path: Path) -> None:
    for name in ("march", "april", "may[1]"):
        write_run(str(tmp_path / name), finished=name != "april")
    listed = CliRunner().invoke(app, ["status", f"{tmp_path}/*"]).output.splitlines()
    assert listed[0].split() == ["run", "status", "images", "ok", "failed", "model", "updated"]
    april = next(line for line in listed if f"{tmp_path}/april" in line)
    assert april.split()[1:5] == ["interrupted", "14", "12", "2"]
    assert len(listed) == 4
    one = CliRunner().invoke(app, ["status", f"{tmp_path}/may[1]", "--format", "json"]).output
    assert json.loads(one)["ok"] == 12
