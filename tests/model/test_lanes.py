"""Batches side by side on the CPU: their results, and the threads that they run in."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from segbatch.config.job import Predict, Tile
from segbatch.errors import JobFailed
from segbatch.model.device import Lanes
from segbatch.model.predict import Model
from tests.model.conftest import CLASSES, config_of

# What the first two lanes of a process do at the same moment, in three processes.
FIRST_USE = """
import faulthandler, os, sys, threading
from segbatch.model.graph import import_openvino

def lanes():
    faulthandler.dump_traceback_later(10, exit=True)  # a thread that hangs keeps Python's lock
    openvino = import_openvino()
    sys.setswitchinterval(1e-6)
    together = threading.Barrier(2)

    def use():
        together.wait()
        openvino.Type.f32.to_dtype()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)

processes = [os.fork() or lanes() for _ in range(3)]
print([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes])
"""


@pytest.fixture(params=[1, 2, 3, 17])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_items_come_in_their_order_and_lanes_share_out_the_threads(threads: int) -> None:
    lanes = Lanes()
    names: set[str] = set()

    def slow_first(item: int) -> tuple[int, int, bool]:
        time.sleep(0.05 if item % lanes.number == 0 else 0.01)
        names.add(threading.current_thread().name)
        return item, torch.get_num_threads(), torch.is_inference_mode_enabled()

    each = 2 if threads == 17 else 1
    results = list(lanes.map(slow_first, iter(range(20))))
    assert results == [(item, (item, each, True)) for item in range(20)]
    assert len(names) == min(threads, 8)
    assert torch.get_num_threads() == threads


def test_one_item_alone_has_all_threads(threads: int) -> None:
    lanes = Lanes()
    list(lanes.map(str, range(5)))
    here = threading.current_thread()

    def where(_: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), torch.get_num_threads()

    assert list(lanes.map(where, [0])) == [(0, (here, threads))]
    elsewhere: list[int] = []  # also in a thread that was not there when the lanes were made
    thread = threading.Thread(
        target=lambda: elsewhere.extend(number for _, (_, number) in lanes.map(where, [0]))
    )
    thread.start()
    thread.join()
    assert elsewhere == [threads]
    assert list(lanes.map(where, [])) == []


def test_only_a_few_are_begun_before_they_are_asked_for() -> None:
    torch.set_num_threads(2)
    lanes = Lanes()
    torch.set_num_threads(1)
    taken: list[int] = []
    given = lanes.map(str, (taken.append(item) or item for item in range(100)))
    next(given)
    assert len(taken) <= 2 * lanes.number


@pytest.mark.parametrize(
    "options", [{}, {"flip": True, "scales": [1.0, 0.5]}, {"tile": Tile(size=64, overlap=16)}]
)
def test_label_maps_do_not_depend_on_the_number_of_lanes(networks, photo, options) -> None:
    network = networks["deeplabv3plus"]
    config = config_of(network, "deeplabv3plus")
    images = [photo(90 + seed % 3, 130, seed=seed) for seed in range(7)]
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        model = Model(network, config, "cpu", Predict(**options))
        found.append(model.predict_batch(images, [None, (40, 60), *[None] * 5]))
        torch.set_num_threads(1)
    for one, three in zip(*found, strict=True):
        assert one.mask.shape == three.mask.shape
        assert np.mean(one.mask != three.mask) < 5e-4
        assert one.pixels.sum() == three.pixels.sum() == one.mask.size
        assert one.uncertainty == pytest.approx(three.uncertainty, abs=1e-4)


def test_large_images_go_one_by_one_and_small_ones_together(networks, photo) -> None:
    network = networks["deeplabv3plus"]
    model = Model(network, config_of(network, "deeplabv3plus"), "cpu", Predict(batch_size=4))
    model.predict_batch([photo(64, 64)] * 8, [None] * 8)
    assert model.num_batches == 2
    model.predict_batch([photo(320, 520)] * 2, [None] * 2)
    assert model.num_batches == 4


def test_what_goes_wrong_in_a_lane_is_raised(networks, photo) -> None:
    class Failing(torch.nn.Module):
        align_corners = False
        output_stride = 8

        def coarse(self, images: torch.Tensor) -> torch.Tensor:
            if images.mean() > 0:
                raise torch.OutOfMemoryError
            return torch.zeros(len(images), len(CLASSES), 8, 8)

    torch.set_num_threads(2)
    model = Model(Failing(), config_of(networks["deeplabv3plus"], "deeplabv3plus"), "cpu")
    torch.set_num_threads(1)
    black, white = np.zeros((512, 512, 3), np.uint8), np.full((512, 512, 3), 255, np.uint8)
    with pytest.raises(JobFailed, match="one image of 512×512"):
        model.predict_batch([black, black, white, black], [None] * 4)
    assert model.predict_batch([black] * 4, [None] * 4)[3].coverage[CLASSES.names[0]] == 1


def test_two_lanes_may_use_openvino_for_the_first_time_at_once() -> None:
    """Without the lock of ``import_openvino`` two thirds of such processes hang."""
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[0, 0, 0]\n"
