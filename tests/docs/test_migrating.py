"""docs/migrating.md: its imports read what the other projects' data sets look like, and its jobs
are jobs.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.config.job import FinetuneJob, load_kind
from segbatch.labels.dataset import open_dataset
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "migrating.md").read_text()
IMPORTS = re.findall(r"`(segbatch labels import (?!hf:)[^`]+)`", PAGE)

# Images, masks, number of classes: paths as the projects lay them out, {} is a name.
LAYOUTS = [
    ("VOCdevkit/VOC2012/JPEGImages/{}.jpg", "VOCdevkit/VOC2012/SegmentationClass/{}.png", 21),
    *(
        (
            f"cityscapes/leftImg8bit/{split}/ulm/{{}}_leftImg8bit.png",
            f"cityscapes/gtFine/{split}/ulm/{{}}_gtFine_labelTrainIds.png",
            19,
        )
        for split in ("train", "val")
    ),
    *(
        (
            f"ADEChallengeData2016/images/{split}/{{}}.jpg",
            f"ADEChallengeData2016/annotations/{split}/{{}}.png",
            151,
        )
        for split in ("training", "validation")
    ),
    *(
        (f"data/own/img_dir/{split}/{{}}.jpg", f"data/own/ann_dir/{split}/{{}}.png", 4)
        for split in ("train", "val")
    ),
    ("Training/Images/{}.jpg", "Training/Category_ids/{}.png", 20),
    ("VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClassAug/{}.png", 21),
    ("dataset1/images_prepped_train/{}.png", "dataset1/annotations_prepped_train/{}.png", 3),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for number, (images, masks, num_classes) in enumerate(LAYOUTS):
        for name in (f"{number}a", f"{number}b"):
            ids = rng.integers(0, num_classes, (20, 30), np.uint8)
            mask = Image.fromarray(np.dstack([ids] * 3) if num_classes == 3 else ids)
            if "SegmentationClass/" in masks:
                mask.putpalette(VOC_PALETTE)
            photo = Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8))
            for path, image in ((images, photo), (masks, mask)):
                file = folder / path.format(name)
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
    lists = folder / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0a\n")
    (lists / "val.txt").write_text("0b\n")
    (folder / "splits.txt").write_text("JPEGImages/8a.jpg train\nJPEGImages/8b.jpg val\n")
    (folder / "colors.txt").write_text("0 0 0 sky\n1 1 1 wall\n2 2 2 window\n")
    return folder


# Colour c of VOC: its bits, three by three, from the highest bit of each channel down.
VOC_PALETTE = [
    sum((c >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
    for c in range(256)
    for channel in range(3)
]


@pytest.mark.parametrize("command", IMPORTS)
def test_imports_read_what_the_others_read(
    reader: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)
    words = shlex.split(command)[1:]
    words[3] = f"{tmp_path}/{words[3]}"  # of two projects both are labels/voc
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (command, done.output, done.exception)
    assert "Nothing was left out" in done.output
    num_images = sum(shard.rows for shard in open_dataset(words[3]).shards)
    assert num_images == 2 * sum(images.startswith(f"{words[2]}/") for images, _, _ in LAYOUTS)


def test_all_imports_of_the_page_were_found() -> None:
    assert len(IMPORTS) == 7


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
def test_its_jobs_are_jobs(text: str) -> None:
    assert load_kind(yaml.safe_load(text), FinetuneJob).train.augment.color_jitter == 0
