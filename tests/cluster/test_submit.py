"""Submitting: what is refused, what is sent, and what a real Jobs server does with it."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from ray.exceptions import RpcError
from ray.job_submission import JobDetails

import segbatch
from segbatch.cluster import dashboard as dashboard_module
from segbatch.cluster.dashboard import Dashboard, connect
from segbatch.cluster.environment import (
    add_segbatch,
    forwarded_variables,
    read_environment,
    with_variables,
)
from segbatch.cluster.follow import JobLog
from segbatch.cluster.jobplan import plan
from segbatch.cluster.submission import (
    Submission,
    exit_code,
    find_submission,
    list_submissions,
    outcome,
)
from segbatch.cluster.submit import STOP_WAIT, entrypoint_of, metadata_of, submit
from segbatch.config.job import load_job
from segbatch.config.reading import CONTROL, job_text, read_document
from segbatch.errors import Incomplete, InputError, JobFileError, RunError
from segbatch.run import Run, open_run
from tests.collection import various
from tests.conftest import ROOT, job
from tests.drivers import cli, wait_until
from tests.written_run import write_run

CLOUD: dict[str, Any] = {
    "kind": "segment",
    "images": "s3://bucket/facades/",
    "model": "s3://bucket/model",
    "output": "s3://bucket/run",
}
NOWHERE = "http://127.0.0.1:9"

# --------------------------------------------------------------------------- what is sent

texts = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: not CONTROL.search(text) and "${" not in text
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts
    | st.floats(allow_nan=False)
    | st.sampled_from(["1e-3", "on", "2026-11-21", "1:30", "~", "0x1", "a\n", " a"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(texts, values, max_size=4))
def test_a_job_file_that_was_written_reads_as_the_same_values(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(job_text({"kind": "segment", **keys}), newline="")
    assert read_document(str(file)).values == {"kind": "segment", **keys}


def run_shell(entrypoint: str, folder: Path) -> list[str]:
    """The arguments and the standard input that a shell gives the entrypoint's ``python``."""
    (folder / "python").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\ncat\n')
    (folder / "python").chmod(0o755)
    shell = subprocess.run(
        ["/bin/sh", "-c", entrypoint], capture_output=True, text=True, check=True,
        env={"PATH": f"{folder}:/bin:/usr/bin"},
    )  # fmt: skip
    return shell.stdout.split("\n")


def test_a_shell_gives_the_driver_the_job_as_it_is(tmp_path: Path) -> None:
    nasty = {**CLOUD, "formulas": {"a": "$(reboot) `date` '\" \\ $HOME", "JOB": "é\nJOB\n"}}
    arguments = ["-m", "segbatch", "run", "-", "--only=a b"]
    heard = run_shell(entrypoint_of(nasty, arguments[4:]), tmp_path)
    assert heard[:5] == arguments
    (tmp_path / "job.yaml").write_text("\n".join(heard[5:]))
    assert read_document(str(tmp_path / "job.yaml")).values == nasty


def test_a_job_file_may_come_on_standard_input() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "segbatch", "run", "-"], check=False, capture_output=True, text=True,
        input="kind: segment\nimages: a/\nmodel: b\nouput: c",
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr == (
        "segbatch: <stdin>: output: is missing\n"
        "<stdin>:4: ouput: unknown key; did you mean output?\n"
    )


def test_a_job_of_thousands_of_uris_is_refused_for_a_manifest() -> None:
    images = [f"s3://bucket/facades/{number:06d}.jpg" for number in range(4000)]
    with pytest.raises(InputError, match=r"bytes of at most.*manifest"):
        submit({**CLOUD, "images": images}, NOWHERE)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"images": "photos/"}, "images: photos/ is on this machine"),
        ({"images": ["s3://a/b/", {"manifest": "all.csv"}]}, r"images\[1\].manifest: all.csv is"),
        ({"images": {"table": "data/"}}, "images.table: data/ is on this machine"),
        ({"images": {"shards": "a.tar", "where": "x"}}, "images.shards: a.tar is on this machine"),
        ({"images": [{"video": "clips/"}]}, r"images\[0\].video: clips/ is on this machine"),
        ({"images": {"panorama": "p/"}}, "images.panorama: p/ is on this machine"),
        ({"images": {"panorama": {"glob": "p/*"}}}, r"images.panorama.glob: p/\* is on this"),
        ({"model": "/models/a"}, "model: /models/a is on .* file:///models/a if every node"),
        ({"output": "~/run"}, "output: ~/run is on this machine"),
    ],
)
def test_a_path_of_this_machine_is_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(JobFileError, match=named):
        submit({**CLOUD, **keys}, NOWHERE)


def test_a_finetune_job_names_its_local_paths_too() -> None:
    work = {"kind": "finetune", "dataset": "s3://b/labels", "output": "s3://b/model"}
    with pytest.raises(JobFileError, match=r"model.from: model is on this machine"):
        submit({**work, "model": {"from": "model"}}, NOWHERE)
    with pytest.raises(JobFileError, match=r"model.backbone_weights: w.pth is on this machine"):
        submit({**work, "model": {"backbone_weights": "w.pth"}}, NOWHERE)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "zoo:deeplabv3_resnet50"},
        {"output": "file:///nfs/run"},
        {"formulas": {"output": "window / wall", "model": "wall"}},
        {"kind": "finetune", "dataset": "s3://b/l", "model": {"backbone_weights": "imagenet"}},
    ],
)
def test_what_is_no_path_of_this_machine_gets_as_far_as_the_cluster(keys: dict[str, Any]) -> None:
    work = CLOUD | keys
    if work["kind"] == "finetune":
        del work["images"]
    with pytest.raises(InputError, match="connection refused"):
        submit(work, NOWHERE)


def test_metadata_says_what_runs_and_where_it_goes() -> None:
    facts = metadata_of(load_job(CLOUD))
    assert facts["kind"] == "segment"
    assert facts["run"] == "s3://bucket/run"
    assert facts["model"] == "s3://bucket/model"
    assert facts["segbatch"] == segbatch.__version__
    training = {"kind": "finetune", "dataset": "s3://b/labels", "output": "s3://b/model/"}
    assert metadata_of(load_job(training))["model"] == "s3://b/model"


# --------------------------------------------------------------------------- its environment


def test_a_variable_is_sent_by_its_name_or_with_a_value() -> None:
    assert forwarded_variables(["A", "B=2=3", "C="], {"A": "1"}) == {"A": "1", "B": "2=3", "C": ""}


def test_a_variable_that_is_not_set_is_refused() -> None:
    with pytest.raises(InputError, match="--env AWS_PROFIL: not set here"):
        forwarded_variables(["AWS_PROFIL"], {"AWS_PROFILE": "a"})
    with pytest.raises(InputError, match="not the name of a variable"):
        forwarded_variables(["A B=1"], {})


def test_a_session_token_is_said_to_expire(capsys: pytest.CaptureFixture[str]) -> None:
    token = {"AWS_SESSION_TOKEN": "secret"}
    assert forwarded_variables(["AWS_SESSION_TOKEN"], token) == token
    assert "AWS_SESSION_TOKEN expires in some hours" in capsys.readouterr().err
    until = {"AWS_CREDENTIAL_EXPIRATION": "2026-11-21T18:00:00Z"}
    forwarded_variables(["AWS_SESSION_TOKEN"], token | until)
    said = capsys.readouterr().err
    assert "expires at 2026-11-21T18:00:00Z" in said
    assert "secret" not in said


def test_a_runtime_environment_comes_from_a_file_or_as_json(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("pip: [a]\n")
    assert read_environment(str(tmp_path / "env.yaml")) == {"pip": ["a"]}
    assert read_environment(None, '{"pip": ["a"]}', "here") == {"pip": ["a"], "working_dir": "here"}
    for wrong in ("[1]", "{"):
        with pytest.raises(InputError, match="--runtime-env-json: not a runtime environment"):
            read_environment(None, wrong)
    with pytest.raises(InputError, match="no such file"):
        read_environment(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="exclude each other"):
        read_environment("a", "{}")


def test_what_the_user_sets_comes_before_ours_and_after() -> None:
    environment = with_variables({"env_vars": {"A": "user", "B": "user"}}, {"A": "x"}, {"B": "y"})
    assert environment == {"env_vars": {"A": "user", "B": "y"}}
    with pytest.raises(InputError, match="env_vars: PORT: not a string; quote it"):
        with_variables({"env_vars": {"PORT": 1, "KEY": "secret"}}, {}, {})


def test_nothing_is_asked_of_a_package_index_that_has_no_segbatch() -> None:
    assert "segbatch is on no package index yet" in (ROOT / "README.md").read_text()
    texts = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("segbatch/**/*.py"), *ROOT.glob("*.yaml")]
    asks = re.compile(r"segbatch==|pip install segbatch\b")
    asking = [text.name for text in texts if asks.search(text.read_text())]
    assert asking == ["releasing.md"]


def test_a_cluster_without_segbatch_gets_this_checkout_and_what_it_needs() -> None:
    environment = add_segbatch({"pip": ["mine"], "env_vars": {"A": "1"}})
    assert environment["py_modules"] == [str(Path(segbatch.__file__).parent)]
    mine, *packages = environment["pip"]["packages"]
    assert mine == "mine"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(text) for text in project["dependencies"]}
    assert {Requirement(text) for text in packages} == {one for one in needed if one.name != "ray"}
    # Not for every platform, but on most it runs the networks.
    assert any(package.startswith("openvino") for package in packages)
    assert environment["env_vars"] == {"A": "1"}
    with pytest.raises(InputError, match="uv has no segbatch in it"):
        add_segbatch({"uv": ["mine"]})


@pytest.mark.parametrize("send", [submit, plan])
def test_a_job_that_is_too_long_for_a_command_is_refused(send: Callable[..., Any]) -> None:
    many = CLOUD | {"images": [f"s3://bucket/facades/{number:06d}.jpg" for number in range(4000)]}
    with pytest.raises(InputError, match=r"too long to submit: [\d,]+ bytes of at most 100,000"):
        send(many, NOWHERE)


# --------------------------------------------------------------------------- who answers


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (NOWHERE, "127.0.0.1:9: does not answer: connection refused"),
        ("127.0.0.1:9", "127.0.0.1:9: does not answer: connection refused"),
        ("http://no-such-host.invalid:8265", "does not answer: "),
        (
            "no-such-host.invalid:8265",
            "no-such-host.invalid:8265: does not answer: [a-z ]+$",
        ),
        ("ray://127.0.0.1:10001", "Ray Client's address"),
        ("http://me:secret@127.0.0.1:9", "holds a password"),
    ],
)
def test_an_address_where_no_cluster_is_ends_soon(address: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=said) as raised:
        submit(CLOUD, address)
    assert time.monotonic() - began < 10
    assert "secret" not in str(raised.value)


def test_a_run_that_was_not_submitted_has_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    run = write_run(str(tmp_path / "run"))
    with pytest.raises(InputError) as refused:
        find_submission(run.uri, None)
    assert str(refused.value) == (
        f"{run.uri}: its last driver was started with segbatch run, not submitted: it has no job;"
        f" segbatch status {run.uri} shows it"
    )


def test_a_gcs_that_does_not_answer_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(address: str) -> str:
        raise RpcError("Timed out while waiting for GCS to become available.")  # after 40 s

    def answer_as_grpc() -> None:
        client, _ = server.accept()
        with client:
            client.recv(65536)
            client.sendall(bytes.fromhex("000018040000000000000400400000000500400000"))

    monkeypatch.setattr(dashboard_module, "api_server_url", fails)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=answer_as_grpc)
        thread.start()
        said = f"{address}: not a Ray dashboard: Timed out .* available; give it as --address"
        with pytest.raises(InputError, match=said):
            connect(address)
        thread.join()


@pytest.mark.parametrize("page", ["/", "/#/jobs", "/#/overview?tab=a", "?a=b#/jobs"])
def test_the_address_of_a_page_of_the_dashboard_will_do(jobs_server: str, page: str) -> None:
    assert connect(f"{jobs_server}{page}").get_address() == jobs_server
    assert connect(f"{jobs_server.removeprefix('http://')}{page}").get_address() == jobs_server


def test_a_server_that_is_no_ray_is_told_from_one(s3: Any) -> None:
    with pytest.raises(InputError, match="not a Ray dashboard"):
        submit(CLOUD, s3.url)


@pytest.mark.parametrize(
    ("error_type", "code"),
    [("RUNTIME_ENV_SETUP_FAILURE", 2), ("JOB_SUPERVISOR_ACTOR_DIED", 3)],
)
def test_a_job_without_a_driver_is_wrong_or_may_be_sent_again(error_type: str, code: int) -> None:
    details = JobDetails(
        type="SUBMISSION", status="FAILED", entrypoint="", error_type=error_type,
        message="Traceback\n  deep down\nno such package",
    )  # fmt: skip
    assert exit_code(details) == code
    assert outcome(details) == "failed: no such package"


# --------------------------------------------------------------------------- a real Jobs server


@pytest.fixture(scope="module")
def dashboard(jobs_server: str) -> Dashboard:
    return connect(jobs_server)


class Relay:
    """A proxy between a client and a server whose connections can be cut."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        while self.open:
            with suppress(OSError):
                self.open.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self.server.accept()[0]
                server = socket.create_connection(self.upstream)
                self.open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def relayed(upstream: str) -> Iterator[Relay]:
    relay = Relay(upstream)
    try:
        yield relay
    finally:
        relay.server.shutdown(socket.SHUT_RDWR)
        relay.server.close()
        relay.cut()


def shell_job(dashboard: Dashboard, command: str, **metadata: str) -> Submission:
    """A job that runs a shell command instead of a driver, and so starts in a second."""
    submission = Submission(f"test_{uuid.uuid4().hex[:8]}", dashboard)
    submission.start(command, {"env_vars": {STOP_WAIT: "20"}}, metadata)
    return submission


def test_a_submitted_job_is_followed_to_its_end_and_found_by_its_run(
    jobs_server: str, model_uri: str, s3: Any, tmp_path: Path
) -> None:
    output, images = s3.uri("run"), s3.uri("images")
    for number in range(3):
        s3.put(f"{images}/{number}.png", various(1)[1])
    for file in Path(model_uri).iterdir():
        s3.put(f"{images}/model/{file.name}", file.read_bytes())
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(images + "/", f"{images}/model", output)))
    done = cli("submit", str(file), "--address", jobs_server, "--set=rows_per_file=2",
               "--env=SECRET=hush", timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"run={output} event=commit" in done.stdout
    assert "kind: segment" not in done.stdout  # the entrypoint, which the log begins with
    [submission_id] = re.findall(r"submitted as (\S+) to", done.stderr)
    assert f"{submission_id}: succeeded" in done.stderr

    run = open_run(output)
    assert run.info.submission == {"id": submission_id, "address": jobs_server}
    assert run.info.job["rows_per_file"] == 2
    assert "hush" not in done.stdout + done.stderr + json.dumps(run.info.to_json())

    assert cli("logs", output).stdout == done.stdout
    [listed] = json.loads(cli("jobs", "--address", jobs_server, "--format=json").stdout)
    assert (listed["id"], listed["output"], listed["exit_code"]) == (submission_id, output, 0)


@pytest.mark.long
def test_a_submitted_job_is_stopped_by_its_run_in_order(
    jobs_server: str, model_uri: str, s3: Any
) -> None:
    output, images = s3.uri("run"), s3.uri("images")
    for number in range(40):
        s3.put(f"{images}/{number:02d}.png", various(1)[1])
    s3.break_down({"kind": "stall", "method": "GET", "part": "images/3", "seconds": 3})
    work = job(images + "/", f"file://{model_uri}", output)
    submission = submit(work, jobs_server)
    wait_until(lambda: submission.details().status.is_terminal() or open_run_or_none(output))
    stopped = cli("stop", output, "--address", jobs_server)
    s3.break_down()
    assert stopped.returncode == 0, stopped.stderr
    assert f"{submission.id}: stopped" in stopped.stderr
    assert "interrupted" in stopped.stdout
    assert open_run(output).status == "interrupted"
    assert exit_code(submission.details()) == 143


def open_run_or_none(uri: str) -> Run | None:
    try:
        return open_run(uri)
    except RunError:
        return None


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_a_job_ends_with_the_exit_code_of_its_driver(
    dashboard: Dashboard, command: str, code: int
) -> None:
    assert exit_code(shell_job(dashboard, command).wait(120)) == code


def test_a_job_that_is_stopped_has_the_time_to_end_in_order(
    dashboard: Dashboard, tmp_path: Path
) -> None:
    command = "trap 'sleep 4; echo in order; exit 130' TERM; echo began; while :; do sleep 1; done"
    submission = shell_job(dashboard, command)
    wait_until(lambda: "began\n" in dashboard.get_job_logs(submission.id))
    said: list[str] = []
    log = JobLog(submission, said.append)
    log.write_available()
    assert exit_code(submission.stop()) == 143
    log.write_available()
    lines = "".join(said).splitlines()
    assert (lines.count("began"), lines[-1]) == (1, "in order")


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # so Ray's client asks aiohttp
def test_a_log_is_followed_without_repeating_a_line_when_connections_break(
    dashboard: Dashboard, jobs_server: str
) -> None:
    submission = shell_job(dashboard, "for i in 1 2 3 4 5 6; do echo line $i; sleep 1; done")
    lines: list[str] = []
    with relayed(jobs_server) as relay:

        def write(text: str) -> None:
            lines.extend(text.splitlines())
            if lines[-1] in ("line 2", "line 4"):
                relay.cut()

        details = JobLog(Submission(submission.id, connect(relay.url)), write).follow()
    assert exit_code(details) == 0
    assert [line for line in lines if "line" in line] == [f"line {n}" for n in range(1, 7)]


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated")
def test_a_cluster_that_is_gone_ends_the_following(
    dashboard: Dashboard, jobs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segbatch.cluster.follow.GONE_S", 0.0)
    submission = shell_job(dashboard, "sleep 60")
    with relayed(jobs_server) as relay:
        log = JobLog(Submission(submission.id, connect(relay.url)), print)
    with pytest.raises(Incomplete, match=f"segbatch logs {submission.id} --address .* --follow"):
        log.follow()
    submission.stop()


def test_a_server_that_is_silent_for_a_moment_does_not_end_a_wait(
    dashboard: Dashboard, jobs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = shell_job(dashboard, "sleep 3")
    with relayed(jobs_server) as relay:
        gone = connect(relay.url)
    asked: list[Dashboard] = []

    class FirstSilent(Submission):
        def details(self) -> JobDetails:
            asked.append(gone if len(asked) < 2 else dashboard)
            return asked[-1].get_job_info(self.id)

    assert FirstSilent(submission.id, dashboard).wait(60).status == "SUCCEEDED"
    assert asked[:3] == [gone, gone, dashboard]
    monkeypatch.setattr("segbatch.cluster.submission.GONE_S", 0.0)
    with pytest.raises(Incomplete, match="does not answer"):
        Submission(submission.id, gone).wait(60)


def test_a_log_that_begins_in_another_way_is_shown(dashboard: Dashboard) -> None:
    submission = shell_job(dashboard, "for i in 1 2 3 4; do printf '%5000d\\n' $i; done; sleep 30")
    said: list[str] = []
    log = JobLog(submission, said.append)
    log._header = "a line that no version of Ray writes"
    wait_until(lambda: "   3\n" in dashboard.get_job_logs(submission.id))
    log._take(dashboard.get_job_logs(submission.id))
    assert "   3\n" in "".join(said)
    submission.stop()


def test_another_version_on_the_cluster_is_said_before_anything_is_sent(
    jobs_server: str, dashboard: Dashboard, tmp_path: Path
) -> None:
    (tmp_path / "segbatch.py").write_text("__version__ = '9.9.9'\n")
    before = len(list_submissions(dashboard))
    with pytest.raises(
        InputError, match=r"has segbatch 9\.9\.9 and here is .*: install .* or .*py_modules"
    ):
        submit(CLOUD, jobs_server, runtime_env={"working_dir": str(tmp_path)})
    assert len(list_submissions(dashboard)) == before


def test_an_environment_that_cannot_be_made_is_said_before_anything_is_sent(
    jobs_server: str, tmp_path: Path
) -> None:
    broken = {"working_dir": "file:///no/such/folder.zip", "env_vars": {"KEY": "hush"}}
    with pytest.raises(InputError, match="runtime environment") as raised:
        submit(CLOUD, jobs_server, runtime_env=broken)
    assert "hush" not in str(raised.value)


def test_a_job_that_is_not_there_is_refused(jobs_server: str, s3: Any) -> None:
    with pytest.raises(InputError, match="no_such_job does not exist"):
        find_submission("no_such_job", jobs_server).details()
    with pytest.raises(InputError, match="no job for it at"):
        find_submission(s3.uri("run"), jobs_server)


def test_a_submission_id_that_is_taken_is_refused(jobs_server: str, dashboard: Dashboard) -> None:
    taken = shell_job(dashboard, "true").id
    with pytest.raises(InputError, match=f"{taken}: a job with this id already exists"):
        submit(CLOUD, jobs_server, submission_id=taken)


def test_a_latest_job_that_runs_is_found_before_one_that_ended(dashboard: Dashboard) -> None:
    first = shell_job(dashboard, "sleep 60", kind="segment", run="s3://bucket/twice")
    second = shell_job(dashboard, "true", kind="segment", run="s3://bucket/twice")
    second.wait(120)
    assert find_submission("s3://bucket/twice", dashboard.get_address()).id == first.id
    first.stop()
    assert find_submission("s3://bucket/twice", dashboard.get_address()).id == second.id
