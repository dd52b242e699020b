import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from segbatch import storage
from segbatch.demo.s3server import s3_server
from segbatch.jobs.runtime.sharing import FEW_CORES
from segbatch.run import Run
from tests.collection import broken, various
from tests.proxy import BROKEN, CONTROL, REQUESTS, proxy

# One Ray serves all tests, and drivers in processes of their own: without a token they find it.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_metrics_report_interval_ms": "1000",
    # Graphs are kept here, and not in the home folder of whoever runs the tests.
    "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="segbatch-tests-"),
    **FEW_CORES,
}

# Tests send SIGINT to what they start, and a shell has commands in the background ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
LONG_S = 3600

# `scripts/test unit` leaves out tests that use one of these fixtures, and those of whole commands.
SLOW_FIXTURES = {"ray_context", "s3"}
SLOW_FOLDERS = {"cli", "cluster", "demo", "docs", "jobs", "released", "serving"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need neither Ray nor a server nor a process of their own as ``unit``.

    Those that share Ray are marked as ``ray``. Long tests may take an hour.
    """
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(LONG_S))
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        fixtures = set(getattr(item, "fixturenames", ()))
        if folder not in SLOW_FOLDERS and not SLOW_FIXTURES & fixtures:
            item.add_marker("unit")
        if "ray_context" in fixtures:
            item.add_marker("ray")


class S3:
    """An S3 server for tests; the AWS_* variables point at it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = boto3.client("s3")
        self.numbers = itertools.count(1)

    def uri(self, name: str) -> str:
        """A prefix called ``name`` in a bucket of its own, which is empty."""
        bucket = f"bucket-{next(self.numbers)}"
        self.client.create_bucket(Bucket=bucket)
        return f"s3://{bucket}/{name}"

    def put(self, uri: str, data: bytes) -> None:
        root, key = storage.split_bucket(uri)
        self.client.put_object(Bucket=root.removeprefix("s3://"), Key=key, Body=data)

    def break_down(self, *faults: dict[str, Any]) -> None:
        """Break requests from now on, as :mod:`tests.proxy` says; without any, heal."""
        request = urllib.request.Request(
            self.url + CONTROL, json.dumps(faults).encode(), method="PUT"
        )
        urllib.request.urlopen(request).close()

    def requests(self, method: str, part: str) -> dict[str, int]:
        """How many requests of each path with ``part`` in it came since the last break-down."""
        with urllib.request.urlopen(self.url + REQUESTS) as answer:
            counts = json.load(answer)
        return {path: num for asked, path, num in counts if asked == method and part in path}

    def broken(self) -> int:
        """How many requests were broken since the last break-down."""
        with urllib.request.urlopen(self.url + BROKEN) as answer:
            number: int = json.load(answer)
            return number


@pytest.fixture(scope="module")
def fp32() -> Iterator[None]:
    """``precision: auto`` is fp32 in the tests' own process, on every CPU.

    Where a CPU computes bf16 in hardware it would be bf16, and references compute in fp32. Commands
    in processes of their own need ``predict.precision: fp32`` as well.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with (
        s3_server() as variables,
        proxy(variables["AWS_ENDPOINT_URL"]) as url,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.delenv("AWS_PROFILE", raising=False)
        for name, value in (variables | {"AWS_ENDPOINT_URL": url}).items():
            environment.setenv(name, value)
        yield S3(url)


@pytest.fixture(scope="session")
def ray_context(s3: S3) -> Iterator[Any]:
    """A Ray of four CPUs with its dashboard, that this process is connected to.

    Other ones may run beside it: none of its ports is a fixed one.
    """
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))  # of the workers: tests.poison is here
        programs = Path(sys.executable).parent  # of submitted jobs, which run `python`
        environment.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "include_dashboard": True,
                "dashboard_port": None,
                "dashboard_agent_listen_port": 0,
                "object_store_memory": 500 << 20,
            },
        )
    yield ray.init(
        address=cluster.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": "tests.poison.install"},
    )
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_address(ray_context: Any) -> str:
    """Where another process finds that Ray."""
    address: str = ray_context.address_info["gcs_address"]
    return address


@pytest.fixture(scope="session")
def jobs_server(ray_context: Any) -> str:
    """Where jobs are submitted to that Ray."""
    return f"http://{ray_context.dashboard_url}"


@pytest.fixture(scope="session")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small bundle of five classes, all of which win pixels of the tests' pictures."""
    from segbatch.model.bundle import save_bundle
    from segbatch.model.config import ModelConfig
    from tests.model.conftest import BACKBONES, CLASSES, random_network

    network = random_network("deeplabv3plus")
    uri = str(tmp_path_factory.mktemp("models") / "small")
    backbone = BACKBONES["deeplabv3plus"]
    config = ModelConfig("deeplabv3plus", backbone, network.output_stride, CLASSES, long_side=128)
    save_bundle(uri, network, config)
    return uri


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: 14 images of all formats, and 7 files that are none but are called so."""
    folder = tmp_path_factory.mktemp("collection")
    for seed in range(14):
        extension, data = various(seed)
        (folder / f"{seed:03d}.{extension}").write_bytes(data)
    for name, data in broken().items():
        (folder / name).write_bytes(data)
    return folder


def job(images: Any, model: str, output: str, **keys: Any) -> dict[str, Any]:
    """A segment job: small files, and as many failed images as there may be, unless told."""
    limits = {"max_failed_fraction": 1.0, "max_bytes": 200_000, "max_pixels": 400_000}
    return {
        "kind": "segment",
        "images": images,
        "model": model,
        "output": output,
        "rows_per_file": 4,
        **keys,
        "limits": limits | keys.get("limits", {}),
    }


EVERYTHING: dict[str, Any] = {
    "stats": ["confidence", "components", "boxes"],
    "formulas": {"window_to_wall": "window / (window + wall)"},
}


@pytest.fixture(scope="session")
def whole_run(
    ray_address: str, model_uri: str, collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run over the collection with every statistic. To be looked at, not changed."""
    from segbatch.jobs.segment import segment

    output = str(tmp_path_factory.mktemp("runs") / "whole")
    return segment(job(f"{collection}/", model_uri, output, **EVERYTHING))
