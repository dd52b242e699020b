"""Metrics: what Ray's Prometheus endpoint tells of a run, and the dashboard that shows it."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from segbatch.jobs.runtime.metrics import ascii_tag
from segbatch.jobs.segment import segment
from segbatch.run import Run
from tests.conftest import ROOT, job

NAME = re.compile(r"\bray_\w+")
NEEDS_GPU = {f"ray_{name}" for name in METRICS_GAUGES if "gpu" in name}


def endpoint() -> str:
    """What Prometheus reads of this node."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def wait_for(look: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not look() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert look()


class Watching(threading.Thread):
    """Notes every name that the endpoint shows: Ray Data's go when an execution ends."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.names: set[str] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.names |= set(NAME.findall(endpoint()))


@pytest.fixture(scope="module")
def watching(ray_address: str) -> Iterator[Watching]:
    watching = Watching()
    watching.start()
    yield watching
    watching.ended.set()
    watching.join()


@pytest.fixture(scope="module")
def run(
    watching: Watching,
    ray_address: str,
    model_uri: str,
    collection: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    output = tmp_path_factory.mktemp("metrics") / "Häuser am Döhrener Turm – 東京"
    return segment(job(f"{collection}/", model_uri, str(output)))


def test_every_image_is_counted_by_its_kind(run: Run) -> None:
    counts = run.info.counts.model_dump()
    expected = counts["failed"] | {"ok": counts["ok"]}

    def counted() -> dict[str, int]:
        tag = re.escape(ascii_tag(run.uri))
        pattern = rf'ray_segbatch_images_total{{.*kind="(\w+)".*run="{tag}".*}} ([\d.]+)'
        return {kind: int(float(value)) for kind, value in re.findall(pattern, endpoint())}

    wait_for(lambda: counted() == expected)


def test_the_dashboard_shows_only_what_there_is(run: Run, watching: Watching) -> None:
    dashboard = json.loads((ROOT / "docs/clusters/grafana.json").read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in NAME.findall(target["expr"])
    }
    assert len(shown) > 10
    shown |= set(NAME.findall((ROOT / "docs/clusters/watching.md").read_text()))
    assert shown & NEEDS_GPU, "of which this machine has none"

    def missing() -> set[str]:
        there = watching.names
        histograms = {name.removesuffix("_bucket") for name in there}
        return shown - NEEDS_GPU - there - histograms

    wait_for(lambda: not missing())
    assert not missing()


def test_a_finished_run_says_where_its_time_went(run: Run, collection: Path) -> None:
    [start] = run.info.starts
    stages = {"fetch", "decode", "wait", "predict", "encode", "write"}
    assert start.stage_s.keys() == stages
    assert all(seconds >= 0 for seconds in start.stage_s.values())
    read = {path.name: path.stat().st_size for path in collection.iterdir()}
    assert start.read_bytes == sum(read.values()) - read["too_large-bytes.png"]
    written = Path(run.uri, "rows").glob("*.parquet")
    assert start.written_bytes == sum(path.stat().st_size for path in written)
    assert 1 <= start.batches <= run.info.counts.ok
