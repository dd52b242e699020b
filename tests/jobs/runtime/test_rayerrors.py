"""Errors of workers, as the driver gets them from a real Ray.

Those of Ray Data's stages are in test_evaluate, those of Ray Train in test_finetune.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from segbatch.errors import Damaged, Incomplete, InputError, SegbatchError
from segbatch.jobs.runtime.rayerrors import known_error, raised_on_purpose

pytestmark = pytest.mark.usefixtures("ray_address")


def misbehave(kind: str) -> None:
    """Raise in the way that ``kind`` names, or die."""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "damaged":
        raise Damaged("s3://b/file", "it is cut")
    try:
        raise InputError("x.jpg: is no image\nand a second line")
    except InputError:
        if kind == "a fault after one that was handled":
            raise KeyError("fault") from None
        if kind == "a fault that quotes one that was handled":
            raise KeyError("fault")  # noqa: B904
        raise


class Actor:
    def __init__(self, kind: str) -> None:
        misbehave(kind)

    def run(self) -> None: ...


def error_of(running: Any) -> RayError:
    with pytest.raises(RayError) as raised:
        ray.get(running)
    return raised.value


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("wrong input", InputError("x.jpg: is no image\nand a second line")),
        ("damaged", Damaged("s3://b/file", "it is cut")),
        ("a fault after one that was handled", None),
        ("a fault that quotes one that was handled", None),
    ],
)
def test_the_error_of_a_task_is_the_one_that_it_raised_on_purpose(
    kind: str, expected: SegbatchError | None
) -> None:
    task: Any = ray.remote(num_cpus=0, max_retries=0)(misbehave)
    known = known_error(error_of(task.remote(kind)))
    assert (type(known), str(known)) == (type(expected), str(expected))


def test_a_task_whose_process_died_was_lost() -> None:
    task: Any = ray.remote(num_cpus=0, max_retries=0)(misbehave)
    error = error_of(task.remote("killed"))
    assert raised_on_purpose(error) is None
    known = known_error(error)
    assert isinstance(known, Incomplete)
    assert str(known).startswith("a worker was lost: ")
    assert str(known).endswith("; run it again")


def test_an_actor_that_does_not_start_says_why() -> None:
    actor: Any = ray.remote(num_cpus=0)(Actor).remote("damaged")
    known = known_error(error_of(actor.run.remote()))
    assert isinstance(known, Damaged)
    assert str(known) == str(Damaged("s3://b/file", "it is cut"))
