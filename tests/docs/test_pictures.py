"""The pictures of the documents can be made anew, of what a demo leaves."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from segbatch import storage
from segbatch.demo.facades.facades import CLASSES, render_facade
from segbatch.labels.importing import import_labels
from segbatch.masks import encode_mask
from tests.scripts import script_of_docs
from tests.written_run import write_run


@pytest.fixture
def demo(tmp_path: Path, model_uri: str) -> Path:
    """The folders that a demo leaves, in small: its run is written by hand."""
    for number in range(12):
        scene = render_facade(number, 96)
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "JPEG")
        name = f"{number:04d}"
        storage.write_bytes(f"{tmp_path}/facades/{name}.jpg", buffer.getvalue())
        storage.write_bytes(f"{tmp_path}/annotated/images/{name}.jpg", buffer.getvalue())
        mask = encode_mask(scene.label_map, CLASSES.palette)
        storage.write_bytes(f"{tmp_path}/annotated/masks/{name}.png", mask)
    import_labels(
        str(tmp_path / "annotated"), str(tmp_path / "labels"),
        format="pairs", classes=",".join(CLASSES.names),
    )  # fmt: skip
    write_run(str(tmp_path / "run"), photos="s3://demo/facades")
    shutil.copytree(model_uri, tmp_path / "model")
    return tmp_path


@pytest.mark.long
def test_pictures_are_made_and_are_small(demo: Path, tmp_path: Path) -> None:
    if shutil.which("chromium") is None and shutil.which("chromium-browser") is None:
        pytest.skip("no chromium on PATH")
    script_of_docs("pictures").make(demo, tmp_path / "pictures")
    made = {path.name: path for path in (tmp_path / "pictures").iterdir()}
    assert set(made) == {"overlay.jpg", "sheet.jpg", "report.jpg", "browse.jpg"}
    for path in made.values():
        assert path.stat().st_size < 60_000
        with Image.open(path) as picture:
            colors = picture.convert("RGB").resize((64, 64)).quantize(64).getcolors()
            assert colors is not None
            assert max(number for number, _ in colors) < 64 * 64, "there is nothing in it"
