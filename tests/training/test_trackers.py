"""TensorBoard reads what was written; trackers that are not installed are named."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segbatch import storage
from segbatch.errors import InputError
from segbatch.training.journal import Journal
from segbatch.training.trackers import check_trackers
from tests.conftest import S3


def write(uri: str, first: int, last: int, loss: float) -> None:
    journal = Journal(uri, first - 1, ["tensorboard"], {"train.epochs": 4})
    for step in range(first, last + 1):
        journal.step(step=step, epoch=step / 5, loss=loss, lr=0.01)
        if step % 5 == 0:
            iou = {"wall": 0.5, "traffic light": 0.25, "nowhere": None}
            journal.epoch(step=step, epoch=step // 5, miou=step / 100, iou=iou)
    journal.close()


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by name."""
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, round(event.value, 4)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_shows_steps_epochs_and_every_class(tmp_path: Path) -> None:
    write(str(tmp_path), 1, 20, loss=0.7)
    shown = scalars(str(tmp_path / "tensorboard"))
    assert shown.keys() == {
        "train/loss", "train/lr", "train/epoch",
        "val/miou", "val/epoch", "val/iou/wall", "val/iou/traffic light",
    }  # fmt: skip
    assert shown["train/loss"] == [(step, 0.7) for step in range(1, 21)]
    # Up to the last one: nothing is still being written at the end.
    assert shown["val/miou"] == [(5, 0.05), (10, 0.1), (15, 0.15), (20, 0.2)]
    assert shown["val/iou/traffic light"] == [(5, 0.25), (10, 0.25), (15, 0.25), (20, 0.25)]


def test_tensorboard_shows_what_was_done_again_once(tmp_path: Path) -> None:
    write(str(tmp_path), 1, 15, loss=0.7)
    write(str(tmp_path), 11, 20, loss=0.5)
    shown = scalars(str(tmp_path / "tensorboard"))
    expected = [(step, 0.7) for step in range(1, 11)] + [(step, 0.5) for step in range(11, 21)]
    assert shown["train/loss"] == expected
    assert [step for step, _ in shown["val/miou"]] == [5, 10, 15, 20]


def test_events_are_on_storage_after_every_epoch(s3: S3, tmp_path: Path) -> None:
    uri = s3.uri("model/training")
    write(uri, 1, 8, loss=0.7)
    [file] = storage.list_files(f"{uri}/tensorboard")
    name = storage.name_of(file.uri)
    assert "events.out.tfevents." in name
    (tmp_path / name).write_bytes(storage.read_bytes(file.uri))
    assert [step for step, _ in scalars(str(tmp_path))["train/loss"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tool_that_is_not_installed_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trackers(["tensorboard"])
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(InputError) as error:
        check_trackers(["tensorboard", name])
    assert f"{name} is not installed: pip install 'segbatch[{name}]'" in str(error.value)
