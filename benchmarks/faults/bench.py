"""The job that is broken over and over: a few hundred small images on S3, behind a proxy."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import segbatch
from segbatch import storage
from segbatch.errors import Incomplete
from tests.collection import jpeg
from tests.proxy import CONTROL, REQUESTS

MAX_STARTS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table. ``extra_s`` is against an undisturbed run of the same session."""

    part: str
    fault: str
    how_often: str
    images: int
    lost: int
    twice: int
    starts: int
    extra_s: float
    requests_per_image: float


class Bench:
    """``proxy`` is the URL that the AWS_* variables name; ``name`` says which server is behind."""

    def __init__(self, name: str, proxy: str, model: str, num_images: int) -> None:
        self.name, self.proxy, self.model, self.num_images = name, proxy, model, num_images
        self.root = f"s3://bench-reliability-{int(time.time())}"
        self.numbers = itertools.count()
        storage.filesystem(self.root)[0].mkdir(self.root.removeprefix("s3://"))
        for number in range(num_images):
            storage.write_bytes(f"{self.root}/images/{number:04d}.jpg", jpeg(number, 192, 256))
        self.undisturbed_s = 0.0
        self.row("", "none", "", [])  # what is done once, such as starting workers, is not counted
        self.undisturbed = self.row("", "none", "", [])
        self.undisturbed_s = self.undisturbed.extra_s

    def row(self, part: str, fault: str, how_often: str, faults: list[dict[str, Any]]) -> Row:
        """Run the job through ``faults``, again and again while it says so; audit what came out."""
        job = {
            "kind": "segment",
            "images": f"{self.root}/images/",
            "model": self.model,
            "output": f"{self.root}/runs/{next(self.numbers)}",
            "limits": {"timeout_s": 5, "max_failed_fraction": 1.0},
            "rows_per_file": 32,
        }
        self._set(faults)
        start = time.perf_counter()
        for starts in itertools.count(1):
            try:
                run = segbatch.segment(job)
            except Incomplete as error:
                print(f"{fault} {how_often}: start {starts}: {error}", flush=True)
                if starts == MAX_STARTS:
                    raise
                continue
            break
        seconds = time.perf_counter() - start
        with urllib.request.urlopen(self.proxy + REQUESTS) as answer:
            counts = [num for method, path, num in json.load(answer) if path.endswith(".jpg")]
        self._set([])
        audit = run.audit(deep=True)
        return Row(
            part,
            fault,
            how_often,
            self.num_images,
            self.num_images - run.info["counts"]["ok"],
            audit.twice,
            starts,
            round(seconds - self.undisturbed_s, 1),
            round(sum(counts) / self.num_images, 2),
        )

    def _set(self, faults: list[dict[str, Any]]) -> None:
        body = json.dumps(faults).encode()
        urllib.request.urlopen(
            urllib.request.Request(self.proxy + CONTROL, body, method="PUT")
        ).close()
