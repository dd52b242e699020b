"""The whole evaluate job, on a real Ray cluster and S3 storage."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from segbatch import storage
from segbatch.config.job import Predict
from segbatch.errors import Incomplete, InputError, JobFailed, JobFileError, RunError, SourceError
from segbatch.jobs.evaluate import evaluate
from segbatch.jobs.scoring import Scores, as_text, score_schema
from segbatch.jobs.segment import segment
from segbatch.labels.dataset import Dataset, write_shard
from segbatch.masks import encode_mask
from segbatch.masks.classes import IGNORE_INDEX, Classes
from segbatch.model.predict import load_model
from segbatch.training.confusion import BoundaryCounts
from tests import poison
from tests.collection import broken, jpeg, various
from tests.conftest import S3, job
from tests.drivers import cli
from tests.model.conftest import CLASSES

pytestmark = pytest.mark.usefixtures("fp32", "ray_address")

NUM_VAL = 14
ORDER = [3, 1, 4, 0, 2]  # of the dataset's classes: the model's, shuffled
LABELS = Classes([CLASSES.names[i] for i in ORDER])
FEW = 1e-4  # rounding in convolutions may change some pixels of a class

Ids = npt.NDArray[np.uint8]


def upright(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def truth_of(image: Image.Image, model: Any) -> Ids:
    """The prediction shifted by some pixels, ignored at the left, in the dataset's ids."""
    seen = np.roll(model.predict(image).mask, 5, axis=1)
    label_map = np.array([ORDER.index(class_id) for class_id in range(5)], np.uint8)[seen]
    label_map[:, :6] = IGNORE_INDEX
    return label_map


def row(image_id: int, data: bytes, label_map: Ids, name: str | None = None) -> dict[str, Any]:
    height, width = label_map.shape
    name = name or f"{image_id:03d}.jpg"
    return {
        "image_id": image_id,
        "uri": f"s3://somewhere/{name}",
        "image": {"bytes": data, "path": name},
        "mask": {"bytes": encode_mask(label_map, LABELS.palette), "path": f"{image_id:03d}.png"},
        "width": width,
        "height": height,
        "group": None,
    }


def dataset_of(uri: str, *shards: Sequence[dict[str, Any]], classes: Classes = LABELS) -> str:
    """A dataset whose val split has these shards."""
    Dataset(uri, classes, [write_shard(uri, "val", rows) for rows in shards]).publish()
    return uri


@pytest.fixture(scope="module")
def images() -> list[tuple[str, bytes]]:
    return [various(seed) for seed in range(NUM_VAL)]


@pytest.fixture(scope="module")
def labelled(images: list[tuple[str, bytes]], model_uri: str) -> list[tuple[bytes, Ids]]:
    model = load_model(model_uri)
    return [(data, truth_of(upright(data), model)) for _, data in images]


@pytest.fixture(scope="module")
def dataset(s3: S3, labelled: list[tuple[bytes, Ids]]) -> str:
    """On S3, all formats and sizes; two files of val, one of train."""
    uri = s3.uri("labels")
    rows = [row(100 + i, data, truth) for i, (data, truth) in enumerate(labelled)]
    shards = [write_shard(uri, "val", part) for part in (rows[:9], rows[9:])]
    shards.append(write_shard(uri, "train", [row(7, jpeg(50), np.zeros((96, 128), np.uint8))]))
    Dataset(uri, LABELS, shards).publish()
    return uri


def work(dataset: str, model: str, output: str, **keys: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "dataset": dataset, "model": model, "output": output, **keys}


PREDICT: dict[str, Any] = {"long_side": 96, "flip": True, "batch_size": 3, "precision": "fp32"}


@pytest.fixture(scope="module")
def output(s3: S3, dataset: str, model_uri: str) -> str:
    uri = s3.uri("evaluation")
    evaluate(work(dataset, model_uri, uri, predict=PREDICT))
    return uri


@pytest.fixture(scope="module")
def metrics(output: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(f"{output}/metrics.json"))


def table(output: str, name: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(f"{output}/{name}")))


@pytest.fixture(scope="module")
def pairs(labelled: list[tuple[bytes, Ids]], model_uri: str) -> list[tuple[Ids, Ids]]:
    """Truth and prediction of each image, in the model's ids, made one by one and without Ray."""
    options = Predict(long_side=96, flip=True)
    model = load_model(model_uri, options=options)
    ids = np.full(256, IGNORE_INDEX, np.uint8)
    ids[:5] = ORDER
    return [(ids[truth], model.predict(upright(data)).mask) for data, truth in labelled]


# ------------------------------------------------------------------------------------- the metrics


def test_the_metrics_are_those_of_torchmetrics_over_every_image_once(
    metrics: dict[str, Any], pairs: list[tuple[Ids, Ids]]
) -> None:
    truth, prediction = (
        torch.from_numpy(np.concatenate([side.ravel() for side in sides])).long()
        for sides in zip(*pairs, strict=True)
    )

    def jaccard(average: str) -> Any:
        return multiclass_jaccard_index(prediction, truth, 5, average=average, ignore_index=255)

    def accuracy(average: str) -> Any:
        return multiclass_accuracy(prediction, truth, 5, average=average, ignore_index=255)

    assert metrics["images"] == NUM_VAL
    assert sum(metrics["pixels"].values()) == int((truth != 255).sum())
    assert 0.2 < metrics["miou"] < 0.95
    assert list(metrics["iou"]) == CLASSES.names
    assert list(metrics["iou"].values()) == pytest.approx(jaccard("none").tolist(), abs=FEW)
    assert list(metrics["accuracy"].values()) == pytest.approx(accuracy("none").tolist(), abs=FEW)
    assert metrics["miou"] == pytest.approx(float(jaccard("macro")), abs=FEW)
    assert metrics["frequency_weighted_iou"] == pytest.approx(float(jaccard("weighted")), abs=FEW)
    assert metrics["pixel_accuracy"] == pytest.approx(float(accuracy("micro")), abs=FEW)
    assert metrics["mean_accuracy"] == pytest.approx(float(accuracy("macro")), abs=FEW)


def test_the_boundary_score_is_of_the_boundaries_of_all_images(
    metrics: dict[str, Any], pairs: list[tuple[Ids, Ids]]
) -> None:
    counts = BoundaryCounts(5)
    for truth, prediction in pairs:
        counts.update(truth, prediction)
    scores = dict(zip(CLASSES.names, counts.f_scores().tolist(), strict=True))
    assert metrics["boundary_f_per_class"] == pytest.approx(scores, abs=0.005)
    assert metrics["boundary_f"] == pytest.approx(counts.mean_f(), abs=0.005)


def test_what_is_measured_is_what_the_segment_job_predicts(
    tmp_path: Path,
    images: list[tuple[str, bytes]],
    model_uri: str,
    output: str,
) -> None:
    for index, (extension, data) in enumerate(images):
        (tmp_path / f"{index:03d}.{extension}").write_bytes(data)
    run = segment(job(f"{tmp_path}/", model_uri, str(tmp_path / "run"), predict=PREDICT))
    differing = total = 0
    for index, scored in enumerate(table(output, "per_image.parquet").to_pylist()):
        mask = run.mask(index)
        assert mask is not None
        assert mask.shape == (scored["height"], scored["width"])
        counts = np.bincount(mask[:, 6:].ravel(), minlength=5)  # without the void
        differing += int(np.abs(counts - list(scored["prediction"].values())).sum())
        total += mask.size
    assert differing <= FEW * total


def test_there_is_one_row_for_each_image_and_the_rows_add_up(
    output: str, metrics: dict[str, Any], pairs: list[tuple[Ids, Ids]]
) -> None:
    rows = table(output, "per_image.parquet")
    assert rows["image_id"].to_pylist() == list(range(100, 100 + NUM_VAL))
    assert rows["uri"][3].as_py() == "s3://somewhere/103.jpg"
    for scored, (truth, prediction) in zip(rows.to_pylist(), pairs, strict=True):
        assert (scored["height"], scored["width"]) == truth.shape
        known = truth != 255
        right = float((truth == prediction)[known].mean())
        assert scored["pixel_accuracy"] == pytest.approx(right, abs=0.001)
        expected = np.bincount(truth[known], minlength=5).tolist()
        assert list(scored["truth"].values()) == expected
    hits, truth, seen = (
        np.sum([list(counts.values()) for counts in rows[name].to_pylist()], axis=0)
        for name in ("hits", "truth", "prediction")
    )
    assert list(metrics["iou"].values()) == pytest.approx((hits / (truth + seen - hits)).tolist())


def test_the_confusion_is_a_tidy_table_of_names(output: str, metrics: dict[str, Any]) -> None:
    rows = table(output, "confusion.parquet").to_pylist()
    assert [(r["truth"], r["prediction"]) for r in rows] == [
        (one, other) for one in CLASSES.names for other in CLASSES.names
    ]
    for name, pixels in metrics["pixels"].items():
        assert sum(r["pixels"] for r in rows if r["truth"] == name) == pixels
    right = sum(r["pixels"] for r in rows if r["truth"] == r["prediction"])
    assert metrics["pixel_accuracy"] == pytest.approx(right / sum(metrics["pixels"].values()))


def test_the_metrics_say_what_was_measured_and_by_what(
    metrics: dict[str, Any], dataset: str, model_uri: str
) -> None:
    assert (metrics["kind"], metrics["split"]) == ("evaluate", "val")
    assert metrics["dataset"]["uri"] == dataset
    assert metrics["model"]["uri"] == model_uri
    assert len(metrics["dataset"]["fingerprint"]) == len(metrics["model"]["sha256"]) == 64
    assert metrics["predict"]["long_side"] == metrics["model"]["long_side"] == 96
    assert metrics["predict"]["flip"] is True
    assert (metrics["device"], metrics["precision"]) == ("cpu", "fp32")
    assert metrics["software"]["torch"] == torch.__version__.partition("+")[0]


def test_the_table_has_a_line_for_each_class(metrics: dict[str, Any]) -> None:
    lines = as_text({**metrics, "iou": {**metrics["iou"], "roof": None}}).splitlines()
    assert lines[0].split() == ["miou", f"{metrics['miou']:.3f}"]
    assert lines[-1].split()[:2] == ["roof", "-"]
    assert [line.split()[0] for line in lines[-5:]] == CLASSES.names


# ------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Headings and picture addresses of a page, and everything that would need a network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.headings: list[str] = []
        self.uris: list[str] = []
        self.outside: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        for name, value in attrs:
            if tag == "bdi" and name == "title":
                self.uris.append(value or "")
            if name in ("src", "href"):
                (self.pictures if tag == "img" else self.outside).append(value or "")

    def handle_data(self, data: str) -> None:
        if self._inside == "h3" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def worst(output: str) -> Page:
    return Page(storage.read_bytes(f"{output}/worst.html").decode())


def test_the_page_shows_the_worst_images_first(worst: Page, output: str) -> None:
    rows = table(output, "per_image.parquet").sort_by("miou").to_pylist()
    assert worst.uris == [row["uri"] for row in rows]
    assert worst.headings[0].startswith(f"1. mIoU {rows[0]['miou']:.3f}")


def test_the_page_holds_its_pictures_and_needs_no_network(worst: Page) -> None:
    assert worst.outside == []
    assert len(worst.pictures) == 4 * NUM_VAL
    for source in worst.pictures:
        kind, data = source.split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 480


def test_the_page_shows_upright_photographs_under_truth_and_prediction(
    worst: Page, output: str, labelled: list[tuple[bytes, Ids]]
) -> None:
    first = table(output, "per_image.parquet").sort_by("miou").to_pylist()[0]
    data, label_map = labelled[first["image_id"] - 100]
    photo, truth, prediction = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))), float)
        for source in worst.pictures[:3]
    )
    assert np.abs(photo - np.asarray(upright(data))).mean() < 8
    assert photo.shape[:2] == label_map.shape
    void = (label_map == IGNORE_INDEX)[:, :, None]
    assert np.abs((truth - photo) * void)[:, :4].mean() < 8, "the photograph shows through"
    assert np.abs(truth - prediction).mean() > 1


# ---------------------------------------------------------------------------- running it again


def test_the_command_gives_the_same_again_and_prints_the_scores_alone_on_stdout(
    tmp_path: Path,
    *,
    dataset: str,
    model_uri: str,
    output: str,
    metrics: dict[str, Any],
    ray_address: str,
) -> None:
    file = tmp_path / "evaluate.yaml"
    file.write_text(yaml.safe_dump(work(dataset, model_uri, output, predict=PREDICT)))
    before = table(output, "per_image.parquet")
    older = {key: value for key, value in metrics["predict"].items() if key != "decode"}
    old = json.dumps({**metrics, "predict": older})  # as before the key existed
    storage.write_bytes(f"{output}/metrics.json", old.encode())
    ended = cli("run", str(file), RAY_ADDRESS=ray_address, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{as_text(metrics)}\n"
    assert json.loads(storage.read_bytes(f"{output}/metrics.json")) == metrics
    assert table(output, "per_image.parquet") == before
    files = [storage.name_of(file.uri) for file in storage.list_files(output)]
    assert files == ["confusion.parquet", "metrics.json", "per_image.parquet", "worst.html"]


def test_an_output_holds_one_evaluation(
    tmp_path: Path, dataset: str, model_uri: str, output: str, labelled: list[tuple[bytes, Ids]]
) -> None:
    other = dataset_of(str(tmp_path / "labels"), [row(0, *labelled[0])])
    for changed, what in (
        (work(dataset, model_uri, output, predict={**PREDICT, "flip": False}), "predict"),
        (work(dataset, model_uri, output, predict=PREDICT, split="train"), "split"),
        (work(other, model_uri, output, predict=PREDICT), "dataset"),
    ):
        with pytest.raises(RunError, match=f"another {what} .*choose a new output"):
            evaluate(changed)


def test_metrics_of_something_else_are_not_written_over(
    tmp_path: Path, dataset: str, model_uri: str
) -> None:
    (tmp_path / "metrics.json").write_text('{"loss": 3}')
    with pytest.raises(RunError, match="not an evaluation's"):
        evaluate(work(dataset, model_uri, str(tmp_path)))
    assert (tmp_path / "metrics.json").read_text() == '{"loss": 3}'


# ------------------------------------------------------------------------------ what is refused


def test_other_classes_are_refused_by_name(tmp_path: Path, model_uri: str) -> None:
    label_map = np.zeros((96, 128), np.uint8)
    classes = Classes(["background", "wall", "window", "door", "brick"])
    uri = dataset_of(str(tmp_path / "labels"), [row(0, jpeg(0), label_map)], classes=classes)
    with pytest.raises(InputError) as refused:
        evaluate(work(uri, model_uri, str(tmp_path / "out")))
    assert f"only {uri} has 'brick'; only {model_uri} has 'roof'" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_split_without_images_is_refused(dataset: str, model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no images in test; it has train \(1\), val \(14\)"):
        evaluate(work(dataset, model_uri, str(tmp_path), split="test"))


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path, model_uri: str) -> None:
    with pytest.raises(SourceError, match="labels import"):
        evaluate(work(str(tmp_path / "none"), model_uri, str(tmp_path / "out")))


def test_a_job_of_another_kind_is_refused(tmp_path: Path, model_uri: str) -> None:
    with pytest.raises(JobFileError, match="this needs a job of kind: evaluate"):
        evaluate(job(str(tmp_path), model_uri, str(tmp_path / "out")))


def test_images_that_cannot_be_scored_are_named_and_nothing_is_written(
    tmp_path: Path, model_uri: str
) -> None:
    small, full = np.zeros((48, 64), np.uint8), np.zeros((96, 128), np.uint8)
    other = full.copy()
    other[0, 0] = 9
    uri = dataset_of(
        str(tmp_path / "labels"),
        [
            row(0, jpeg(0), full),
            row(1, broken()["truncated.jpg"], full, "half.jpg"),
            row(2, jpeg(2), small, "small.jpg"),
            row(3, jpeg(3), other, "ids.jpg"),
        ],
    )
    with pytest.raises(JobFailed) as failed:
        evaluate(work(uri, model_uri, str(tmp_path / "out")))
    said = str(failed.value)
    assert said.startswith("3 of 4 images cannot be scored")
    assert re.search(r"half\.jpg \(image_id 1\): truncated", said)
    assert "small.jpg (image_id 2): the mask is 64×48, the image 128×96" in said
    assert "ids.jpg (image_id 3): the mask holds class id 9 of 5 classes" in said
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_file_of_the_dataset_is_named(
    number: int, tmp_path: Path, labelled: list[tuple[bytes, Ids]], model_uri: str
) -> None:
    shards = [[row(i, *labelled[i])] for i in range(2)]
    uri = dataset_of(str(tmp_path / "labels"), *shards)
    victim = sorted(Path(uri, "val").iterdir())[number]
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    with pytest.raises(SourceError, match=f"{victim.name}: is not the file that was imported"):
        evaluate(work(uri, model_uri, str(tmp_path / "out")))


def test_an_image_that_kills_its_worker_ends_the_job(
    tmp_path: Path, labelled: list[tuple[bytes, Ids]], model_uri: str
) -> None:
    rows = [row(i, *labelled[i]) for i in range(3)]
    rows.append(row(3, jpeg(3, comment=poison.KILL), np.zeros((96, 128), np.uint8)))
    uri = dataset_of(str(tmp_path / "labels"), rows)
    with pytest.raises(Incomplete, match="a worker's process died twice over the same images"):
        evaluate(work(uri, model_uri, str(tmp_path / "out")))
    assert list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------ each image exactly once


@pytest.fixture
def scores() -> Scores:
    return Scores(CLASSES)


def scored(*image_ids: int) -> pa.Table:
    zeros = dict.fromkeys(CLASSES.fields, 0)
    names = ("boundary_truth", "boundary_truth_hits", "boundary_prediction",
             "boundary_prediction_hits")  # fmt: skip
    rows = [
        {"image_id": i, "uri": str(i), "confusion": [1] * 25} | dict.fromkeys(names, zeros)
        for i in image_ids
    ]
    return pa.Table.from_pylist(rows, score_schema(CLASSES))


@pytest.mark.parametrize(
    ("came", "said"),
    [
        ([(0, 1), (3,)], "1 were not scored and 0 were scored twice"),
        ([(0, 1), (1, 2, 3)], "0 were not scored and 1 were scored twice"),
        ([(0, 1), (1, 3)], "1 were not scored and 1 were scored twice"),
        ([], "4 were not scored"),
    ],
)
def test_an_image_that_is_missing_or_came_twice_is_refused(
    scores: Scores, came: list[tuple[int, ...]], said: str
) -> None:
    for image_ids in came:
        scores.add(scored(*image_ids))
    with pytest.raises(Incomplete, match=said):
        scores.check(4)


def test_when_every_image_came_once_nothing_is_refused(scores: Scores) -> None:
    scores.add(scored(2, 0))
    scores.add(scored(1, 3))
    scores.check(4)
    assert scores.per_image()["image_id"].to_pylist() == [0, 1, 2, 3]
    assert scores.confusion.counts.tolist() == [[4] * 5] * 5
