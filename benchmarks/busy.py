"""How busy a GPU is while a model predicts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from segbatch.model.predict import Model


def busy_share(model: Model, images: list[Any]) -> float:
    """Share of the time of predicting ``images`` in which the GPU ran a kernel, on any stream.

    Copies do not count. Measured with ``torch.profiler``, which slows the host a little.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        model.predict_batch(images, [None] * len(images))
        taken = time.perf_counter() - start  # results are there, so nothing runs any more
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
    ]
    return covered(kernels) / 1e6 / taken


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
