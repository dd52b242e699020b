"""Prometheus metrics of a run, exported through Ray.

Ray adds the prefix ``ray_``. The driver counts ``segbatch_`` metrics from the accounts of all
files; queue depths and device use are Ray's own metrics (``ray_data_…``, ``ray_node_…``).
``docs/clusters/grafana.json`` shows both.
"""

from __future__ import annotations

from urllib.parse import quote_from_bytes

from ray.util.metrics import Counter, Histogram

from segbatch.results.schema import OK
from segbatch.results.write import Account

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


def ascii_tag(text: str) -> str:
    """``text`` as a metric tag: Ray takes ASCII only, so others are percent-encoded as in a URI."""
    return "".join(
        c if c.isascii() else quote_from_bytes(c.encode("utf-8", "surrogateescape")) for c in text
    )


class Metrics:
    """The metrics of one run, counted from the accounts of its files."""

    def __init__(self, run: str) -> None:
        self.run = {"run": ascii_tag(run)}
        self._images = Counter(
            "segbatch_images_total",
            "Images with a row; kind is ok or the error.",
            ("run", "status", "kind"),
        )
        self._stage_seconds = Counter(
            "segbatch_stage_seconds_total",
            "Wall seconds of each stage; wait: a worker had no images.",
            ("run", "stage"),
        )
        self._image_seconds = Histogram(
            "segbatch_image_seconds",
            "Wall seconds of a stage per image: the mean of its file.",
            SECONDS,
            ("run", "stage"),
        )
        self._batch_size = Histogram(
            "segbatch_batch_size",
            "Images per batch of the network: the mean of a file.",
            BATCH_SIZES,
            ("run",),
        )
        self._read = Counter("segbatch_read_bytes_total", "Bytes of images read.", ("run",))
        self._written = Counter("segbatch_written_bytes_total", "Bytes of files.", ("run",))

    def add(self, account: Account) -> None:
        """Count an account. Images that are left to a later pass are counted then."""
        if account.file is not None:
            status = "ok" if account.kind == OK else "failed"
            tags = self.run | {"status": status, "kind": account.kind}
            self._images.inc(len(account.image_ids), tags)
            self._written.inc(account.file.size, self.run)
        rows = account.counted.get("rows", 0)  # of the task, of all kinds
        for stage, seconds in account.seconds.items():
            tags = self.run | {"stage": stage}
            self._count(self._stage_seconds, seconds, tags)
            if rows:
                self._image_seconds.observe(seconds / rows, tags)
        self._count(self._read, account.counted.get("read_bytes", 0), self.run)
        if batches := account.counted.get("batches"):
            self._batch_size.observe(rows / batches, self.run)

    @staticmethod
    def _count(counter: Counter, value: float, tags: dict[str, str]) -> None:
        if value > 0:  # Ray refuses to add 0
            counter.inc(value, tags)
