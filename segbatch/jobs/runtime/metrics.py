"""Metrics: what a run's operator watches, through Ray's Prometheus endpoints.

Ray puts ``ray_`` before each name. ``segbatch_`` metrics come from the driver, which hears of every
file; the depths of queues and the use of devices are Ray's own (``ray_data_…``, ``ray_node_…``).
``docs/clusters/grafana.json`` shows both.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from segbatch.results.schema import OK
from segbatch.results.write import Account

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class Metrics:
    """Of one run, counted from the accounts of its files."""

    def __init__(self, run: str) -> None:
        self.run = {"run": run}
        self._images = Counter(
            "segbatch_images_total",
            "Images that came through; kind is ok or the error.",
            ("run", "status", "kind"),
        )
        self._stage_seconds = Counter(
            "segbatch_stage_seconds_total",
            "Wall seconds of each stage; wait: a worker had no images.",
            ("run", "stage"),
        )
        self._image_seconds = Histogram(
            "segbatch_image_seconds",
            "Wall seconds of a stage for one image: the mean of its file.",
            SECONDS,
            ("run", "stage"),
        )
        self._batch_size = Histogram(
            "segbatch_batch_size",
            "Images that went through the network together: the mean of a file.",
            BATCH_SIZES,
            ("run",),
        )
        self._read = Counter("segbatch_read_bytes_total", "Bytes of images read.", ("run",))
        self._written = Counter("segbatch_written_bytes_total", "Bytes of files.", ("run",))

    def add(self, account: Account) -> None:
        """What a write task told. Images left to a later pass count when they come again."""
        if account.file is not None:
            status = "ok" if account.kind == OK else "failed"
            tags = self.run | {"status": status, "kind": account.kind}
            self._images.inc(len(account.image_ids), tags)
            self._written.inc(account.file.size, self.run)
        rows = account.counted.get("rows", 0)  # of the task, whatever their kind
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
        if value > 0:  # Ray refuses to add nothing
            counter.inc(value, tags)
