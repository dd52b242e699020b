"""Storage that throttles, fails, hangs up, hangs, and sends what it did not announce."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.faults.bench import Bench, Row

# Of all requests: images, listings, files of the run, its log.
EVERYWHERE: dict[str, dict[str, Any]] = {
    "503 SlowDown": {"kind": "error", "status": 503, "code": "SlowDown"},
    "500 InternalError": {"kind": "error", "status": 500, "code": "InternalError"},
    "connection reset": {"kind": "reset"},
}
# Of images. A stall lasts until the client's time-out.
OF_IMAGES: dict[str, dict[str, Any]] = {
    "body reset": {"kind": "reset_body"},
    "body cut short": {"kind": "cut"},
    "stall": {"kind": "stall"},
    "stall in the body": {"kind": "stall_body"},
    "announced too long": {"kind": "long"},
    "announced too short": {"kind": "short"},
}
RATES = (0.01, 0.2)
BURST_S = (3, 63)  # from the start of the job


def rows(bench: Bench) -> Iterator[Row]:
    part = f"storage ({bench.name})"
    yield replace(bench.undisturbed, part=part)
    for rate in RATES:
        for name, fault in EVERYWHERE.items():
            yield bench.row(part, name, f"{rate:.0%} of all requests", [fault | {"rate": rate}])
        for name, fault in OF_IMAGES.items():
            broken = fault | {"rate": rate, "part": ".jpg", "method": "GET"}
            yield bench.row(part, name, f"{rate:.0%} of images", [broken])


def bursts(bench: Bench) -> Iterator[Row]:
    part = f"bursts ({bench.name})"
    yield replace(bench.undisturbed, part=part)
    for name in ("503 SlowDown", "connection reset"):
        burst = EVERYWHERE[name] | {"between": BURST_S}
        yield bench.row(part, name, "all, for a minute", [burst])
