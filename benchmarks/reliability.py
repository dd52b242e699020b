"""What faults cost, and that they lose nothing: scripts/bench reliability.

    scripts/bench reliability [--only storage | bursts | processes] [--endpoint NAME]
        [--images 200] [-o RESULT.json]
    scripts/bench reliability --peers [--fault FAULT] [--images 200] [-o RESULT.json]

Each part injects its faults into a real job; to add one, write a module in benchmarks/faults and a
line in PARTS. The S3 server is moto; with `--endpoint`, the one
of the AWS_* variables, called NAME in the table. The rows go to `-o` as JSON, beside those of parts
and servers that are there already, and all of them to benchmarks/reliability.md. With `--peers`,
segbatch, Ray Data and Daft with their checkpoints and a plain script that skips what exists go
through the same faults (benchmarks/faults/peers.py); the table stands in the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported; drivers find it so

import ray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.buckets import new_bucket  # noqa: E402
from benchmarks.faults import peers, processes, storage  # noqa: E402
from benchmarks.faults.bench import Bench, Row, small_model  # noqa: E402
from benchmarks.result import RESULTS  # noqa: E402
from segbatch.demo.s3server import s3_server  # noqa: E402
from tests.proxy import proxy  # noqa: E402

MEMORY_KB = 4_000_000  # for the whole of Ray; an image that eats more is killed

PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "storage": storage.rows,
    "bursts": storage.bursts,
    "processes": processes.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one part; all by default")
    parser.add_argument("--endpoint", help="what to call the AWS_* variables' server")
    parser.add_argument("--peers", action="store_true", help="the others, too, by the same faults")
    parser.add_argument("--fault", help="of the table of --peers, one of its faults alone")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="by default among the results",
    )
    arguments = parser.parse_args()
    if arguments.peers and arguments.only:
        parser.error("--only names a part of the table without --peers: leave one of them out")
    if arguments.peers and arguments.endpoint:
        parser.error("--peers uses moto: leave --endpoint out")
    if arguments.fault and not arguments.peers:
        parser.error("--fault names a fault of the table of --peers: add --peers")
    name = "reliability-peers" if arguments.peers else "reliability"
    output = arguments.output or RESULTS / f"{date.today()}-{name}.json"
    facts = result.machine()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        if not arguments.endpoint:
            os.environ |= stack.enter_context(s3_server())
        url = stack.enter_context(proxy(os.environ["AWS_ENDPOINT_URL"]))
        os.environ["AWS_ENDPOINT_URL"] = url  # of Ray's workers, too
        os.environ["PYTHONPATH"] = str(ROOT)  # of the workers: tests.poison is here
        if arguments.peers:
            compare(stack, url, arguments.images, facts, output, fault=arguments.fault)
            return
        os.environ |= {
            "RAY_memory_usage_threshold": f"{threshold():.3f}",
            "RAY_task_oom_retries": "1",
        }
        ray.init(
            "local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": "tests.poison.install"},
        )
        stack.callback(ray.shutdown)
        model = small_model(stack.enter_context(tempfile.TemporaryDirectory()))
        root = stack.enter_context(new_bucket("bench-reliability"))
        bench = Bench(arguments.endpoint or "moto", url, root, model, arguments.images)
        stack.callback(bench.set_faults, [])  # the bucket is emptied through the proxy
        for part in [arguments.only] if arguments.only else PARTS:
            for row in PARTS[part](bench):
                print(*asdict(row).values(), flush=True)
                rows.append(row)
                save(output, facts, rows)


def compare(
    stack: contextlib.ExitStack,
    url: str,
    num_images: int,
    facts: dict[str, Any],
    output: Path,
    *,
    fault: str | None,
) -> None:
    """The same faults for everybody; each program starts a Ray of its own where it needs one.

    With ``fault`` only its rows are new, and stand last among those of their program.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    root = stack.enter_context(new_bucket("bench-reliability"))
    bench = Bench("moto", url, root, small_model(str(folder)), num_images, warm=False)
    stack.callback(bench.set_faults, [])
    entries: list[peers.PeerRow] = []
    figures = facts
    if fault:
        before = json.loads(newest("reliability-peers").read_text())
        added = f"On {date.today()}, with {num_images} images: {fault}."
        note = before.get("note", "")
        figures = before | {"note": note if added in note else f"{note} {added}".strip()}
        entries = [peers.PeerRow(**row) for row in before["rows"] if row["fault"] != fault]
    names = list(peers.CONTENDERS.values())
    for entry in peers.rows(bench, folder, fault):
        print(*asdict(entry).values(), sep=" | ", flush=True)
        entries.append(entry)
        entries.sort(key=lambda row: names.index(row.peer))
        figures["rows"] = [asdict(row) for row in entries]
        result.save("reliability-peers", figures, output)
    if fault not in (None, *(row.fault for row in entries)):
        sys.exit(f"no program has the fault {fault!r}: see benchmarks/reliability.md")
    write_page(newest("reliability"), output)


def threshold() -> float:
    """The share of this machine's memory at which Ray kills: a few GB from here."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return 1 - (kb["MemAvailable"] - MEMORY_KB) / kb["MemTotal"]


def save(path: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    """Rows of parts that were not run now stay."""
    before = rows_in(path) if path.exists() else []
    new = {row.part for row in rows}
    every = [row for row in before if row.part not in new] + rows
    result.save("reliability", {**facts, "rows": [asdict(row) for row in every]}, path)
    write_page(path, newest("reliability-peers"))


def rows_in(path: Path) -> list[Row]:
    """The rows of a result; before 2026-11-30 it was a list of them."""
    found = json.loads(path.read_text())
    return [Row(**row) for row in (found if isinstance(found, list) else found["rows"])]


def shown(broken: int | None) -> str:
    """``broken`` of a row in the table, where a row without any says that it measures nothing."""
    return {None: "–", 0: "**0: nothing was measured**"}.get(broken, str(broken))


def newest(name: str) -> Path:
    """The last result of a benchmark that is kept."""
    return max(RESULTS.glob(f"*-{name}.json"))


def write_page(ours: Path, others: Path) -> None:
    """Write benchmarks/reliability.md from two results."""
    names = [field.name for field in fields(Row)]
    rows = [asdict(row) | {"broken": shown(row.broken)} for row in rows_in(ours)]
    lines = [" | ".join(str(value) for value in row.values()) for row in rows]
    table = [" | ".join(names).replace("_", " "), " | ".join("---" for _ in names), *lines]
    text = (
        f"# Reliability\n\n{ours.stem.removesuffix('-reliability')}, written by"
        f" `scripts/bench reliability`{result.link(ours)}. `extra s` is the time added compared"
        " with an undisturbed run of the same session; the rows of no fault show the total seconds"
        " of those runs. `starts`"
        " counts runs of the same job; it is above one if a run ended with exit 3. `requests per"
        " image` covers the whole job. `broken` counts the requests that the proxy broke, of images"
        " and of all else; – stands where it was to break none or did not count them.\n\n"
    )
    text += "\n".join(f"| {line} |" for line in table) + "\n"
    compared = json.loads(others.read_text())
    text += (
        "\n## The others, through the same faults\n\n"
        f"{compared['date']}, {compared['cores']} cores, by `scripts/bench reliability --peers`"
        f"{result.link(others)}. {compared.get('note', '')} {peers.ABOUT}\n\n"
        + peers.table([peers.PeerRow(**row) for row in compared["rows"]])
        + "\n"
    )
    (ROOT / "benchmarks/reliability.md").write_text(text)


if __name__ == "__main__":
    main()
