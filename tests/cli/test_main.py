"""The command line, in processes of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import segbatch
from segbatch import storage
from segbatch.cli.main import main
from segbatch.config.job import load_job
from segbatch.jobs.doctor import examine
from tests.collection import jpeg
from tests.conftest import S3, job
from tests.drivers import cli
from tests.written_run import write_run

ORIGINALS = Path(__file__).parents[1] / "model" / "originals"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(3):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    return folder


def refused(folder: Path, work: dict[str, Any], *words: str, **environment: str) -> None:
    """``segbatch run`` says in one line what is wrong with ``work``, and starts nothing."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(work))
    result = cli("run", str(file), **environment)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    said = result.stderr.splitlines()
    assert said[-1].startswith("segbatch: "), result.stderr
    assert "Traceback" not in result.stderr
    assert sum(line.startswith("segbatch: ") for line in said) == 1
    assert "images to do" not in result.stderr, "no worker was started"
    for word in words:
        assert word in said[-1], said[-1]


def test_a_wrong_job_file_is_refused_by_file_key_and_suggestion(
    tmp_path: Path, images: Path, model_uri: str
) -> None:
    work = job(f"{images}/", model_uri, str(tmp_path / "run"), predict={"batch_sise": 2})
    refused(tmp_path, work, "job.yaml", "predict.batch_sise", "batch_size")
    assert not (tmp_path / "run").exists()


def test_a_missing_job_file_is_refused(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "segbatch", "run", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("segbatch: ")
    assert "none.yaml" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_bucket_is_refused(s3: S3, tmp_path: Path, model_uri: str) -> None:
    work = job("s3://no-such-bucket/images/", model_uri, str(tmp_path / "run"))
    refused(tmp_path, work, "s3://no-such-bucket/images")


def test_an_empty_source_is_refused(tmp_path: Path, model_uri: str) -> None:
    (tmp_path / "empty").mkdir()
    work = job(f"{tmp_path}/empty/", model_uri, str(tmp_path / "run"))
    refused(tmp_path, work, f"{tmp_path}/empty")


def test_images_of_which_none_can_be_read_are_refused(
    tmp_path: Path, images: Path, model_uri: str
) -> None:
    (tmp_path / "list.csv").write_text("uri\n/none/1.jpg\n/none/2.jpg\n")
    work = job(f"{tmp_path}/list.csv", model_uri, str(tmp_path / "run"))
    refused(tmp_path, work, "none of the first 2 images can be read", "/none/1.jpg")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, images: Path, model_uri: str) -> None:
    half = tmp_path / "half"
    shutil.copytree(model_uri, half)
    (half / "config.json").unlink()
    refused(tmp_path, job(f"{images}/", str(half), str(tmp_path / "run")), "config.json")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, images: Path, model_uri: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_uri, other)
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace("mobilenet_v2", "resnet18"))
    work = job(f"{images}/", str(other), str(tmp_path / "run"))
    refused(tmp_path, work, "model.safetensors", "resnet18")


def test_an_output_that_cannot_be_written_to_is_refused(
    tmp_path: Path, images: Path, model_uri: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path, job(f"{images}/", model_uri, f"{tmp_path}/file/run"), "output", "file/run")


def test_a_ray_address_that_answers_nothing_is_refused_in_reasonable_time(
    tmp_path: Path, images: Path, model_uri: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(f"{images}/", model_uri, str(tmp_path / "run"))))
    result = cli("run", str(file), timeout=90, RAY_ADDRESS=address)
    assert result.returncode == 2, result.stderr
    assert f"RAY_ADDRESS={address}" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "lease.json").exists()


@pytest.mark.usefixtures("s3")
@pytest.mark.long
def test_a_storage_that_refuses_connections_is_no_endless_wait(
    tmp_path: Path, model_uri: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job("s3://bucket/images/", model_uri, "s3://bucket/run")))
    result = cli("run", str(file), timeout=180, AWS_ENDPOINT_URL=endpoint)
    assert result.returncode in (2, 3), result.stderr
    assert result.stderr.splitlines()[-1].startswith("segbatch: ")
    assert "Traceback" not in result.stderr


def test_only_without_retry_failed_is_refused(tmp_path: Path) -> None:
    work = tmp_path / "job.yaml"
    work.write_text("kind: segment\nimages: photos/\nmodel: model\noutput: run\n")
    result = cli("run", str(work), "--only", "timeout")
    assert (result.returncode, result.stderr) == (2, "segbatch: --only needs --retry-failed\n")


def test_status_and_audit_of_what_is_no_run_are_refused(tmp_path: Path) -> None:
    for command in ("status", "audit"):
        result = cli(command, str(tmp_path))
        assert result.returncode == 2
        assert result.stderr == f"segbatch: {tmp_path}: no run here (no run.json in it)\n"


def test_status_and_audit_say_in_json_what_is_on_storage(whole_run: Any) -> None:
    import json

    status = cli("status", whole_run.uri, "--format", "json")
    assert json.loads(status.stdout)["failed"] == whole_run.info.counts.failed
    audit = cli("audit", whole_run.uri, "--deep", "--format", "json")
    assert audit.returncode == 0
    assert json.loads(audit.stdout)["rows"] == 21


# ----------------------------------------------------------------------------------- streams


def test_streams_may_be_closed() -> None:
    command = '"$0" -m segbatch run - <&- >&-'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "segbatch: <stdin>: not a job file: it should begin with 'kind: segment'\n"
    )


def test_stdout_of_another_encoding_gets_question_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(str(tmp_path / "München → Zürich"))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr(sys, "argv", ["segbatch", "status", run.uri])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    sys.stdout.flush()
    assert "München ? Zürich" in written.getvalue().decode("latin-1")


# ------------------------------------------------------------------------------- broken pipes

MANY = "SELECT unnest(range(100000)) AS number"


@pytest.mark.parametrize(
    ("lines", "code", "command"),
    [
        (1, 0, ["query", "RUN", MANY, "--format", "csv"]),  # as `| head -1`
        (0, 0, ["query", "RUN", "SELECT 1 AS one"]),
        (0, 0, ["init", "segment"]),  # less than a buffer, which Python writes at its end
        (0, 2, ["status", "RUN/none"]),
    ],
)
def test_a_reader_that_has_seen_enough_changes_no_exit_code(
    tmp_path: Path, lines: int, code: int, command: list[str]
) -> None:
    run = write_run(str(tmp_path / "run"))
    words = [word.replace("RUN", run.uri) for word in command]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options["env"] = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen([sys.executable, "-m", "segbatch", *words], **options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(lines):
            assert process.stdout.readline() == b"number\n"
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == code, said
    assert "BrokenPipe" not in said
    assert said.count("\n") == (code != 0)


# ----------------------------------------------------------------------------- what is loaded


def loaded(*command: str) -> set[str]:
    """The modules that Python holds after a command, of those that are heavy."""
    program = (
        "import sys, atexit;"
        "atexit.register(lambda: print('\\n' + ' '.join(sys.modules), file=sys.stderr));"
        + (
            f"sys.argv = ['segbatch', *{list(command)!r}];"
            "from segbatch.cli.main import main; main()"
            if command
            else "import segbatch"
        )
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return {"torch", "ray", "pandas"} & set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "command", [(), ("--help",), ("--version",), ("run", "--help")], ids=" ".join
)
def test_help_loads_neither_torch_nor_ray(command: tuple[str, ...]) -> None:
    assert loaded(*command) == set()


def test_query_and_status_load_neither_torch_nor_ray(whole_run: Any) -> None:
    assert loaded("query", whole_run.uri, "SELECT count(*) FROM images") == set()
    assert loaded("status", whole_run.uri) == set()


def test_every_public_name_is_a_function_in_any_order_of_imports() -> None:
    for name in segbatch._MODULES:
        assert callable(getattr(segbatch, name)), name
        assert callable(getattr(segbatch, name)), f"{name}, the second time"
    assert set(segbatch._MODULES) == set(segbatch.__all__) - {"__version__"}
    assert set(segbatch.__all__) <= set(dir(segbatch))
    with pytest.raises(AttributeError):
        _ = segbatch.no_such_name


PICTURES = "the extension must be one of .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "RUN", "-o", "report.txt"], "-o report.txt: must end in .html or .htm"),
        (["report", "RUN", "-o", "report"], "-o report: must end in .html or .htm"),
        (["model", "export", "M", "--to", "onnx", "-o", "m.pt"], "-o m.pt: must end in .onnx"),
        (["labels", "check", "D", "-o", "sheet.psd"], f"sheet.psd: {PICTURES}"),
        (["predict", __file__, "--model", "M", "-o", "a.psd"], f"a.psd: {PICTURES}"),
        (["predict", __file__, "--model", "M", "-o", "a"], f"a: {PICTURES}"),
    ],
)
def test_an_output_of_another_name_is_refused_before_anything_is_read(
    words: list[str], told: str
) -> None:
    done = cli(*words)
    assert (done.returncode, done.stderr) == (2, f"segbatch: {told}\n")


# ----------------------------------------------------------------------------------------- models


def test_networks_are_listed_with_what_they_cost() -> None:
    listed = cli("model", "list")
    assert listed.returncode == 0
    for part in ("deeplabv3plus", "mit_b0", "GMAC", "non-commercial (NVIDIA)", "zoo:"):
        assert part in listed.stdout
    assert cli("model", "list", "--arch", "segformer3").returncode == 2


def test_bundles_are_listed_by_their_arch(model_uri: str) -> None:
    def listed(arch: str) -> list[str]:
        done = cli("model", "list", model_uri, "--arch", arch, "--format", "json")
        assert done.returncode == 0, done.stderr
        return [entry["arch"] for entry in json.loads(done.stdout)]

    assert listed("deeplabv3plus") == ["deeplabv3plus"]
    assert listed("unet") == listed("graph") == []
    refused = cli("model", "list", model_uri, "--arch", "deeplab3")
    assert refused.returncode == 2
    assert "did you mean deeplabv3" in refused.stderr


def test_a_graph_is_imported_looked_at_and_predicts(tmp_path: Path, images: Path) -> None:
    source = ORIGINALS / "frozen.pb"
    bundle = str(tmp_path / "model")
    asked = cli("model", "import", str(source), bundle)
    assert asked.returncode == 2
    assert "--classes a,b,c" in asked.stderr.splitlines()[-1]
    made = cli("model", "import", str(source), bundle, "--classes", "a,b,c,d,e")
    assert made.returncode == 0, made.stderr
    assert "it gives labels at 1/1" in made.stderr
    assert "graph" in cli("model", "info", bundle).stdout
    overlay = tmp_path / "overlay.png"
    shown = cli("predict", str(images / "0.jpg"), "--model", bundle, "-o", str(overlay))
    assert shown.returncode == 0, shown.stderr
    assert overlay.stat().st_size > 1000


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--mean", "0.5", "must be 3 numbers, such as 0.485,0.456,0.406"),
        ("--std", "1,1,0", "must be above 0"),
        ("--input-range", "255,0", "must be 2 numbers, such as 0,255"),
    ],
)
def test_wrong_numbers_are_refused(option: str, value: str, why: str) -> None:
    result = cli("model", "import", "missing.onnx", "model", option, value)
    assert result.returncode == 2
    assert why in result.stderr


@pytest.mark.parametrize("kind", ["segment", "finetune", "evaluate"])
def test_init_prints_a_job_file_that_can_be_run(kind: str, tmp_path: Path) -> None:
    printed = cli("init", kind)
    assert printed.returncode == 0
    (tmp_path / "job.yaml").write_text(printed.stdout)
    loaded = load_job(str(tmp_path / "job.yaml"), environment={"BUCKET": "bucket"})
    assert loaded.kind == kind
    assert printed.stdout.startswith("# ")


def test_the_doctor_tries_storage_and_says_what_does_not_work(s3: S3, tmp_path: Path) -> None:
    folder = s3.uri("photos")
    s3.put(f"{folder}/a.jpg", b"a photograph")
    facts = json.loads(cli("doctor", folder, "--format", "json").stdout)
    assert facts["uri"] == folder
    assert (facts["list"], facts["write"]) == ("yes", "yes")
    assert facts["read"] == "yes, the same bytes"
    assert facts["aws_credentials"] == "found (env)"
    assert "torch fp32" in facts["runs"]
    assert [file.uri for file in storage.list_files(folder)] == [f"{folder}/a.jpg"]

    missing = cli("doctor", "s3://no-such-bucket-at-all/photos", "--format", "json")
    assert missing.returncode == 1
    facts = json.loads(missing.stdout)
    assert facts["list"].startswith("no: s3://no-such-bucket-at-all/photos")
    assert facts["write"].startswith("no: s3://no-such-bucket-at-all/photos")
    assert "read" not in facts

    (tmp_path / "file").write_bytes(b"")
    facts = examine(str(tmp_path / "file"))
    assert facts["list"] == "no: it is a file, not a folder"
    assert facts["write"].startswith("no: ")
    assert cli("doctor", str(tmp_path / "file" / "below")).returncode == 1
    facts = examine(str(tmp_path / "new" / "run"))
    assert facts["list"] == "yes; the folder does not exist yet"
    assert facts["read"] == "yes, the same bytes"
    assert not (tmp_path / "new").exists()
    assert cli("doctor").returncode == 0
