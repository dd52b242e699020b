"""Drivers, workers and nodes that are killed, and an image that kills whoever opens it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess

import ray

from benchmarks.faults.bench import Bench, Row
from segbatch import storage
from tests import poison
from tests.collection import jpeg
from tests.drivers import workers_named
from tests.nodes import another_node

KILLS = 10
EVERY_S = 15.0  # longer than a predict actor takes to start

Damage = Callable[[BaseProcess], None]  # while the driver works; it is run again until it is done


def rows(bench: Bench) -> Iterator[Row]:
    address = ray.get_runtime_context().gcs_address
    row = partial(bench.driven, "processes", address)
    row("none", "", _nothing)  # what is done once is not counted
    undisturbed = row("none", "", _nothing)
    yield undisturbed
    row = partial(row, undisturbed_s=undisturbed.extra_s)
    killed = row("driver killed -9", "", _Killer(undisturbed.extra_s))
    yield replace(killed, how_often=f"{killed.starts - 1} times")
    for stage, name in (("fetch_stage", "fetch task"), ("PredictStage", "predict actor")):
        kill = partial(_kill_now_and_then, stage, bench.proxy)
        yield row(f"{name} killed -9", f"every {EVERY_S:.0f} s", kill)
    with another_node(address, num_cpus=2) as lost:
        yield row("node lost, another joins", "once", partial(_lose, address, lost))
    for harm, fault in ((poison.KILL, "aborts its process"), (poison.EAT, "eats all memory")):
        images = f"{bench.root}/{next(bench.numbers)}/"
        for number in range(bench.num_images):
            comment = harm if number == bench.num_images // 2 else b""
            storage.write_bytes(f"{images}{number:04d}.jpg", jpeg(number, 192, 256, comment))
        one = f"1 of {bench.num_images}"  # in this process's Ray, whose workers obey such images
        yield bench.row("processes", f"image that {fault}", one, [], images=images)


def _nothing(process: BaseProcess) -> None:
    pass


class _Killer:
    """Kills drivers some time after their start, ``KILLS`` times or until one is done before."""

    def __init__(self, seconds: float) -> None:
        moments = random.Random(1)
        self.moments = [moments.uniform(0, seconds / 2) for _ in range(KILLS)]

    def __call__(self, process: BaseProcess) -> None:
        if self.moments:
            process.join(self.moments.pop())
            process.kill()


def _kill_now_and_then(name: str, server: str, process: BaseProcess) -> None:
    while process.is_alive():
        for pid in workers_named(name, server)[:1]:
            os.kill(pid, signal.SIGKILL)
        process.join(EVERY_S)


def _lose(address: str, lost: int, process: BaseProcess) -> None:
    process.join(EVERY_S)
    os.kill(lost, signal.SIGKILL)
    with another_node(address, num_cpus=2):
        process.join()
