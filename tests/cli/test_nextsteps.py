"""What a failed run advises, typed."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segbatch.cli import main as cli
from segbatch.cli.nextsteps import after_failure
from segbatch.config.job import load_job
from segbatch.errors import JobFailed
from segbatch.results.runinfo import Counts, read_info, write_info
from tests.written_run import write_run


def run_with(folder: Path, counts: Counts, *, finished: bool = True) -> str:
    """A run in a folder with a blank, whose ``run.json`` has these counts."""
    uri = write_run(str(folder / "my run"), finished=finished).uri
    info = read_info(uri)
    assert info is not None
    info.counts = counts
    info.manifest.rows = counts.ok + sum(counts.failed.values())
    write_info(uri, info)
    return uri


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A finished run: 12 images are ok, 2 failed."""
    return run_with(tmp_path, Counts(ok=12, failed={"not_found": 1, "timeout": 1}))


def notes(run: str, job: str, *overrides: str) -> list[str]:
    """The commands that are advised."""
    failure = JobFailed("2 of 14 images failed")
    after_failure(failure, run, job, overrides)
    return [note.partition(": ")[2].strip() for note in getattr(failure, "__notes__", [])]


def test_the_failures_can_be_listed_as_advised(run: str) -> None:
    program, *words = shlex.split(notes(run, "-")[0])
    assert program == "segbatch"
    shown = CliRunner().invoke(cli.app, words).output
    assert "not_found" in shown
    assert "timeout" in shown


def test_the_advised_limit_accepts_the_failures_and_keeps_the_other_overrides(
    run: str, tmp_path: Path
) -> None:
    job = tmp_path / "a job.yaml"
    job.write_text(f"kind: segment\nimages: photos/\nmodel: zoo:facades\noutput: {run}\n")
    overrides = ["predict.batch_size=4", "limits.max_failed_fraction=0.1"]
    _, again, accept = notes(run, str(job), *overrides)
    assert shlex.split(again)[-1] == "--retry-failed"
    words = shlex.split(accept)
    assert words[:3] == ["segbatch", "run", str(job)]
    typed = load_job(str(job), [word for word in words[3:] if word != "--set"])
    assert typed.predict.batch_size == 4
    assert typed.limits.max_failed_fraction * 14 >= 2


@pytest.mark.parametrize("failed", [1, 29, 57, 58, 99, 100])
def test_the_advised_limit_is_enough_for_any_number_of_failures(
    tmp_path: Path, failed: int
) -> None:
    run = run_with(tmp_path, Counts(ok=100 - failed, failed={"timeout": failed}))
    limit = float(notes(run, "job.yaml")[-1].rpartition("=")[2])
    assert failed <= limit * 100
    assert limit <= 1


def test_a_run_that_stopped_early_gets_no_limit(tmp_path: Path) -> None:
    run = run_with(tmp_path, Counts(ok=0, failed={"timeout": 1100}), finished=False)
    assert [words.split()[-1] for words in notes(run, "job.yaml")[1:]] == ["--retry-failed"]


def test_a_job_from_standard_input_is_not_named(run: str) -> None:
    assert len(notes(run, "-")) == 1


def test_notes_follow_the_error_in_lines_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        failure = JobFailed("2 of 14 images failed")
        failure.add_note("accept them: segbatch run job.yaml")
        raise failure

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == "segbatch: 2 of 14 images failed\n  accept them: segbatch run job.yaml\n"
