"""``segbatch demo``: from labels to query results on one machine, on rendered facades.

Some facades are labelled images: the tour imports them, and two workers fine-tune a small
DeepLabV3+ on them. The others go into a real S3 server; the segment job predicts them with that
model, SQL asks for coverage, and the rendered truth tells how good the masks are. Only the training
is much shorter than a real one. Photographs of the user's own are segmented first, with the model
of facades that comes with segbatch.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from shlex import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from segbatch import storage
from segbatch.config.job import Job, load_job
from segbatch.console import ImageBar, say
from segbatch.demo.facades.facades import CLASSES, Scene, render_facade
from segbatch.demo.s3server import require_server, s3_server
from segbatch.errors import InputError
from segbatch.jobs.finetune import finetune
from segbatch.jobs.runtime.workers import connected
from segbatch.jobs.segment import segment
from segbatch.labels.importing import import_labels
from segbatch.masks import encode_mask, overlay, with_legend
from segbatch.results.answer import write_answer
from segbatch.run import Run
from segbatch.training.confusion import ConfusionMatrix

NUM_TRAIN = 300
NUM_SEGMENT = 200
RENDERED_SIDE = 384  # pixels of a photograph's longer side
CITIES = ("Basel", "Bern", "Genève", "Zürich")
NUM_PICTURES = 6
BUCKET = "s3://demo"
MARKER = "demo.json"

# Trains from random weights in a minute on two cores: a tiny network (timm's smallest ResNet),
# small images, little augmentation.
FINETUNE = """\
# The demo's training: segbatch run {file}
kind: finetune
dataset: {dataset}
model: {{arch: deeplabv3plus, backbone: tu-test_resnet, output_stride: 8, backbone_weights: null}}
output: {output}
train:
  epochs: 12
  batch_size: 8
  long_side: 192
  crop: 128
  optimizer: {{name: adamw, lr: 0.01, weight_decay: 0.01, head_lr_factor: 1}}
  schedule: {{name: cosine, warmup: 300}}
  augment: {{scale_range: [0.9, 1.1]}}
resources: {{workers: 2}}
"""

PHOTOS = """\
# Your photographs, with the model that comes with segbatch: segbatch run {file}
kind: segment
images: {images}
model: zoo:facades
output: {output}
formulas:
  window_to_wall: window / (window + facade + shop + balcony_fence)
limits: {{max_failed_fraction: 1}}   # a broken photograph is a failed row, and no reason to stop
"""

SEGMENT = """\
# The same job as in the demo, on this machine's own files: segbatch run {file}
kind: segment
images: {images}
model: {model}
output: {output}
formulas:
  window_to_wall: window / (window + wall + brick)
"""


def tour(folder: Path, photos: str | None = None) -> float:
    """Run the whole tour, with its output in ``folder``; returns the mIoU against the truth.

    ``photos`` is a folder of the user's own photographs, any URI. Raises
    :class:`~segbatch.errors.InputError` for an output folder that holds anything else, or photos of
    which none can be read.
    """
    began = time.monotonic()
    folder = folder.absolute()
    require_server()
    _make_room(folder)
    training = _load_training(folder)  # refuses a folder that no job may write to
    if photos is not None:
        _segment_photos(photos, folder)
    say(f"rendering {NUM_TRAIN + NUM_SEGMENT} facades")
    scenes = _render(NUM_TRAIN + NUM_SEGMENT)
    train, rest = scenes[:NUM_TRAIN], scenes[NUM_TRAIN:]
    with own_s3() as endpoint, connected(say):
        _import(train, folder)
        say("fine-tuning a small DeepLabV3+, about a minute and a half")
        finetune(training)
        say(f"S3 server at {endpoint}: photographs in {BUCKET}/facades, model in {BUCKET}/model")
        _upload(rest, folder)
        run = _segment(folder)
        miou = _compare(run, rest)
        print(f"mIoU {miou:.2f}")
        sys.stdout.flush()
        run.report(str(folder / "report.html"), by="city")  # while its photographs can be fetched
    _show(run, rest, folder)
    minutes = (time.monotonic() - began) / 60
    _say_what_next(folder, miou, minutes, has_photos=photos is not None)
    return miou


def _make_room(folder: Path) -> None:
    """Create or empty the folder; only an earlier demo's output is deleted."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / MARKER).exists():
                raise InputError(f"{folder}: is not empty and not from a demo; name another folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"made by": "segbatch demo"}))
    except OSError as error:
        raise InputError(
            f"{folder}: no folder can be made there ({error.strerror}); name another folder"
        ) from error


def _segment_photos(photos: str, folder: Path) -> None:
    """Segment the user's photographs, and write a report of them."""
    images = photos if storage.name_of(photos).count(".") else photos.rstrip("/") + "/"
    job = _write_job(folder / "photos.yaml", PHOTOS, images=images, output=folder / "photos")
    run = segment(load_job(job))
    run.report(str(folder / "photos.html"))
    say(f"your photographs: open {folder / 'photos.html'} in a browser")


def _render(number: int) -> list[Scene]:
    # Spawned, not forked: torch and pyarrow are running threads by now.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        render = partial(render_facade, long_side=RENDERED_SIDE)
        scenes = []
        with ImageBar("render", number) as bar:
            for scene in processes.map(render, range(number), chunksize=10):
                scenes.append(scene)
                bar.add(1)
        return scenes


def _import(scenes: Sequence[Scene], folder: Path) -> None:
    """Write a folder of images and one of masks, as a team would have them, and import both."""
    source = folder / "annotated"
    for number, scene in enumerate(scenes):
        name = f"{number:04d}"
        storage.write_bytes(str(source / "images" / f"{name}.jpg"), _jpeg(scene))
        mask = encode_mask(scene.label_map, CLASSES.palette)
        storage.write_bytes(str(source / "masks" / f"{name}.png"), mask)
    say(f"importing {len(scenes)} labelled images")
    import_labels(
        str(source), str(folder / "labels"), format="pairs", classes=",".join(CLASSES.names)
    )


def _load_training(folder: Path) -> Job:
    paths = {"dataset": folder / "labels", "output": folder / "model"}
    return load_job(_write_job(folder / "finetune.yaml", FINETUNE, **paths))


def _write_job(where: Path, template: str, **paths: Path | str) -> str:
    """Write a job file with ``paths`` of any characters; returns its own."""
    values = {key: _yaml_text(path) for key, path in paths.items()}
    text = template.format(file=quote(str(where)), **values)
    where.write_text(text, encoding="utf-8")
    return str(where)


def _yaml_text(path: Path | str) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def own_s3() -> Iterator[str]:
    """An S3 server for the block, instead of the one in the environment; yields its endpoint."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with s3_server() as variables:
        for name in before:
            del os.environ[name]
        os.environ.update(variables)
        try:
            yield variables["AWS_ENDPOINT_URL"]
        finally:
            for name in variables:
                del os.environ[name]
            os.environ.update(before)


def _upload(scenes: Sequence[Scene], folder: Path) -> None:
    """Write photographs to the bucket and the folder, a manifest and the model to the bucket."""
    storage.filesystem(BUCKET)[0].mkdir(BUCKET.removeprefix("s3://"))
    rng = np.random.default_rng(0)
    uris = []
    for number, scene in enumerate(scenes):
        name = f"facades/{number:04d}.jpg"
        uris.append(f"{BUCKET}/{name}")
        for uri in (uris[-1], str(folder / name)):
            storage.write_bytes(uri, _jpeg(scene))
    cities = [CITIES[rng.integers(len(CITIES))] for _ in uris]
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": uris, "city": cities}), sink)
    storage.write_bytes(f"{BUCKET}/facades.parquet", sink.getvalue())
    for name in ("model.safetensors", "config.json"):
        data = storage.read_bytes(str(folder / "model" / name))
        storage.write_bytes(f"{BUCKET}/model/{name}", data)


def _segment(folder: Path) -> Run:
    here = _write_job(
        folder / "segment.yaml",
        SEGMENT,
        images=folder / "facades",
        model=folder / "model",
        output=folder / "run-again",
    )
    job = load_job(
        here,
        [
            f"images={BUCKET}/facades.parquet",
            f"model={BUCKET}/model",
            f"output={_yaml_text(folder / 'run')}",
        ],
    )
    return segment(job)


def _compare(run: Run, scenes: Sequence[Scene]) -> float:
    """The mIoU of the stored masks against the rendered truth, at full size."""
    matrix = ConfusionMatrix(len(CLASSES))
    for image_id, scene in enumerate(scenes):
        matrix.update(scene.label_map, _mask(run, image_id))
    return float(matrix.miou())


def _mask(run: Run, image_id: int) -> npt.NDArray[np.uint8]:
    mask = run.mask(image_id)
    if mask is None:
        raise RuntimeError(f"image {image_id} of the demo has no mask")
    return mask


def _show(run: Run, scenes: Sequence[Scene], folder: Path) -> None:
    """Print the coverage table; write pictures of photograph, truth and prediction."""
    columns = ", ".join(f"round(avg(coverage.{field}), 3) AS {field}_share"
                        for field in CLASSES.fields if field != "background")  # fmt: skip
    write_answer(
        run.sql(
            f"SELECT city, count(*) AS images, {columns},"
            " round(avg(formulas.window_to_wall), 3) AS window_to_wall"
            " FROM images GROUP BY city ORDER BY city"
        ),
        "table",
        None,
    )
    (folder / "overlays").mkdir()
    for image_id in range(0, len(scenes), len(scenes) // NUM_PICTURES):
        scene = scenes[image_id]
        mask = _mask(run, image_id)
        parts = [
            Image.fromarray(scene.image),
            overlay(scene.image, scene.label_map, CLASSES, 0.7),
            overlay(scene.image, mask, CLASSES, 0.7),
        ]
        width, height = parts[0].size
        picture = Image.new("RGB", (3 * width + 16, height), "white")
        for position, part in enumerate(parts):
            picture.paste(part, (position * (width + 8), 0))
        shares = np.bincount(mask.ravel(), minlength=len(CLASSES)) / mask.size
        with_legend(picture, CLASSES, shares).save(folder / "overlays" / f"{image_id:04d}.png")


def _say_what_next(folder: Path, miou: float, minutes: float, *, has_photos: bool) -> None:
    shown = os.path.relpath(folder)
    shown = shown if not shown.startswith("..") else str(folder)
    typed = quote(shown)
    program = os.path.relpath(sys.argv[0]) if os.sep in sys.argv[0] else "segbatch"
    if program.endswith("__main__.py"):
        program = "python -m segbatch"
    glass = (
        "SELECT uri, coverage.window AS glass FROM images"
        " WHERE coverage.window > 0.25 ORDER BY glass DESC"
    )
    if has_photos:
        print(
            f"\nYour photographs, as the model that comes with segbatch sees them:\n"
            f"  {shown}/photos.html   a page for a browser\n"
            f"  {shown}/photos        the results; {shown}/photos.yaml, the job"
        )
    print(
        f"""
mIoU {miou:.2f} in {minutes:.1f} minutes. The output:
  {shown}/report.html   a page for a browser: distributions and images
  {shown}/run           the results: one row per image, in two Delta tables of Parquet files
  {shown}/overlays      photograph, truth and prediction side by side
  {shown}/labels        the labelled dataset, and {shown}/model, the model trained on it
  {shown}/segment.yaml  the same job on {shown}/facades, without the S3 server

What to try next:
  {program} query {typed}/run "{glass}"
  {program} audit {typed}/run --deep
  {program} run {typed}/segment.yaml
  {program} labels check {typed}/labels --sheet {typed}/labels.png
  {program} predict {typed}/facades/0007.jpg --model {typed}/model -o {typed}/0007.png"""
    )
