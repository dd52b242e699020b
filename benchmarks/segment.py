"""The segment job on a folder of images, from an S3 server: scripts/bench segment.

    scripts/bench segment --images DIR --model BUNDLE [-o RESULT.json] [--overlays DIR]

Copies the images into moto (an S3 server in a process of its own, on the same cores), runs the
whole job, audits it, and writes what it took as JSON. With `--endpoint`, the S3 server of the
AWS_* variables is used instead, in a bucket of its own, which is deleted in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import segbatch  # noqa: E402
from benchmarks.buckets import new_bucket  # noqa: E402
from segbatch import storage  # noqa: E402
from segbatch.config.images import IMAGE_EXTENSIONS  # noqa: E402
from segbatch.demo.s3server import s3_server  # noqa: E402
from segbatch.machine import num_cores  # noqa: E402
from segbatch.masks import overlay, with_legend  # noqa: E402
from segbatch.run import Run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--model", required=True, help="a model bundle")
    parser.add_argument("-o", "--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--overlays", type=Path, help="write a few overlays here")
    parser.add_argument("--set", action="append", default=[], help="override a key of the job")
    parser.add_argument("--endpoint", action="store_true", help="use the AWS_* variables' server")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if not arguments.endpoint:
            stack.enter_context(_environment())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        prefix = f"{stack.enter_context(new_bucket('bench-segment'))}/images/"
        upload(arguments.images, prefix)
        job = {
            "kind": "segment",
            "images": prefix,
            "model": arguments.model,
            "output": f"{folder}/run",
            "limits": {"max_failed_fraction": 1.0},
        }
        run, figures = measure(segbatch.load_job(job, arguments.set))
        if arguments.overlays:
            write_overlays(run, arguments.overlays)
    show(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    with s3_server() as variables:
        os.environ.update(variables)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def upload(images: str, prefix: str) -> None:
    """Copy the images of a folder below ``prefix``."""
    for file in storage.list_files(images):
        if Path(file.uri).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS:
            data = storage.read_bytes(file.uri)
            storage.write_bytes(f"{prefix}{storage.name_of(file.uri)}", data)


def measure(job: Any) -> tuple[Run, dict[str, Any]]:
    """Run the job once; seconds are wall time, those of stages summed over workers."""
    start = time.perf_counter()
    run = segbatch.segment(job)
    wall = time.perf_counter() - start
    audit = run.audit(deep=True)
    info = run.info
    [started] = info.starts
    files = storage.list_files(storage.join(run.uri, "rows"))
    size = sum(file.size for file in files if file.uri.endswith(".parquet"))
    return run, {
        "date": date.today().isoformat(),
        "machine": f"{num_cores()} cores, {platform.processor() or platform.machine()}",
        "software": info.software,
        "model": info.model.model_dump(include={"arch", "backbone", "long_side", "sha256"}),
        "images": audit.rows,
        "rows": audit.rows,
        "failed": info.counts.failed,
        "audit_exit_code": audit.exit_code,
        "wall_s": round(wall, 1),
        "pipeline_wall_s": started.wall_s,
        "images_per_second": round(audit.rows / started.wall_s, 2),
        "stage_s": started.stage_s,
        "bytes_per_row": round(size / max(1, audit.rows)),
    }


def write_overlays(run: Run, folder: Path, count: int = 4) -> None:
    """Photograph and overlay side by side, of images spread over the run, 384 pixels high."""
    folder.mkdir(parents=True, exist_ok=True)
    ok = run.sql("SELECT image_id, uri FROM images WHERE status = 'ok' ORDER BY image_id").df()
    for position in np.linspace(0, len(ok) - 1, count).astype(int):
        image_id, uri = int(ok["image_id"][position]), str(ok["uri"][position])
        photo, mask = _picture(uri), run.mask(image_id)
        assert mask is not None
        parts = [photo, overlay(np.asarray(photo), mask, run.classes, 0.55)]
        sheet = Image.new("RGB", (2 * photo.width + 8, photo.height), "white")
        for index, part in enumerate(parts):
            sheet.paste(part, (index * (photo.width + 8), 0))
        sheet.thumbnail((10_000, 384))
        shares = np.bincount(mask.ravel(), minlength=len(run.classes))[: len(run.classes)]
        picture = with_legend(sheet, run.classes, shares / mask.size)
        picture.convert("RGB").save(folder / f"{image_id:04d}.jpg", quality=80)


def _picture(uri: str) -> Image.Image:
    from segbatch.images.decode import Decoded, decode_image

    image = decode_image(storage.read_bytes(uri), max_pixels=200_000_000, long_side=None)
    assert isinstance(image, Decoded)
    return Image.fromarray(image.pixels)


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"segment job, {figures['date']}, {figures['machine']}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in figures.items():
        if not isinstance(value, dict):
            table.add_row(key, str(value))
    for stage, seconds in figures["stage_s"].items():
        per_image = 1000 * seconds / max(1, figures["images"])
        table.add_row(f"{stage}, ms an image", f"{per_image:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
