"""Cluster: several Ray nodes and an S3 server on this machine, to try what needs more than one.

Every node is a raylet of its own with an address of its own, as on a real cluster: one can be lost
and another can join. The head takes no work; it has the dashboard, the Jobs server and the drivers.
What is up stands in ``cluster/state.json``.
"""

from __future__ import annotations

import io
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from segbatch import storage
from segbatch.console import say
from segbatch.demo.nodes import FOLDER, HOST, NODE_CPUS, State, answers
from segbatch.errors import InputError, SegbatchError

DEMO = Path("demo")  # what scripts/demo leaves
BUCKET = "s3://demo"
COPIES = 20  # of each photograph in the list of images, so that there is time to lose a node

SEGMENT = """\
# A job for this cluster: segbatch submit {folder}/segment.yaml
kind: segment
images: {bucket}/facades.parquet
model: {bucket}/model
output: {bucket}/runs/first
formulas:
  window_to_wall: window / (window + wall + brick)
"""

app = typer.Typer(
    help="A Ray cluster of several nodes on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def up(
    nodes: Annotated[int, typer.Option(min=2, max=20, help="With the head.")] = 3,
    token: Annotated[bool, typer.Option("--token", help="With token authentication.")] = False,
    dashboard_port: int = 8265,
) -> None:
    """Start it; prints what a shell needs: eval "$(scripts/cluster up)"."""
    with suppress(InputError):
        if State.read().whole:
            say("it is up already")
            env()
            return
        down()
    _refuse_taken(dashboard_port)
    FOLDER.mkdir(exist_ok=True)
    if token:
        (FOLDER / "token").touch(mode=0o600)
        (FOLDER / "token").write_text(secrets.token_hex(32))
    # Sockets lie below it, and their paths may have 107 characters.
    temp = tempfile.mkdtemp(prefix="segbatch-", dir="/tmp")
    state = State(dashboard_port, _free_port(), _free_port(), temp, token, [])
    say(f"starting a head and {nodes - 1} nodes of {NODE_CPUS} CPUs, and an S3 server")
    state.write()
    try:
        state.start_s3()
        state.start_head()
        state.until(lambda: answers(state.url))
        for _ in range(nodes - 1):
            state.start_node()
            state.started()
    except BaseException:
        down()
        raise
    if (DEMO / "facades").is_dir() and (DEMO / "model").is_dir():
        fill()
    else:
        say(f"no images yet: scripts/demo leaves some in {DEMO}/, then: scripts/cluster fill")
    env()
    say(f'{state.url} is up; in your shell: eval "$(scripts/cluster env)"')


@app.command()
def env() -> None:
    """Print the variables that lead a shell here."""
    for name, value in State.read().exports().items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def status() -> None:
    """What is up."""
    state = State.read()
    print(f"dashboard  {state.url}  {'answers' if answers(state.url) else 'does not answer'}")
    for process in state.processes:
        print(f"{process.name:9}  pid {process.pid}  {'up' if process.alive else 'gone'}")


@app.command()
def kill(node: Annotated[int, typer.Argument(help="1 for node-1.")]) -> None:
    """Lose a node, as when its machine is switched off."""
    state = State.read()
    if node not in state.nodes:
        raise InputError(f"no node {node}; nodes: {', '.join(map(str, state.nodes)) or 'none'}")
    state.nodes[node].kill()
    state.processes.remove(state.nodes[node])
    state.write()
    say(f"node-{node} is gone")


@app.command()
def add() -> None:
    """One more node."""
    state = State.read()
    state.forget_lost()
    number = state.start_node()
    state.started()
    say(f"node-{number} has joined")


@app.command()
def fill() -> None:
    """Copy the demo's photographs, labels and model into the S3 server, and write a job."""
    state = State.read()
    if not (DEMO / "facades").is_dir():
        raise InputError(f"{DEMO}/facades: is not there; scripts/demo makes it")
    for name in list(os.environ):
        if name.startswith("AWS_"):
            del os.environ[name]
    os.environ.update(state.exports())
    with suppress(FileExistsError):
        storage.filesystem(BUCKET)[0].mkdir(BUCKET.removeprefix("s3://"))
    photographs = []
    for kind in ("facades", "model", "labels"):
        for file in sorted((DEMO / kind).rglob("*")):
            if file.is_file() and "training" not in file.parts:
                uri = f"{BUCKET}/{file.relative_to(DEMO)}"
                storage.write_bytes(uri, file.read_bytes())
                photographs += [uri] * (kind == "facades")
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": photographs * COPIES}), sink)
    storage.write_bytes(f"{BUCKET}/facades.parquet", sink.getvalue())
    (FOLDER / "segment.yaml").write_text(SEGMENT.format(folder=FOLDER, bucket=BUCKET))
    say(
        f"{len(photographs)} photographs, {COPIES} times each in {BUCKET}/facades.parquet; a job"
        f" for them: {FOLDER}/segment.yaml"
    )


@app.command()
def down() -> None:
    """Stop what `up` and `add` have started."""
    state = State.read()
    for process in reversed(state.processes):
        process.end()
    shutil.rmtree(state.temp, ignore_errors=True)
    (FOLDER / "state.json").unlink()
    (FOLDER / "token").unlink(missing_ok=True)
    say("the cluster is down")


def _refuse_taken(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} is taken, by another Ray perhaps: --dashboard-port names another"
            ) from error


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind((HOST, 0))
        port: int = tried.getsockname()[1]
        return port


def main() -> None:
    """Entry point of scripts/cluster."""
    try:
        app()
    except SegbatchError as error:
        print(f"scripts/cluster: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
