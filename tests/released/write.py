"""Write what a release leaves on storage: a dataset, a model, a finished and an interrupted run.

``python tests/released/write.py FOLDER`` with the release installed, once per release; the folder
is committed as ``tests/released/<version>/`` and :mod:`tests.released.test_released` opens,
resumes and audits it with the current code. Everything lies in one S3 bucket, so that URIs
mean the same on every machine. Uses only the public API and the command line.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import numpy as np
import yaml
from PIL import Image

from segbatch.demo.s3server import s3_server

BUCKET = "released"
CLASSES = ["background", "wall", "window"]
NUM_PHOTOS = 12


def photo(seed: int) -> Image.Image:
    """64×80: sky, a wall and some windows, with noise from a fixed seed."""
    random = np.random.default_rng(seed)
    pixels = np.empty((64, 80, 3), np.uint8)
    pixels[:] = (150, 190, 230)
    pixels[20:] = (170, 90, 60)
    for left in range(8 + seed % 5, 72, 20):
        pixels[30:44, left : left + 10] = (40, 50, 60)
    noise = random.integers(-12, 13, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def labelme(seed: int, name: str) -> str:
    """The shapes of :func:`photo` as labelme writes them."""
    rectangles = [("wall", (0, 20, 80, 64))]
    rectangles += [("window", (x, 30, x + 10, 44)) for x in range(8 + seed % 5, 72, 20)]
    shapes = [
        {"label": label, "shape_type": "rectangle", "points": [[x, y], [right, bottom]],
         "group_id": None, "flags": {}}
        for label, (x, y, right, bottom) in rectangles
    ]  # fmt: skip
    return json.dumps({
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None,
        "imageHeight": 64, "imageWidth": 80,
    })  # fmt: skip


def segbatch(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "segbatch", *arguments], check=True)


def interrupt(job: Path, uri: str) -> None:
    """Start a run and kill its driver once some of its images are committed."""
    slow = "from segbatch.results import ledger; ledger.COMMIT_EVERY_S = 0.0;"
    main = f"import sys; sys.argv = ['segbatch', 'run', {str(job)!r}];"
    try:
        from segbatch.cli import main as _  # noqa: F401

        main += "from segbatch.cli import main; main()"
    except ImportError:
        main += "from segbatch.cli.main import main; main()"
    driver = subprocess.Popen([sys.executable, "-c", slow + main], start_new_session=True)
    client = boto3.client("s3")
    prefix = f"{uri.removeprefix(f's3://{BUCKET}/')}/rows/_delta_log/"
    while driver.poll() is None:
        log = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        if len(log) >= 4:  # the table, the epoch, and two commits of images
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            return
        time.sleep(0.02)
    raise SystemExit("the run ended before it could be interrupted: make it slower")


def write(folder: Path) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for seed in range(NUM_PHOTOS):
            sink = io.BytesIO()
            photo(seed).save(sink, "JPEG", quality=90)
            client.put_object(Bucket=BUCKET, Key=f"photos/{seed:02d}.jpg", Body=sink.getvalue())
            (work / "labels").mkdir(exist_ok=True)
            (work / "labels" / f"{seed:02d}.jpg").write_bytes(sink.getvalue())
            (work / "labels" / f"{seed:02d}.json").write_text(labelme(seed, f"{seed:02d}.jpg"))
        client.put_object(Bucket=BUCKET, Key="photos/broken.jpg", Body=b"no image")
        root = f"s3://{BUCKET}"
        segbatch("labels", "import", str(work / "labels"), f"{root}/dataset", "--from", "labelme",
                 "--classes", ",".join(CLASSES), "--unlabelled", "background",
                 "--split", "val=0.25")  # fmt: skip
        jobs = {
            "finetune": {
                "kind": "finetune", "dataset": f"{root}/dataset", "output": f"{root}/model",
                "model": {"arch": "deeplabv3plus", "backbone": "tu-mobilenetv3_small_050",
                          "output_stride": 16, "backbone_weights": None},
                "train": {"epochs": 2, "batch_size": 4, "long_side": 64, "crop": 64},
                "resources": {"workers": 1},
            },
            "finished": {
                "kind": "segment", "images": f"{root}/photos/", "model": f"{root}/model",
                "output": f"{root}/finished", "stats": ["confidence", "components", "boxes"],
                "formulas": {"glass": "window / (window + wall)"}, "rows_per_file": 4,
                "limits": {"max_failed_fraction": 0.5},
            },
        }  # fmt: skip
        jobs["interrupted"] = jobs["finished"] | {
            "output": f"{root}/interrupted", "rows_per_file": 1,
        }  # fmt: skip
        for kind, job in jobs.items():
            (work / f"{kind}.yaml").write_text(yaml.safe_dump(job))
        segbatch("run", str(work / "finetune.yaml"))
        segbatch("run", str(work / "finished.yaml"))
        interrupt(work / "interrupted.yaml", f"{root}/interrupted")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            key = entry["Key"]
            if key.startswith(("model/training/tensorboard", "model/training/checkpoints")):
                continue  # large, and nothing reads them once the model is there
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


if __name__ == "__main__":
    with s3_server() as variables:
        os.environ.update(variables)
        write(Path(sys.argv[1]))
