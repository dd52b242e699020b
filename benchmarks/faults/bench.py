"""The job that is broken over and over: small images on S3, behind a proxy."""

from __future__ import annotations

import itertools
import json
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import segbatch
from segbatch import storage
from segbatch.errors import Incomplete
from segbatch.model.bundle import save_bundle
from segbatch.model.config import ModelConfig
from tests.collection import jpeg
from tests.drivers import driver
from tests.model.conftest import BACKBONES, CLASSES, random_network
from tests.proxy import BROKEN, CONTROL, REQUESTS

MAX_STARTS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table. ``extra_s`` is against an undisturbed run of the same session.

    ``broken`` requests are those that the proxy broke; ``None`` where it was to break none, and in
    results from before they were counted.
    """

    part: str
    fault: str
    how_often: str
    images: int
    lost: int
    twice: int
    starts: int
    extra_s: float
    requests_per_image: float
    broken: int | None = None


class Bench:
    """``proxy`` is the URL that the AWS_* variables name; ``name`` says which server is behind.

    Everything is in the bucket ``root``. With ``warm`` the job is run twice on Ray, for the time
    that it takes undisturbed.
    """

    def __init__(
        self, name: str, proxy: str, root: str, model: str, num_images: int, *, warm: bool = True
    ) -> None:
        self.name, self.proxy, self.root = name, proxy, root
        self.model, self.num_images = model, num_images
        self.numbers = itertools.count()
        for number in range(num_images):
            storage.write_bytes(f"{self.root}/images/{number:04d}.jpg", jpeg(number, 192, 256))
        self.undisturbed_s = 0.0
        if not warm:
            return
        self.row("", "none", "", [])  # what is done once, such as starting workers, is not counted
        self.undisturbed = self.row("", "none", "", [])
        self.undisturbed_s = self.undisturbed.extra_s

    def row(
        self,
        part: str,
        fault: str,
        how_often: str,
        faults: list[dict[str, Any]],
        *,
        images: str = "",
    ) -> Row:
        """Run the job through ``faults``, again and again while it says so; audit what came out."""
        job = self._job(images or f"{self.root}/images/")
        self.set_faults(faults)
        start = time.perf_counter()
        for starts in itertools.count(1):
            try:
                segbatch.segment(job)
            except Incomplete as error:
                print(f"{fault} {how_often}: start {starts}: {error}", flush=True)
                if starts == MAX_STARTS:
                    raise
                continue
            break
        seconds = time.perf_counter() - start - self.undisturbed_s
        broken = self._asked(BROKEN) if faults else None
        if broken == 0:
            print(f"{fault} {how_often}: no request was broken: take more --images", flush=True)
        return self._row((part, fault, how_often), job, starts, seconds, broken)

    def driven(
        self,
        part: str,
        address: str,
        fault: str,
        how_often: str,
        damage: Callable[[BaseProcess], None],
        *,
        undisturbed_s: float = 0.0,
    ) -> Row:
        """The same, in drivers of their own on the Ray at ``address``, while ``damage`` is done."""
        job = self._job(f"{self.root}/images/")
        job["resources"] = {"workers": 2, "cpus_per_worker": 1}
        self.set_faults([])
        start = time.perf_counter()
        with TemporaryDirectory() as folder:
            starts, done = 0, False
            while not done:
                starts += 1
                with driver(job, Path(folder), address) as process:
                    damage(process)
                    process.join()
                done = process.exitcode == 0
                if not done and process.exitcode != -signal.SIGKILL:
                    raise RuntimeError((Path(folder) / "stderr.txt").read_text())
        seconds = time.perf_counter() - start - undisturbed_s
        return self._row((part, fault, how_often), job, starts, seconds)

    def _job(self, images: str) -> dict[str, Any]:
        return {
            "kind": "segment",
            "images": images,
            "model": self.model,
            "output": f"{self.root}/runs/{next(self.numbers)}",
            "limits": {"timeout_s": 5, "max_failed_fraction": 1.0},
            "rows_per_file": 32,
        }

    def _row(
        self,
        what: tuple[str, str, str],
        job: dict[str, Any],
        starts: int,
        s: float,
        broken: int | None = None,
    ) -> Row:
        counts = [num for _, path, num in self._asked(REQUESTS) if path.endswith(".jpg")]
        self.set_faults([])
        run = segbatch.open_run(job["output"])
        audit = run.audit(deep=True)
        # A failed row is as good as lost here, but for the image that is a fault itself.
        done = run.info.counts.ok + run.info.counts.failed.get("crashed", 0)
        lost = self.num_images - done + len(audit.damaged)
        requests = round(sum(counts) / self.num_images, 2)
        return Row(*what, self.num_images, lost, audit.twice, starts, round(s, 1), requests, broken)

    def _asked(self, path: str) -> Any:
        with urllib.request.urlopen(self.proxy + path) as answer:
            return json.load(answer)

    def set_faults(self, faults: list[dict[str, Any]]) -> None:
        """What the proxy does from now on; its counts begin again."""
        body = json.dumps(faults).encode()
        urllib.request.urlopen(
            urllib.request.Request(self.proxy + CONTROL, body, method="PUT")
        ).close()


def small_model(folder: str) -> str:
    """A bundle whose network costs little: it is everything else that is measured."""
    network = random_network("deeplabv3plus")
    backbone = BACKBONES["deeplabv3plus"]
    config = ModelConfig("deeplabv3plus", backbone, network.output_stride, CLASSES, long_side=128)
    save_bundle(f"{folder}/model", network, config)
    return f"{folder}/model"
