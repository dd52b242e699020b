"""``scripts/cluster``: a Ray cluster of several nodes and an S3 server, all on this machine.

Each node is a raylet with its own address, as on a real cluster: one can be lost and another can
join. The head takes no work; it runs the dashboard, the Jobs server and the drivers.
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
from segbatch.demo.localcluster import FOLDER, HOST, NODE_CPUS, LocalCluster, answers
from segbatch.errors import InputError, SegbatchError

DEMO = Path("demo")  # the output of scripts/demo
BUCKET = "s3://demo"
COPIES = 20  # of each photograph in the manifest, to leave time for losing a node

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
    nodes: Annotated[int, typer.Option(min=2, max=20, help="Number of nodes, with the head.")] = 3,
    token: Annotated[bool, typer.Option("--token", help="Require a token.")] = False,
    dashboard_port: int = 8265,
) -> None:
    """Start the cluster; prints variables for the shell: eval "$(scripts/cluster up)"."""
    with suppress(InputError):
        if LocalCluster.read().all_alive:
            say("it is up already")
            env()
            return
        down()
    _require_free(dashboard_port)
    FOLDER.mkdir(exist_ok=True)
    if token:
        (FOLDER / "token").touch(mode=0o600)
        (FOLDER / "token").write_text(secrets.token_hex(32))
    # Ray's sockets lie below it, and their paths are limited to 107 characters.
    temp = tempfile.mkdtemp(prefix="segbatch-", dir="/tmp")
    cluster = LocalCluster(dashboard_port, _free_port(), _free_port(), temp, token, [])
    say(f"starting a head and {nodes - 1} nodes of {NODE_CPUS} CPUs, and an S3 server")
    cluster.write()
    try:
        cluster.start_s3()
        cluster.start_head()
        cluster.wait_for(lambda: answers(cluster.url))
        for _ in range(nodes - 1):
            cluster.start_node()
            cluster.wait_until_ready()
    except BaseException:
        down()
        raise
    if (DEMO / "facades").is_dir() and (DEMO / "model").is_dir():
        fill()
    else:
        say(f"no images in {DEMO}/ yet; run scripts/demo, then scripts/cluster fill")
    env()
    say(f'{cluster.url} is up; in your shell: eval "$(scripts/cluster env)"')


@app.command()
def env() -> None:
    """Print the variables with which a shell uses this cluster."""
    for name, value in LocalCluster.read().exports().items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def status() -> None:
    """Show the processes of the cluster."""
    cluster = LocalCluster.read()
    print(f"dashboard  {cluster.url}  {'answers' if answers(cluster.url) else 'does not answer'}")
    for process in cluster.processes:
        print(f"{process.name:9}  pid {process.pid}  {'up' if process.alive else 'gone'}")


@app.command()
def kill(node: Annotated[int, typer.Argument(help="1 for node-1.")]) -> None:
    """Kill a node, as if its machine were switched off."""
    cluster = LocalCluster.read()
    if node not in cluster.nodes:
        raise InputError(f"no node {node}; nodes: {', '.join(map(str, cluster.nodes)) or 'none'}")
    process = cluster.nodes[node]
    process.kill()
    cluster.processes.remove(process)
    cluster.write()
    say(f"node-{node} is gone")


@app.command()
def add() -> None:
    """Add a node."""
    cluster = LocalCluster.read()
    cluster.forget_lost()
    number = cluster.start_node()
    cluster.wait_until_ready()
    say(f"node-{number} has joined")


@app.command()
def fill() -> None:
    """Copy the demo's photographs, labels and model into the S3 server, and write a job."""
    cluster = LocalCluster.read()
    if not (DEMO / "facades").is_dir():
        raise InputError(f"{DEMO}/facades: does not exist; run scripts/demo first")
    for name in list(os.environ):
        if name.startswith("AWS_"):
            del os.environ[name]
    os.environ.update(cluster.exports())
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
        f"{len(photographs)} photographs, {COPIES} times each, in {BUCKET}/facades.parquet; a job"
        f" for them: {FOLDER}/segment.yaml"
    )


@app.command()
def down() -> None:
    """Stop all processes that `up` and `add` have started."""
    cluster = LocalCluster.read()
    for process in reversed(cluster.processes):
        process.end()
    shutil.rmtree(cluster.temp, ignore_errors=True)
    (FOLDER / "state.json").unlink()
    (FOLDER / "token").unlink(missing_ok=True)
    say("the cluster is down")


def _require_free(port: int) -> None:
    """Raises :class:`~segbatch.errors.InputError` if another program listens at ``port``."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} is taken, perhaps by another Ray; choose one with --dashboard-port"
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
