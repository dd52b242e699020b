"""Labels in tables and shards: photographs and masks that are parts of objects."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import segbatch
from segbatch import storage
from segbatch.errors import InputError, SourceError
from tests.collection import encoded, image, jpeg
from tests.hub import Hub, serving
from tests.images.test_shards import tar
from tests.labelled import rows

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = "background,wall,window"


def mask(seed: int, height: int = 96, width: int = 128) -> bytes:
    ids = np.random.default_rng(seed).integers(0, 3, (height // 8, width // 8), np.uint8)
    return encoded(Image.fromarray(ids.repeat(8, 0).repeat(8, 1)), "PNG")


def table(first: int = 0, number: int = 3, **names: str) -> bytes:
    rows = range(first, first + number)
    columns = {
        names.get("image", "image"): [{"bytes": jpeg(n), "path": None} for n in rows],
        names.get("mask", "label"): [{"bytes": mask(n), "path": None} for n in rows],
    }
    made = pa.table({name: pa.array(values, STRUCT) for name, values in columns.items()})
    sink = io.BytesIO()
    pq.write_table(made, sink, row_group_size=2)
    return sink.getvalue()


def by_uri(dataset: Path) -> list[dict[str, Any]]:
    return sorted(rows(dataset), key=lambda row: str(row["uri"]))


def label_map(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_dataset_of_the_hub_becomes_one_of_ours(hub: Hub, tmp_path: Path) -> None:
    name = "datasets/prague/cmp"
    commit = hub.commit(
        name,
        {"data/train-00000-of-00001.parquet": table(0), "data/test-0.parquet": table(3, 2)},
    )
    report = segbatch.import_labels(
        f"hf://{name}", str(tmp_path / "out"), format="hf", classes=CLASSES, split="folder"
    )
    assert report.images == {"train": 3, "test": 2}
    found = by_uri(tmp_path / "out")
    assert found[0]["uri"] == f"hf://{name}@{commit}/data/test-0.parquet#row=0&column=image"
    for row, seed in zip(found, (3, 4, 0, 1, 2), strict=True):
        assert row["image"]["bytes"] == jpeg(seed)
        assert row["image"]["path"].endswith(".jpg")
        np.testing.assert_array_equal(row["label_map"], label_map(mask(seed)))


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/in/0.parquet", table(image="facade", mask="truth"))
    given = {"format": "hf", "classes": CLASSES}
    message = "--images COLUMN --masks COLUMN; columns with images: facade, truth"
    with pytest.raises(SourceError, match=message):
        segbatch.import_labels(f"{tmp_path}/in", str(tmp_path / "out"), **given)
    with pytest.raises(SourceError, match="--masks: no column mask"):
        segbatch.import_labels(
            f"{tmp_path}/in", str(tmp_path / "out"), **given, images="facade", masks="mask"
        )
    with pytest.raises(SourceError, match="give those of the ids"):
        segbatch.import_labels(f"{tmp_path}/in", str(tmp_path / "out"), format="hf")
    report = segbatch.import_labels(
        f"{tmp_path}/in/*.parquet",
        str(tmp_path / "out"),
        **given,
        images="facade",
        masks="truth",
        split="val=0",
    )
    assert report.images == {"train": 3}


@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        (("jpg", "png"), {}),
        (("jpg", "seg.png"), {}),
        (("png", "mask.png"), {"images": "{id}.png", "masks": "{id}.mask.png"}),
    ],
)
def test_pairs_in_shards_become_a_dataset(
    tmp_path: Path, kinds: tuple[str, str], options: dict[str, str]
) -> None:
    photo, label = kinds
    for split, seeds in (("train", range(3)), ("val", range(3, 5))):
        files = []
        for seed in seeds:
            data = jpeg(seed) if photo == "jpg" else encoded(image(seed), "PNG")
            files += [
                (f"{seed}.{photo}", data),
                (f"{seed}.{label}", mask(seed)),
                (f"{seed}.txt", b""),
            ]
        storage.write_bytes(f"{tmp_path}/in/{split}-000.tar", tar(files))
    report = segbatch.import_labels(
        f"{tmp_path}/in/*.tar",
        str(tmp_path / "out"),
        format="pairs",
        classes=CLASSES,
        split="folder",
        **options,
    )
    assert report.images == {"train": 3, "val": 2}
    assert not report.skipped
    for seed, row in enumerate(by_uri(tmp_path / "out")):
        assert row["uri"].endswith(f"#member={seed}.{photo}")
        np.testing.assert_array_equal(row["label_map"], label_map(mask(seed)))


def test_what_has_no_counterpart_and_what_is_cut_is_said(tmp_path: Path) -> None:
    files = [("0.jpg", jpeg(0)), ("0.png", mask(0)), ("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))]
    storage.write_bytes(f"{tmp_path}/0.tar", tar(files)[:-11000])
    report = segbatch.import_labels(
        f"{tmp_path}/0.tar", str(tmp_path / "out"), format="pairs", classes=CLASSES, split="val=0"
    )
    assert report.images == {"train": 1}
    assert "the archive breaks off here" in [skipped.why for skipped in report.skipped]


def test_shards_without_pairs_are_refused(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/0.tar", tar([("0.jpg", jpeg(0))]))
    given = {"format": "pairs", "classes": CLASSES}
    with pytest.raises(SourceError, match="no image in 1 shards has a mask"):
        segbatch.import_labels(f"{tmp_path}/0.tar", str(tmp_path / "out"), **given)
    with pytest.raises(InputError, match=r"must have \{id\} once"):
        segbatch.import_labels(
            f"{tmp_path}/0.tar", str(tmp_path / "out"), **given, images="a.jpg", masks="{id}.png"
        )
