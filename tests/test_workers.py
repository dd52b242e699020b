"""Workers: how the CPUs of a cluster are shared out, here four logical ones."""

from __future__ import annotations

import os

import pytest

from segbatch.cluster import workers
from segbatch.cluster.workers import resolve_device, share_out
from segbatch.errors import InputError
from segbatch.job import Resources

pytestmark = pytest.mark.usefixtures("ray_address")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def test_by_itself_one_worker_has_all_cores_and_two_cpus_stay_free() -> None:
    assert resolve_device(Resources()) == "cpu"
    found = share_out(Resources(), "cpu")
    assert (found.size, found.num_cpus) == ((1, 1), 2)


def test_the_cores_are_divided_among_the_workers_that_are_asked_for() -> None:
    found = share_out(Resources(workers=2), "cpu")
    assert (found.size, found.num_cpus) == ((2, 2), 1)


def test_a_range_ends_where_the_cores_do() -> None:
    found = share_out(Resources(workers=[1, 50], cpus_per_worker=1), "cpu")
    assert found.size == (1, 2)


@pytest.mark.parametrize(
    "asked", [{"workers": 3}, {"workers": 2, "cpus_per_worker": 2}, {"cpus_per_worker": 3}]
)
def test_more_than_leaves_room_for_the_other_stages_is_refused(asked: dict[str, int]) -> None:
    with pytest.raises(InputError, match="the rest read and write"):
        share_out(Resources(**asked), "cpu")


def test_a_worker_fits_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "node_cpus", lambda: [4.0, 4.0, 4.0])
    found = share_out(Resources(), "cpu")
    assert (found.size, found.num_cpus) == ((3, 3), 3), "with four it would fit on none"
    with pytest.raises(InputError, match="on one node 4"):
        share_out(Resources(workers=1, cpus_per_worker=4), "cpu")


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert workers.cores() == 2
    with pytest.raises(InputError, match="no node of the Ray cluster has a GPU"):
        resolve_device(Resources(device="cuda"))
