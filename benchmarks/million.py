"""A million real images on S3, through kills, to the answer: scripts/bench million.

    scripts/bench million [--images 1000000] [--folder FOLDER] [-o RESULT.json]

A million JPEGs of 64 to 256 pixels lie in a hundred buckets of moto, the S3 server of the tests.
`segbatch run` segments them with `zoo:facades` on a Ray of two nodes. On the way its driver is
killed (-9) four times and started again by the same command, and the node that does the work is
lost once, with all its workers. Then the finished run is used: audited to the last byte, asked,
reported, browsed, compared, exported.

What is noted at every fiftieth of the images: seconds, the memory of the driver and of the workers,
and the load of the machine. FOLDER keeps the run and these notes, so that a run that is
interrupted, as by a switched-off machine, goes on from there by the same command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported; drivers find it so

import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result  # noqa: E402
from benchmarks.faults.nodes import Nodes, OneNode  # noqa: E402
from benchmarks.memory import images_done, private_mb, workers_mb  # noqa: E402
from benchmarks.programs import kill, program  # noqa: E402
from benchmarks.scale import size_of  # noqa: E402
from segbatch import open_run  # noqa: E402
from segbatch.demo.facades.facades import render_facade  # noqa: E402
from segbatch.demo.s3server import s3_variables, served  # noqa: E402

BUCKETS = 100
PICTURES = 2000  # rendered ones; each is the content of as many objects
SIDES = (64, 256)
KILLS = (0.15, 0.35, 0.6, 0.85)  # of the driver, by the share of images that have arrived
NODE_LOST = 0.5
SAMPLES = 50
TENTHS = 10
LOOK_S = 0.05  # between looks at the memory of a command
LIMIT_S = 1800.0  # of one command
PAGE = ROOT / "benchmarks/scale-million.md"
MODEL: dict[str, Any] = {"model": "zoo:facades", "predict": {"long_side": 64}}
SEGBATCH = (sys.executable, "-m", "segbatch")
WIDTH = 105


@dataclass(frozen=True)
class Sample:
    """What was seen at a fiftieth of the images; seconds since the start, memory in MB."""

    images: int
    seconds: float
    driver_mb: int
    largest_worker_mb: int
    workers_mb: int
    load: float
    start: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="of the run; a temporary one by default")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.images)
        return
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        server = [sys.executable, __file__, "--serve", "--images", str(arguments.images)]
        url = f"http://127.0.0.1:{stack.enter_context(served(*server))}"
        os.environ |= s3_variables(url)
        print(f"{arguments.images:,} images are served", flush=True)
        journal = Journal(folder)
        if journal.ended is None:
            with Nodes() as nodes:
                node = OneNode(nodes)
                while journal.ended is None:
                    run_once(folder, node, journal, arguments.images)
            journal.requests(url)
        figures = {
            **result.machine(), "images": arguments.images, **journal.facts(),
            "tenths": list(tenths(journal.samples, arguments.images)),
            "run": facts_of(folder / "run"), "used": used(folder, journal),
        }  # fmt: skip
    saved = result.save("million", figures, arguments.output)
    print(saved)
    PAGE.write_text(page(figures, saved))
    print(PAGE)


# --------------------------------------------------------------------------------- the server


def serve(num_images: int) -> None:
    """moto with ``num_images`` JPEGs, which prints its port and ends with its standard input.

    It is filled directly: a million uploads would take an hour. ``GET /-/requests`` counts.
    """
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    backend = s3_backends["123456789012"]["aws"]
    contents = list(pictures(PICTURES))
    for number in range(BUCKETS):
        backend.create_bucket(f"district-{number:02d}", "us-east-1")
    for number in range(num_images):
        name = f"{number // BUCKETS:06d}.jpg"
        bucket, content = f"district-{number % BUCKETS:02d}", contents[number % PICTURES]
        stored = backend.put_object(bucket, name, content)
        assert stored.etag  # which moto computes when it is first asked for, from its own copy
        stored._value_buffer = Content(content)  # type: ignore[assignment]
    moto = DomainDispatcherApplication(create_backend_app)
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/-/requests":
            start_response("200 OK", [])
            return [json.dumps(counts).encode()]
        answer = list(moto(environ, start_response))
        kind = "list" if "list-type" in environ.get("QUERY_STRING", "") else "object"
        with lock:
            counts[f"{environ['REQUEST_METHOD']} {kind}"] += 1
            counts["bytes"] += sum(map(len, answer))
        return answer

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


class Content:
    """What several objects share, in place of moto's copy of each: 5 GB for a million."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def seek(self, _: int) -> None:
        pass

    def read(self) -> bytes:
        return self.content

    def close(self) -> None:
        pass


def pictures(number: int) -> Iterator[bytes]:
    """JPEGs of rendered facades, all different, of all sizes from 64 to 256 pixels."""
    sizes = random.Random(0)
    facades = [Image.fromarray(render_facade(seed, 256).image) for seed in range(100)]
    for seed in range(number):
        width, height = sizes.randint(*SIDES), sizes.randint(*SIDES)
        left, top = sizes.randint(0, 256 - width), sizes.randint(0, 256 - height)
        buffer = io.BytesIO()
        part = facades[seed % len(facades)].crop((left, top, left + width, top + height))
        part.save(buffer, "JPEG", quality=80)
        yield buffer.getvalue()


# ------------------------------------------------------------------------------------ the run


class Journal:
    """What has happened so far, in a file of JSON lines, over several sittings."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.entries: list[dict[str, Any]] = []
        if self.path.exists():
            self.entries = [json.loads(line) for line in self.path.read_text().splitlines()]

    def add(self, kind: str, **facts: Any) -> None:
        self.entries.append({"kind": kind, **facts})
        with self.path.open("a") as file:
            file.write(json.dumps(self.entries[-1]) + "\n")
        print(self.entries[-1], flush=True)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in entry.items() if key != "kind"}
            for entry in self.entries
            if entry["kind"] == kind
        ]

    @property
    def ended(self) -> dict[str, Any] | None:
        return next(iter(self.of("ended")), None)

    @property
    def samples(self) -> list[dict[str, Any]]:
        return self.of("sample")

    def requests(self, url: str) -> None:
        """Note the server's counts, which begin with this sitting."""
        with urllib.request.urlopen(f"{url}/-/requests") as answer:
            self.add("requests", **json.load(answer))

    def facts(self) -> dict[str, Any]:
        kinds = ("start", "driver killed", "node lost", "sample", "ended", "requests")
        return {kind: self.of(kind) for kind in kinds}


def run_once(folder: Path, node: OneNode, journal: Journal, num_images: int) -> None:
    """Start the driver once, and watch it until it ends or it or the node is killed."""
    start = len(journal.of("start"))
    journal.add("start", number=start, after=(journal.samples or [{"images": 0}])[-1]["images"])
    command = [*SEGBATCH, "run", str(job_file(folder))]
    environment = {**os.environ, "RAY_ADDRESS": node.address}
    with program(command, stderr=subprocess.PIPE, text=True, env=environment) as driver:
        watch = Watch(driver, node, journal, num_images, start)
        assert driver.stderr is not None
        with (folder / "driver.log").open("a") as log:
            for line in driver.stderr:
                log.write(line)
                images = images_done(line) or 0
                watch.sample(images)
                if images and watch.driver_is_due(images):
                    kill(driver)
                elif images and watch.node_is_due(images):
                    node.lose()
        code = driver.wait()
    if code == 0:
        journal.add("ended", seconds=round(watch.seconds, 1), commands=start + 1)
    elif code != -signal.SIGKILL:
        sys.exit(f"the driver ended with {code}: see {folder}/driver.log")


class Watch:
    """Samples of one start of the driver, and what is still to be killed."""

    def __init__(
        self, driver: subprocess.Popen[str], node: OneNode, journal: Journal, num_images: int,
        start: int,
    ) -> None:  # fmt: skip
        self.driver, self.node, self.journal = driver, node, journal
        self.num_images, self.start = num_images, start
        self.began = time.monotonic()
        self.before_s = max((entry.get("seconds", 0.0) for entry in journal.entries), default=0.0)

    @property
    def seconds(self) -> float:
        """Since the first start; time between sittings is not counted."""
        return self.before_s + time.monotonic() - self.began

    def sample(self, images: int) -> None:
        if images * SAMPLES // self.num_images <= self._last() * SAMPLES // self.num_images:
            return
        workers = workers_mb(self.node.raylet)
        sample = Sample(
            images=images,
            seconds=round(self.seconds, 1),
            driver_mb=private_mb(self.driver.pid),
            largest_worker_mb=max(workers, default=0),
            workers_mb=sum(workers),
            load=round(os.getloadavg()[0], 2),
            start=self.start,
        )
        self.journal.add("sample", **asdict(sample))

    def driver_is_due(self, images: int) -> bool:
        done = len(self.journal.of("driver killed"))
        if done == len(KILLS) or images < KILLS[done] * self.num_images:
            return False
        self.journal.add("driver killed", images=images, seconds=round(self.seconds, 1))
        return True

    def node_is_due(self, images: int) -> bool:
        if self.journal.of("node lost") or images < NODE_LOST * self.num_images:
            return False
        self.journal.add("node lost", images=images, seconds=round(self.seconds, 1))
        return True

    def _last(self) -> int:
        return int((self.journal.samples or [{"images": 0}])[-1]["images"])


def tenths(samples: list[dict[str, Any]], num_images: int) -> Iterator[dict[str, Any]]:
    """The pace and the memory in each tenth of the images, without what a start costs."""
    steps = [
        (earlier, later) for earlier, later in pairwise(samples)
        if earlier["start"] == later["start"]
    ]  # fmt: skip
    for number in range(TENTHS):
        inside = [step for step in steps if step[0]["images"] * TENTHS // num_images == number]
        if not inside:
            continue

        def grown(name: str, inside: Any = inside) -> float:
            return float(sum(later[name] - earlier[name] for earlier, later in inside))

        last = [later for _, later in inside]
        yield {
            "tenth": number + 1,
            "images/s": grown("images") / grown("seconds"),
            "driver MB": max(sample["driver_mb"] for sample in last),
            "largest worker MB": max(sample["largest_worker_mb"] for sample in last),
            "all workers MB": max(sample["workers_mb"] for sample in last),
            "load of the machine": sum(sample["load"] for sample in last) / len(last),
        }


def job_file(folder: Path) -> Path:
    job = {
        "kind": "segment",
        "images": [f"s3://district-{number:02d}/" for number in range(BUCKETS)],
        "output": str(folder / "run"),
        **MODEL,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


# ------------------------------------------------------------------------------- the finished run


def facts_of(run: Path) -> dict[str, Any]:
    """Files and bytes of the run, and what is in it."""
    opened = open_run(str(run))
    audit, counts = opened.audit(), opened.info.counts
    facts = {
        "rows": audit.rows, "twice": audit.twice, "ok": counts.ok, "failed": dict(counts.failed),
        "log entries": len(list((run / "rows" / "_delta_log").glob("*.json"))),
    }  # fmt: skip
    for name in ("manifest", "rows", "stats"):
        facts[f"{name} files"] = len(list((run / name).glob("*.parquet")))
        facts[f"{name} bytes"] = size_of(run / name)
    return facts


def used(folder: Path, journal: Journal) -> list[dict[str, Any]]:
    """What a user does with a run: seconds and memory of each command, as far as not noted yet."""
    run, made = str(folder / "run"), folder / "made"
    made.mkdir(exist_ok=True)
    glass = "SELECT count(*) FROM images WHERE coverage.window > 0.4"
    commands = {
        "run again": ["run", str(job_file(folder))],
        "audit": ["audit", run],
        "audit --deep": ["audit", run, "--deep"],
        "status": ["status", run],
        "query, one class": ["query", run, glass],
        "query -o csv": ["query", run, "SELECT * FROM images", "-o", str(made / "images.csv")],
        "report": ["report", run, "-o", str(made / "report.html")],
        "export --to csv": ["export", run, str(made / "csv"), "--to", "csv"],
        "export --to png --limit 1000":
            ["export", run, str(made / "masks"), "--to", "png", "--limit", "1000"],
        "diff with itself": ["diff", run, run],
    }  # fmt: skip
    noted = [row["command"] for row in journal.of("used")]
    for name, words in commands.items():
        if name not in noted:
            journal.add("used", **timed(name, words, folder))
    if not any(name.startswith("browse") for name in noted):
        for row in browsed(run):
            journal.add("used", **row)
    return journal.of("used")


def timed(name: str, words: list[str], folder: Path) -> dict[str, Any]:
    """One command to its end, or to ``LIMIT_S``."""
    began = time.perf_counter()
    with (folder / "used.log").open("a") as log:
        log.write(f"$ segbatch {' '.join(words)}\n")
        log.flush()
        peak_mb, code = 0, None
        with program([*SEGBATCH, *words], stdout=log, stderr=log) as process:
            while (code := process.poll()) is None and time.perf_counter() - began < LIMIT_S:
                peak_mb = max(peak_mb, private_mb(process.pid))
                time.sleep(LOOK_S)
    return {
        "command": name,
        "exit code": f"stopped after {LIMIT_S:.0f} s" if code is None else code,
        "seconds": round(time.perf_counter() - began, 1),
        "peak MB": peak_mb,
    }


def browsed(run: str) -> Iterator[dict[str, Any]]:
    """The requests of the browse page."""
    command = [*SEGBATCH, "browse", run]
    with program(command, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        began = time.perf_counter()
        url = page.stdout.readline().strip()
        yield {"command": "browse: its address", "seconds": round(time.perf_counter() - began, 1)}
        for path in ("run", "facets", "count", "images"):
            began = time.perf_counter()
            with urllib.request.urlopen(url + path, timeout=LIMIT_S) as answer:
                size = len(answer.read())
            seconds = round(time.perf_counter() - began, 2)
            yield {"command": f"browse: GET /{path}", "seconds": seconds, "bytes": size}
        yield {"command": "browse: memory", "peak MB": private_mb(page.pid)}


# --------------------------------------------------------------------------------------- the page


def page(figures: dict[str, Any], saved: Path) -> str:
    """benchmarks/scale-million.md."""
    run, [end] = figures["run"], figures["ended"]
    kills = ", ".join(f"{kill['images']:,}" for kill in figures["driver killed"])
    [lost] = figures["node lost"]
    requests = figures["requests"][-1]
    lists = requests.get("GET list", 0)  # none where the list was frozen before
    about = (
        f"Written by `scripts/bench million` on {figures['date']} ({figures['machine']},"
        f" {figures['cores']} shared cores, no GPU): {figures['images']:,} JPEGs of 64 to 256"
        f" pixels in {BUCKETS} buckets of moto, `{MODEL['model']}` at"
        f" {MODEL['predict']['long_side']} pixels, a Ray of two nodes. The driver was killed (-9)"
        f" when {kills} images had arrived, and the node with all its workers at"
        f" {lost['images']:,}. The same command was typed {end['commands']} times, and took"
        f" {end['seconds'] / 60:.0f} minutes in all. moto ran on the same two cores"
        f"{result.link(saved)}."
    )
    came_out = (
        f"**What came out: {run['rows']:,} rows, {figures['images'] - run['rows']:,} lost,"
        f" {run['twice']:,} twice, {sum(run['failed'].values()):,} failed.** The rows are in"
        f" {run['rows files']:,} files, {run['rows bytes'] / 1e6:,.0f} MB in all with the"
        f" {run['log entries']:,} entries of their log; the statistics take"
        f" {run['stats bytes'] / 1e6:,.0f} MB, the list of images"
        f" {run['manifest bytes'] / 1e6:,.0f} MB. In the last sitting moto answered"
        f" {requests['GET object']:,} requests for images and {lists:,} for lists."
    )
    parts = [
        "# A million images, through kills, to the answer",
        fill(about, WIDTH),
        fill(came_out, WIDTH),
        "## Pace and memory, in each tenth",
        "What a start costs is not in it. Memory is private: what processes share through Ray's\n"
        "object store is not counted.",
        result.markdown(figures["tenths"]),
        "## The finished run in use",
        result.markdown(figures["used"]),
        "`run` on the finished run counts new images for at most a minute, and moto lists slowly.",
        *([fill(figures["note"], WIDTH)] if "note" in figures else []),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
