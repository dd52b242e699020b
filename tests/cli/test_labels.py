"""``segbatch labels`` in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segbatch.labels.dataset import open_dataset, write_shard
from tests.conftest import ROOT, S3
from tests.drivers import Ended, cli
from tests.labels.annotated_images import FRONT, annotate


def labels(*arguments: str, **environment: str) -> Ended:
    return cli("labels", *arguments, timeout=120, **environment)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    for number in range(5):
        annotate(tmp_path / "street", f"house-{number}")
    return tmp_path / "street"


def test_import_says_what_came_of_the_labels_and_what_was_left_out(
    street: Path, tmp_path: Path
) -> None:
    for number in range(5):
        annotate(street, f"house-{number}", [*FRONT, ("window", (900, 900, 950, 950))])
    result = labels("import", str(street), f"{tmp_path}/labels", "--from", "labelme")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert f"dataset                      {tmp_path}/labels" in lines
    assert "shapes                       10" in lines
    assert "pixels that no shape covers  ignore" in lines
    [window] = [line.split() for line in lines if line.startswith("window")]
    assert window[:3] == ["window", "1,280", "8.33%"]
    assert "Left out: 5" in lines
    [reason] = [line for line in lines if line.startswith("      5 × ")]
    assert "outside" in reason
    assert sum("house-" in line for line in lines) == 3
    assert "          and 2 more" in lines
    assert f"All of them: {tmp_path}/labels/skipped.jsonl" in lines
    assert "labels check" in result.stderr


def test_import_tells_facts_in_json(street: Path, tmp_path: Path) -> None:
    result = labels(
        "import", str(street), f"{tmp_path}/labels", "--from", "labelme",
        "--format", "json", "--map", "wall=facade", "--map", "window=__ignore__",
        "--unlabelled", "facade", "--group-by", r"house-(\d)",
    )  # fmt: skip
    facts = json.loads(result.stdout)
    assert [entry["name"] for entry in facts["classes"]] == ["facade", "void"]
    assert facts["unlabelled"] == "facade"
    assert facts["skipped"] == []


def test_import_refuses_what_is_wrong_in_one_line(street: Path, tmp_path: Path) -> None:
    source, target = str(street), f"{tmp_path}/labels"
    for arguments, said in [
        ([source, target, "--from", "yolo"], "--from yolo: no such format"),
        ([f"{source}-2", target, "--from", "labelme"], f"{source}-2: no such folder"),
        ([source, target, "--from", "coco"], "import it with --from labelme"),
        ([source, target, "--from", "labelme", "--classes", "wall,door"], "'window'"),
        ([source, target, "--from", "labelme", "--map", "x"], "--map x: must be old=new"),
        ([source, "/proc/labels", "--from", "labelme"], "/proc/labels: cannot be written to"),
    ]:
        result = labels("import", *arguments)
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        assert result.stderr.startswith("segbatch: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr
    assert not Path(target).exists()


def test_a_dataset_is_added_to_only_when_it_is_said(street: Path, s3: S3) -> None:
    uri = s3.uri("labels")
    arguments = ("import", str(street), uri, "--from", "labelme")
    assert labels(*arguments).returncode == 0
    refused = labels(*arguments)
    assert refused.returncode == 2
    assert "--append" in refused.stderr
    annotate(street, "house-9")
    added = labels(*arguments, "--append")
    assert added.returncode == 0
    assert "replaced                     5" in added.stdout
    assert sum(open_dataset(uri).splits.values()) == 6


def test_check_ends_with_0_for_warnings_and_1_for_what_cannot_be_trained_on(
    street: Path, tmp_path: Path
) -> None:
    uri = f"{tmp_path}/labels"
    labels("import", str(street), uri, "--from", "labelme", "--split", "val=0")
    result = labels("check", uri, "--sheet", f"{tmp_path}/sheet.png")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "warning: val has no image"
    assert lines[-1] == "images: train 5; errors: 0; warnings: 1"
    assert (tmp_path / "sheet.png").stat().st_size > 1000

    dataset = open_dataset(uri)
    [broken] = [entry for table in dataset.tables("train") for entry in table.to_pylist()][:1]
    broken |= {"image_id": 99, "image": {"bytes": b"", "path": None}}
    shards = [*dataset.shards, write_shard(uri, "val", [broken])]
    type(dataset)(uri, dataset.classes, shards).publish()
    result = labels("check", uri, "--format", "json")
    assert result.returncode == 1
    facts = json.loads(result.stdout)
    assert facts["errors"] == 1
    assert facts["findings"][0]["image_id"] == 99


def test_check_refuses_what_is_no_dataset_and_what_is_no_picture(tmp_path: Path) -> None:
    assert labels("check", str(tmp_path)).returncode == 2
    result = labels("check", str(tmp_path), "-o", "sheet.txt")
    told = "segbatch: sheet.txt: the extension must be one of .png, .jpg, .jpeg, .webp"
    assert result.stderr.startswith(told)


def test_the_guide_has_every_option() -> None:
    guide = (ROOT / "docs" / "labels.md").read_text()
    for command in ("import", "check"):
        said = labels(command, "--help", COLUMNS="200").stdout
        for option in set(re.findall(r"--[a-z][a-z-]+", said)) - {"--help"}:
            assert option in guide, option


# ------------------------------------------------------------------------------ ended from outside


@contextmanager
def importing(source: Path, dataset: Path) -> Iterator[subprocess.Popen[str]]:
    """An import of many images, stopped in the middle of its work."""
    for number in range(120):
        annotate(source, f"house-{number:03d}")
    process = subprocess.Popen(
        [sys.executable, "-m", "segbatch", "labels", "import", str(source), str(dataset),
         "--from", "labelme", "--append"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not _children(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
        time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM, signal.SIGKILL]
)
def test_an_import_that_is_stopped_leaves_the_dataset_as_it_was(
    street: Path, tmp_path: Path, number: signal.Signals
) -> None:
    dataset = tmp_path / "labels"
    assert labels("import", str(street), str(dataset), "--from", "labelme").returncode == 0
    before = open_dataset(str(dataset))
    with importing(street, dataset) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert process.returncode == -9
        else:
            assert process.returncode == 128 + number
            assert stderr.splitlines()[-1].startswith(f"segbatch: interrupted by {number.name}")
            assert "Traceback" not in stderr
        deadline = time.monotonic() + 10
        while _is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _is_alive(process.pid), "a process of the pool outlived the import"
    assert open_dataset(str(dataset)) == before

    again = labels("import", str(street), str(dataset), "--from", "labelme", "--append")
    assert again.returncode == 0, again.stderr
    assert sum(open_dataset(str(dataset)).splits.values()) == 125
    assert open_dataset(str(dataset)).unnamed_files() == []
