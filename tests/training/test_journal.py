"""The journal has one line per step and epoch, none twice, and learning curves."""

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segbatch import storage
from segbatch.training.journal import Journal, learning_curves, read_journal
from tests.conftest import S3


def write(uri: str, first: int, last: int, *, epoch_steps: int = 5) -> None:
    """Steps ``first`` to ``last``, with an epoch after every few."""
    journal = Journal(uri, first - 1, [], {})
    for step in range(first, last + 1):
        journal.step(step=step, epoch=step / epoch_steps, loss=1 / step, lr=0.01)
        if step % epoch_steps == 0:
            iou = {"wall": 0.5, "traffic light": None, "fenêtre": 0.25}
            journal.epoch(step=step, epoch=step // epoch_steps, miou=0.375, iou=iou)
    journal.close()


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "training")
    s3: S3 = request.getfixturevalue("s3")
    return s3.uri("model/training")


def test_steps_and_epochs_are_lines_of_json(uri: str) -> None:
    write(uri, 1, 10)
    text = storage.read_bytes(storage.join(uri, "metrics.jsonl")).decode()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == read_journal(uri)
    assert len(lines) == 12
    assert lines[0] == {"kind": "step", "step": 1, "epoch": 0.2, "loss": 1.0, "lr": 0.01}
    assert lines[5] == {
        "kind": "epoch",
        "step": 5,
        "epoch": 1,
        "miou": 0.375,
        "iou": {"wall": 0.5, "traffic light": None, "fenêtre": 0.25},
    }


def test_what_is_done_again_does_not_stand_there_twice(uri: str) -> None:
    write(uri, 1, 15)
    write(uri, 11, 20)  # the checkpoint was that of step 10
    lines = read_journal(uri)
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 21))
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4]


def test_steps_are_seen_once_their_epoch_is_at_its_end(uri: str) -> None:
    write(uri, 1, 8)
    assert [line["step"] for line in read_journal(uri)] == [1, 2, 3, 4, 5, 5]


def test_before_a_training_there_is_no_journal(uri: str) -> None:
    assert read_journal(uri) == []


def test_class_names_may_hold_anything(uri: str) -> None:
    name = "a\u2028b\x85\n\r\"c'"  # some of these end a line
    journal = Journal(uri, 0, [], {})
    journal.epoch(step=1, epoch=1, miou=0.5, iou={name: 0.5})
    [line] = read_journal(uri)
    assert line["iou"] == {name: 0.5}


# ----------------------------------------------------------------------------------------- curves


def lines_of(steps: int, epoch_steps: int = 10) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"kind": "step", "step": step, "loss": 1 / step})
        if step % epoch_steps == 0:
            iou = {"wall": step / steps, "nowhere": None}
            epoch = {"step": step, "epoch": step // epoch_steps, "miou": step / steps / 2}
            lines.append({"kind": "epoch", **epoch, "iou": iou})
    return lines


def pixels(picture: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_curves_are_a_picture_of_the_training() -> None:
    whole = pixels(learning_curves(lines_of(100)))
    assert whole.shape[0] > 400
    assert whole.shape[1] > 1000
    # Other scores, another picture, and on the side of the scores alone.
    lines = lines_of(100)
    lines[-1]["miou"] = 0.1
    differs = np.argwhere((whole != pixels(learning_curves(lines))).any(2))
    assert len(differs)
    assert differs[:, 1].min() > whole.shape[1] / 2


@pytest.mark.parametrize("steps", [0, 1, 3, 9, 10])
def test_a_training_of_few_steps_has_curves(steps: int) -> None:
    assert pixels(learning_curves(lines_of(steps))).size


def test_curves_of_a_long_training_do_not_take_long() -> None:
    lines = [{"kind": "step", "step": step, "loss": 1.0} for step in range(200_000)]
    began = time.perf_counter()
    learning_curves(lines)
    assert time.perf_counter() - began < 12
