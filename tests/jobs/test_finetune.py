"""Fine-tuning end to end: real workers on a real Ray cluster, with rendered facades."""

import json
import os
import signal
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import segbatch
from segbatch import storage
from segbatch.config.job import FinetuneJob, load_kind
from segbatch.demo.facades.facades import render_facade
from segbatch.errors import Fenced, InputError, JobFailed, RunError, SourceError
from segbatch.jobs.epochs import check_lease
from segbatch.jobs.finetune import (
    check_batch_norm,
    finetune,
    initial_sha256,
    make_training_plan,
    refuse_empty_classes,
)
from segbatch.jobs.trainstate import TrainState
from segbatch.labels.dataset import Dataset, write_shard
from segbatch.masks.classes import Classes
from segbatch.model.config import ModelConfig
from segbatch.results.lease import Lease, read_lease
from segbatch.training.journal import read_journal
from tests.conftest import S3
from tests.drivers import driver, exit_code, wait_until, workers_named
from tests.labelled import labelled_dataset
from tests.nodes import another_node

NETWORK = {
    "arch": "deeplabv3plus",
    "backbone": "tu-test_resnet",
    "output_stride": 8,
    "backbone_weights": None,
}


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """90 facades to train on and 11 to measure with: no multiple of anything."""
    uri = str(tmp_path_factory.mktemp("labels") / "facades")
    return labelled_dataset(uri, train=90, val=11, long_side=160)


def training(dataset: Dataset, output: str, *, workers: Any = 1, **train: Any) -> dict[str, Any]:
    """A fine-tune job of a few seconds."""
    recipe = {
        "epochs": 3,
        "batch_size": 8,
        "long_side": 160,
        "crop": 96,
        "augment": {"scale_range": [0.8, 1.25]},
    }
    return {
        "kind": "finetune",
        "dataset": dataset.uri,
        "model": NETWORK,
        "output": output,
        "train": recipe | train,
        "resources": {"workers": workers},
        "track": [],
    }


def weights(output: str) -> bytes:
    return storage.read_bytes(storage.join(output, "model.safetensors"))


def run_json(output: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(storage.read_bytes(storage.join(output, "run.json")))
    return info


def journal(output: str) -> list[dict[str, Any]]:
    return read_journal(storage.join(output, "training"))


def steps_done(output: str) -> list[int]:
    return [line["step"] for line in journal(output) if line["kind"] == "step"]


def training_workers(s3: S3) -> list[int]:
    """Process ids of the workers that train."""
    return workers_named("RayTrainWorker", s3.url)


# ------------------------------------------------------------------------------------ what it does


@pytest.fixture(scope="session")
def trained(ray_address: str, labels: Dataset, s3: S3) -> str:
    """A model that two workers trained into a bucket. Tests only read it."""
    output = s3.uri("model")
    work = training(labels, output, workers=2, epochs=12, optimizer={"lr": 0.02})
    finetune(work | {"track": ["tensorboard"]})
    return output


def test_two_workers_learn_what_a_facade_is(trained: str) -> None:
    metrics = run_json(trained)["metrics"]
    assert metrics["miou"] > 0.4
    assert metrics["iou"]["sky"] > 0.6


def test_a_model_says_what_it_is_and_predicts_as_it_was_measured(
    trained: str, labels: Dataset
) -> None:
    from segbatch.labels.samples import Sample
    from segbatch.training.examples import measure

    model = segbatch.load_model(trained)
    assert model.long_side == 160
    assert model.classes == labels.classes
    samples = (
        Sample(row["image_id"], row["uri"], row["image"]["bytes"], row["mask"]["bytes"])
        for table in labels.tables("val")
        for row in table.to_pylist()
    )
    confusion = measure(model, samples)
    # bf16, where the CPU has it, rounds an image otherwise among other images.
    tolerance = 1e-4 if model.precision == "fp32" else 1e-3
    assert confusion.miou() == pytest.approx(model.config.metrics["miou"], abs=tolerance)
    card = storage.read_bytes(storage.join(trained, "README.md")).decode()
    assert labels.fingerprint in card
    assert "head_lr_factor" in card


def test_a_training_leaves_its_curves_its_journal_and_its_events(trained: str) -> None:
    lines = journal(trained)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == list(range(1, 13))
    assert steps_done(trained) == list(range(1, 136))  # 12 × 90 images in steps of 8
    files = [file.uri for file in storage.list_files(f"{trained}/training")]
    assert sum("events.out.tfevents" in file for file in files) == 1
    assert sum(file.endswith("state.pt") for file in files) <= 3  # the best two, and the last
    picture = storage.read_bytes(f"{trained}/training/curves.png")
    assert picture.startswith(b"\x89PNG")
    assert run_json(trained)["metrics"]["miou"] == max(line["miou"] for line in epochs)


def test_the_segment_job_takes_the_model_as_it_is(
    trained: str, ray_address: str, tmp_path: Path
) -> None:
    scene = render_facade(1000, 320)
    (tmp_path / "images").mkdir()
    Image.fromarray(scene.image).save(tmp_path / "images" / "one.jpg")
    run = segbatch.segment(
        {
            "kind": "segment",
            "images": f"{tmp_path}/images/",
            "model": trained,
            "output": str(tmp_path / "run"),
        }
    )
    mask = run.mask(0)
    assert mask is not None
    assert (mask == scene.label_map).mean() > 0.5


def test_a_finished_training_is_left_as_it_is(
    trained: str, labels: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = training(labels, trained, workers=2, epochs=12, optimizer={"lr": 0.02})
    before = weights(trained)
    assert finetune(work)["status"] == "complete"
    assert weights(trained) == before
    with pytest.raises(RunError, match=r"train\.epochs was 12 and is 13 now.*choose a new output"):
        finetune(training(labels, trained, workers=2, epochs=13, optimizer={"lr": 0.02}))


# ------------------------------------------------------------------------------- what goes wrong


@pytest.mark.long
def test_a_training_that_is_stopped_and_killed_in_every_way_ends_as_an_unbroken_one(
    ray_address: str, s3: S3, labels: Dataset, tmp_path: Path
) -> None:
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    finetune(training(labels, whole))

    work = training(labels, broken)
    with driver(work, tmp_path, ray_address) as process:
        wait_until(lambda: len(steps_done(broken)) > 0, process)  # the first epoch is saved
        for pid in training_workers(s3):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(steps_done(broken)) > 13, process)  # so is the second
        process.kill()
        assert exit_code(process) == -signal.SIGKILL
    wait_until(lambda: not training_workers(s3))
    with driver(work, tmp_path, ray_address) as process:
        wait_until(lambda: training_workers(s3), process)
        os.kill(process.pid or 0, signal.SIGTERM)
        assert exit_code(process) == 128 + signal.SIGTERM, (tmp_path / "stderr.txt").read_text()
    assert run_json(broken)["status"] == "interrupted"
    wait_until(lambda: not training_workers(s3))
    assert finetune(work)["status"] == "complete"
    assert weights(broken) == weights(whole)
    starts = run_json(broken)["starts"]
    assert len(starts) == 3, "each start is noted, however it ended"
    assert all(start["seconds"] > 1 for start in starts)
    timeless = [
        [{k: v for k, v in line.items() if "seconds" not in k} for line in journal(output)]
        for output in (whole, broken)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.long
def test_a_driver_whose_training_another_one_has_taken_over_writes_nothing_more(
    ray_address: str, s3: S3, labels: Dataset, tmp_path: Path
) -> None:
    output = str(tmp_path / "model")
    with driver(training(labels, output, epochs=60), tmp_path, ray_address) as process:
        wait_until(lambda: len(steps_done(output)) > 0, process)
        lease = storage.join(output, "lease.json")
        storage.write_bytes(lease, json.dumps({"driver": "another", "beat": 1}).encode())
        assert exit_code(process) == 3
    assert "taken over by" in (tmp_path / "stderr.txt").read_text()
    assert run_json(output)["status"] == "running", "as the other driver left it"
    wait_until(lambda: not training_workers(s3))
    assert read_lease(output) == {"driver": "another", "beat": 1}


def test_a_worker_ends_and_a_driver_writes_nothing_without_the_lease(tmp_path: Path) -> None:
    ours = Lease(str(tmp_path), print)
    plan = namedtuple("Plan", "worker_lease")(ours.worker_lease)
    state = TrainState(str(tmp_path), {"starts": []})
    state.worker_lease = ours.worker_lease
    with ours:
        check_lease(plan)
        state.write("running")
        storage.write_bytes(f"{tmp_path}/lease.json", b'{"driver": "another"}')
        with pytest.raises(Fenced, match="taken over"):
            check_lease(plan)
        with pytest.raises(Fenced, match="taken over"):
            state.write("complete")
        assert run_json(str(tmp_path))["status"] == "running"
        storage.delete([f"{tmp_path}/lease.json"])
        with pytest.raises(Fenced, match="was given up"):
            check_lease(plan)


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_with_what_to_change(
    ray_address: str, labels: Dataset, tmp_path: Path
) -> None:
    output = str(tmp_path / "model")
    work = training(labels, output, optimizer={"lr": 1e12})
    with pytest.raises(JobFailed, match=r"the loss is (nan|inf) at step \d+: lower train"):
        finetune(work)
    assert run_json(output)["status"] == "failed"


@pytest.mark.long
def test_training_goes_on_from_a_model_and_ends_when_nothing_gets_better(
    trained: str, ray_address: str, labels: Dataset, tmp_path: Path
) -> None:
    output = str(tmp_path / "model")
    work = training(labels, output, epochs=9, optimizer={"lr": 1e-12}, early_stopping=1)
    finetune(work | {"model": {"from": trained}})
    assert journal(output)[0]["loss"] < journal(trained)[0]["loss"]
    epochs = [line for line in journal(output) if line["kind"] == "epoch"]
    assert len(epochs) < 9


def test_a_training_that_an_earlier_version_began_keeps_its_normalisation(
    labels: Dataset, tmp_path: Path
) -> None:
    weights = str(tmp_path / "weights.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    output = str(tmp_path / "model")
    work = training(labels, output) | {"model": NETWORK | {"backbone_weights": weights}}
    job = load_kind(work, FinetuneJob)
    lease = Lease(output, print).worker_lease

    def config() -> ModelConfig:
        state = TrainState.open(output, job, labels, initial_sha256(job))
        state.write("interrupted")
        return make_training_plan(job, labels, state, lease).config

    assert [config().mean for _ in range(2)] == [(0.5, 0.5, 0.5)] * 2  # fresh, and resumed
    info = run_json(output)
    del info["normalisation"]  # as earlier versions wrote it
    storage.write_bytes(storage.join(output, "run.json"), json.dumps(info).encode())
    old = config()
    assert (old.mean, old.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_classes_without_pixels_are_not_trained_on_by_accident(labels: Dataset) -> None:
    work = training(labels, "out")
    strict = load_kind(work, FinetuneJob)
    allowing = load_kind(work | {"limits": {"allow_empty_classes": True}}, FinetuneJob)
    classes = labels.classes.names
    void = replace(labels, pixels={"train": {255: 9}})
    alone = replace(labels, pixels={"train": {0: 9, 255: 9}})
    lacking = replace(labels, pixels={"train": {c.id: 9 for c in labels.classes[1:]}})
    for work in (strict, allowing):
        refuse_empty_classes(work, labels)  # counts the masks, as the dataset has no counts
        with pytest.raises(SourceError, match="every pixel of train is void"):
            refuse_empty_classes(work, void)
        with pytest.raises(SourceError, match=f"train has pixels of {classes[0]} alone: nothing"):
            refuse_empty_classes(work, alone)
    with pytest.raises(SourceError, match=f"train has no pixel of {classes[0]}: import labels"):
        refuse_empty_classes(strict, lacking)
    refuse_empty_classes(allowing, lacking)


def test_what_cannot_be_trained_is_said_before_a_worker_starts(
    ray_address: str, labels: Dataset, tmp_path: Path
) -> None:
    output = str(tmp_path / "model")
    with pytest.raises(InputError, match="batch norm has no variance of one: make it 4"):
        finetune(training(labels, output, workers=2, batch_size=2))
    with pytest.raises(InputError, match="2 weights for 6 classes"):
        finetune(training(labels, output, loss={"class_weights": [1.0, 2.0]}))
    with pytest.raises(SourceError, match="labels import"):
        finetune(training(Dataset(str(tmp_path / "none"), labels.classes), output))
    work = training(labels, output)
    with pytest.raises(InputError, match=r"workers of 3 CPUs"):
        finetune(work | {"resources": {"workers": 2, "cpus_per_worker": 3}})
    assert not (tmp_path / "model" / "run.json").exists()  # the output is still free


@pytest.mark.parametrize(
    ("workers", "device", "allowed"),
    [
        (2, "cpu", False),
        (1, "cuda", False),
        (2, "cuda", True),  # norms are synchronised
        ([1, 2], "cuda", False),  # the one that is left has one image
        ([2, 3], "cuda", False),  # two cannot do three parts in step
        ([2, 4], "cuda", False),  # nor can three do four
    ],
)
def test_batch_norm_never_sees_a_single_image(workers: Any, device: str, allowed: bool) -> None:
    high = workers if isinstance(workers, int) else workers[1]
    dataset = Dataset("labels", Classes(["wall", "window"]))
    work = training(dataset, "model", workers=workers, batch_size=high)
    with nullcontext() if allowed else pytest.raises(InputError, match="no variance of one"):
        check_batch_norm(load_kind(work, FinetuneJob), device)
    frozen = training(dataset, "model", workers=workers, batch_size=high, freeze="batchnorm")
    check_batch_norm(load_kind(frozen, FinetuneJob), device)


@pytest.mark.long
def test_a_damaged_image_is_named(ray_address: str, labels: Dataset, tmp_path: Path) -> None:
    copy = labelled_dataset(str(tmp_path / "labels"), train=8, val=2, long_side=96)
    shard = copy.shards_of("train")[0]
    rows = copy.read_shard(shard).to_pylist()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:200]
    bad = write_shard(copy.uri, "train", rows)
    Dataset(copy.uri, copy.classes, [bad, *copy.shards_of("val")]).publish()
    work = training(copy, str(tmp_path / "model"), batch_size=4, crop=64)
    with pytest.raises(SourceError, match=r"image 1 of the dataset, file:///facades/1\.jpg"):
        finetune(work | {"limits": {"max_failures": 0}})


# ------------------------------------------------------------------------------ more than one node


@pytest.mark.long
def test_a_training_whose_node_is_lost_goes_on_when_there_is_another(
    ray_address: str, s3: S3, labels: Dataset, tmp_path: Path
) -> None:
    output = str(tmp_path / "model")
    work = training(labels, output, workers=2)
    work["resources"]["cpus_per_worker"] = 3  # one on each node
    with (
        another_node(ray_address, num_cpus=3) as node,
        driver(work, tmp_path, ray_address) as process,
    ):
        wait_until(lambda: len(steps_done(output)) > 0, process)
        assert len(training_workers(s3)) == 2
        os.kill(node, signal.SIGKILL)
        with another_node(ray_address, num_cpus=3):
            assert exit_code(process, 180) == 0, (tmp_path / "stderr.txt").read_text()
    assert steps_done(output) == list(range(1, 35))  # 3 × 90 images in steps of 8
    assert run_json(output)["status"] == "complete"
