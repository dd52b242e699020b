"""Tour: the whole way on one machine, on facades that are rendered here.

Photographs go into a real S3 server, a small DeepLabV3+ is fitted on part of them, the real job
segments the rest, SQL asks for coverage, and the rendered truth says how good it was. Only the
network's training is shorter than anybody's would be.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from segbatch import storage
from segbatch.demo.facades import CLASSES, Scene, render_facade
from segbatch.demo.s3server import s3_server
from segbatch.errors import InputError
from segbatch.masks import overlay, with_legend
from segbatch.progress import say
from segbatch.results.run import Run
from segbatch.scaling import downscale

NUM_TRAIN = 300
NUM_SEGMENT = 200
RENDERED_SIDE = 384  # pixels of a photograph's longer side
CITIES = ("Basel", "Bern", "Genève", "Zürich")
NUM_PICTURES = 6
BUCKET = "s3://demo"
MARKER = "demo.json"

# What fits a network from random weights in a minute on two cores: a tiny one (timm's smallest
# ResNet), on small images. The number of steps is fixed, so that the result is too.
BACKBONE = "tu-test_resnet"
OUTPUT_STRIDE = 8
LONG_SIDE = 192
STEPS = 800

JOB = """\
# The same job as in the demo, on this machine's own files: segbatch run {folder}/segment.yaml
kind: segment
images: {images}
model: {model}
output: {output}
formulas:
  window_to_wall: window / (window + wall + brick)
"""


def tour(folder: Path) -> float:
    """Do everything and leave it in ``folder``; returns the mIoU against the rendered truth.

    Raises :class:`~segbatch.errors.InputError` for a folder that holds something else.
    """
    began = time.monotonic()
    folder = folder.absolute()
    _make_room(folder)
    say(f"rendering {NUM_TRAIN + NUM_SEGMENT} facades")
    scenes = _render(NUM_TRAIN + NUM_SEGMENT)
    train, rest = scenes[:NUM_TRAIN], scenes[NUM_TRAIN:]
    _fit(train, str(folder / "model"))
    with _s3() as endpoint:
        say(f"an S3 server at {endpoint}: photographs to {BUCKET}/facades, the model beside them")
        _upload(rest, folder)
        run = _segment(folder)
        miou = _compare(run, rest)
        print(f"mIoU {miou:.2f}")
        sys.stdout.flush()
    _show(run, rest, folder)
    minutes = (time.monotonic() - began) / 60
    _say_what_next(folder, miou, minutes)
    return miou


def _make_room(folder: Path) -> None:
    """An empty folder, or one that an earlier demo has left."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise InputError(f"{folder}: is not empty and no earlier demo's; name another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(json.dumps({"made by": "segbatch demo"}))


def _render(number: int) -> list[Scene]:
    # Spawned, not forked: torch and pyarrow run threads already.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        return list(processes.map(_scene, range(number), chunksize=10))


def _scene(seed: int) -> Scene:
    return render_facade(seed, RENDERED_SIDE)


def _fit(scenes: Sequence[Scene], uri: str) -> None:
    import torch

    from segbatch.model.bundle import ModelConfig, save_bundle
    from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD, build
    from segbatch.training.loop import fit

    say(f"fitting a small DeepLabV3+ on {len(scenes)} of them, about a minute")
    torch.manual_seed(0)
    network = build("deeplabv3plus", BACKBONE, len(CLASSES), OUTPUT_STRIDE)
    pictures = [downscale(Image.fromarray(scene.image), LONG_SIDE) for scene in scenes]
    label_maps = [
        Image.fromarray(scene.label_map).resize(picture.size, Image.Resampling.NEAREST)
        for scene, picture in zip(scenes, pictures, strict=True)
    ]
    recent: deque[float] = deque(maxlen=100)

    def on_step(step: int, loss: float) -> None:
        recent.append(loss)
        if step % 100 == 0:
            say(f"step={step}/{STEPS} loss={np.mean(recent):.3f}")

    fit(
        network,
        [np.asarray(picture) for picture in pictures],
        [np.asarray(label_map) for label_map in label_maps],
        steps=STEPS,
        batch_size=4,
        crop=128,
        lr=0.01,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        scale_range=(0.9, 1.1),
        on_step=on_step,
    )
    provenance = {"trained_on": f"{len(scenes)} facades rendered by segbatch demo", "steps": STEPS}
    config = ModelConfig(
        "deeplabv3plus",
        BACKBONE,
        OUTPUT_STRIDE,
        CLASSES,
        long_side=LONG_SIDE,
        provenance=provenance,
    )
    save_bundle(uri, network, config)


@contextmanager
def _s3() -> Iterator[str]:
    """A server of our own, whatever S3 the environment points at; that comes back afterwards."""
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
    """Photographs and a manifest with a column of the user's own, into the bucket and here."""
    storage.filesystem(BUCKET)[0].mkdir(BUCKET.removeprefix("s3://"))
    rng = np.random.default_rng(0)
    uris = []
    for number, scene in enumerate(scenes):
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, format="JPEG", quality=90)
        name = f"facades/{number:04d}.jpg"
        uris.append(f"{BUCKET}/{name}")
        storage.write_bytes(uris[-1], buffer.getvalue())
        storage.write_bytes(str(folder / name), buffer.getvalue())
    cities = [CITIES[rng.integers(len(CITIES))] for _ in uris]
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": uris, "city": cities}), sink)
    storage.write_bytes(f"{BUCKET}/facades.parquet", sink.getvalue())
    for file in storage.list_files(str(folder / "model")):
        storage.write_bytes(
            f"{BUCKET}/model/{storage.name_of(file.uri)}", storage.read_bytes(file.uri)
        )


def _segment(folder: Path) -> Run:
    from segbatch.job import load_job
    from segbatch.segment import segment

    here = JOB.format(
        folder=folder,
        images=folder / "facades",
        model=folder / "model",
        output=folder / "run-again",
    )
    (folder / "segment.yaml").write_text(here)
    job = load_job(
        str(folder / "segment.yaml"),
        [
            f"images={BUCKET}/facades.parquet",
            f"model={BUCKET}/model",
            f"output={folder / 'run'}",
        ],
    )
    return segment(job)


def _compare(run: Run, scenes: Sequence[Scene]) -> float:
    """mIoU of the stored masks against the rendered truth, at the images' own size."""
    from segbatch.training.metrics import ConfusionMatrix

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
    """The coverage table, and a few pictures: photograph, truth and prediction side by side."""
    from segbatch.results.answer import write

    columns = ", ".join(f"round(avg(coverage.{field}), 3) AS {field}_share"
                        for field in CLASSES.fields if field != "background")  # fmt: skip
    write(
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


def _say_what_next(folder: Path, miou: float, minutes: float) -> None:
    shown = os.path.relpath(folder)
    shown = shown if not shown.startswith("..") else str(folder)
    program = os.path.relpath(sys.argv[0]) if os.sep in sys.argv[0] else "segbatch"
    glass = (
        "SELECT uri, coverage.window AS glass FROM images"
        " WHERE coverage.window > 0.25 ORDER BY glass DESC"
    )
    print(
        f"""
mIoU {miou:.2f} in {minutes:.1f} minutes. What is there now:
  {shown}/run           the results: one row per image, in two Delta tables of Parquet files
  {shown}/overlays      photograph, truth and prediction side by side
  {shown}/model         the model bundle
  {shown}/segment.yaml  the same job on {shown}/facades, without the S3 server

What to try next:
  {program} query {shown}/run "{glass}"
  {program} audit {shown}/run --deep
  {program} run {shown}/segment.yaml
  {program} predict {shown}/facades/0007.jpg --model {shown}/model -o {shown}/0007.png"""
    )
