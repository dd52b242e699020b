"""The commands of the pages on labels, labelling again, browsing and videos run as they stand.

But for those that train, which the tests of training run, labelme's own, and a camera's.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segbatch import storage
from segbatch.labels.dataset import open_dataset
from tests.collection import jpeg
from tests.conftest import S3
from tests.films import film
from tests.hub import serving
from tests.images.test_shards import tar
from tests.labels.files import grey, palette, write
from tests.pages import commands, run
from tests.written_run import NAMES, label_map, write_run

DATASET = "s3://bucket/labels/facades"
IMPORT = ("segbatch", "labels", "import")


def forget(uri: str) -> None:
    storage.delete([file.uri for file in storage.list_files(uri)])


@pytest.fixture
def reader(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' reader is: photographs and a run of them in a bucket."""
    s3.client.create_bucket(Bucket="bucket")
    for image_id in range(12):
        s3.put(f"s3://bucket/photos/{image_id:04d}.jpg", jpeg(image_id, 40, 60))
    for uri in ("s3://bucket/runs/2026-11", f"{tmp_path}/runs/2026-11"):
        forget(uri)
        write_run(uri, photos="s3://bucket/photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def annotated(reader: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Labels of all formats, those of the run's masks, in the folders that labels.md names."""
    for folder, format_ in (("annotations", "labelme"), ("export/train", "coco")):
        run(["segbatch", "export", "runs/2026-11", folder, "--to", format_])
    submitted(Path("studio"), Path("export.json"))
    shutil.copytree("export/train", "export/val")
    (reader / "labels.txt").write_text("\n".join(NAMES))
    write(reader / "photographs", {f"{n:04d}.jpg": jpeg(n, 40, 60) for n in range(12)})
    for image_id, split in enumerate(("train", "train", "val")):
        photo, ids = jpeg(image_id, 20, 30), label_map(image_id)
        files = {
            f"data/img_dir/{split}/{image_id}.jpg": photo,
            f"data/ann_dir/{split}/{image_id}.png": grey(ids),
            f"VOC2012/JPEGImages/{image_id}.jpg": photo,
            f"VOC2012/SegmentationClass/{image_id}.png": palette(ids),
        }
        write(reader, files)
        members = [(f"{image_id}.jpg", photo), (f"{image_id}.seg.png", grey(ids))]
        storage.write_bytes(f"s3://bucket/labelled/{split}-{image_id}.tar", tar(members))
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        rows = {
            name: [{"bytes": make(n), "path": None} for n in range(3)]
            for name, make in (
                ("image", lambda n: jpeg(n, 20, 30)),
                ("annotation", lambda n: grey(label_map(n))),
            )
        }
        hub.commit("datasets/owner/facades", {"train-0.parquet": parquet(rows)})
        yield reader


def submitted(folder: Path, export: Path) -> None:
    """The export of Label Studio after somebody has submitted the tasks of a folder."""
    run(["segbatch", "export", "runs/2026-11", str(folder), "--to", "labelstudio"])
    tasks = json.loads((folder / "tasks.json").read_text())
    export.write_text(json.dumps([{**t, "annotations": t["predictions"]} for t in tasks]))


def parquet(images: dict[str, list[dict[str, bytes | None]]]) -> bytes:
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    sink = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(v, type_) for name, v in images.items()}), sink)
    return sink.getvalue()


def test_labels_are_imported_and_checked(annotated: Path) -> None:
    imported = 0
    for words in commands("labels.md"):
        if tuple(words[:3]) == IMPORT:
            forget(words[4])
            run(words)
            imported += 1
            assert sum(shard.rows for shard in open_dataset(words[4]).shards) >= 3, words
        elif words[1:3] == ["labels", "check"]:
            run(words)
            assert (annotated / "sheet.png").stat().st_size > 1000
        else:
            assert words == ["segbatch", "run", "finetune.yaml"]
    assert imported == 8


def test_the_images_to_label_next_come_back(annotated: Path) -> None:
    [few, *_] = sorted(annotated.glob("annotations/*.json"))
    Path("few").mkdir()
    for file in annotated.glob(f"annotations/{few.stem}.*"):
        shutil.copy(file, "few")
    forget(DATASET)
    classes = ",".join(NAMES)
    run([*IMPORT, "few", DATASET, "--from", "labelme", "--classes", classes])
    suggest, label, append, train, *studio = commands("labelling-again.md")
    run(suggest)
    assert label[:2] == ["labelme", "to-label"]
    for file in annotated.glob("to-label/*.json"):  # as labelme saves it
        file.write_text(json.dumps(json.loads(file.read_text()), indent=2))
    run(append)
    assert sum(shard.rows for shard in open_dataset(DATASET).shards) == 12
    assert train == ["segbatch", "run", "finetune.yaml"]

    suggest, label, append = studio
    run(suggest)
    assert label[-2:] == ["label-studio", "start"]
    [file] = Path("to-paint").glob("tasks_*.json")
    tasks = [{**t, "annotations": t["predictions"]} for t in json.loads(file.read_text())]
    Path("to-paint/export.json").write_text(json.dumps(tasks))
    run(append)
    *_, last = open_dataset(DATASET).sources
    assert (last["format"], last["images"]) == ("labelstudio", len(tasks))


def test_a_run_is_browsed_and_what_was_marked_is_copied(reader: Path) -> None:
    browse, suggest, two, elsewhere, tunnel = commands("browsing.md")
    write_run(f"{reader}/runs/2026-12", photos="s3://bucket/photos")
    for words in (browse, two):
        command = [sys.executable, "-m", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
            assert page.stdout is not None
            assert page.stdout.readline().startswith("http://127.0.0.1:")
            page.send_signal(signal.SIGINT)
    marked = ["0,s3://bucket/photos/0000.jpg", "7,s3://bucket/photos/0007.jpg"]
    (reader / "2026-11-to-label.csv").write_text("\n".join(["image_id,uri", *marked]))
    run(suggest)
    assert len(list(reader.glob("to-label/*.jpg"))) == 2
    assert elsewhere[:4] == [*browse, "--port"]
    assert tunnel[0] == "ssh"


def test_photographs_and_videos_are_predicted(s3: S3, reader: Path, model_uri: str) -> None:
    for file in Path(model_uri).iterdir():
        s3.put(f"s3://bucket/models/facades/{file.name}", file.read_bytes())
    (reader / "photo.jpg").write_bytes(jpeg(0, 48, 64))
    film(reader / "clip.mp4")
    s3.put("s3://bucket/drives/monday/clip.mov", (reader / "clip.mp4").read_bytes())
    *sources, camera = commands("videos.md")
    for words in sources:
        run(words)
        made = Path(words[-1])
        assert made.stat().st_size > 1000 or list(made.rglob("clip.mp4")), words
    assert camera[:3] == ["segbatch", "predict", "camera:0"]
