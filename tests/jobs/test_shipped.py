"""Every job file that is shipped or printed in a page runs as it stands.

Only its URIs, the number of epochs and the number of images are replaced; weights that would have
to be downloaded become random ones. A new job file is found by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.demo.facades.facades import CLASSES
from segbatch.model.bundle import save_bundle
from segbatch.model.config import ModelConfig
from tests.collection import jpeg
from tests.films import film
from tests.labelled import labelled_dataset
from tests.model.conftest import BACKBONES, random_network

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = ("segment", "finetune", "evaluate")


def shipped() -> Iterator[tuple[str, str]]:
    """The place and the text of each job."""
    for path in sorted((ROOT / "jobs").rglob("*.yaml")):
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        if path.parent.name == "kuberay":
            maps = [d for d in yaml.safe_load_all(text) if d["kind"] == "ConfigMap"]
            yield from ((name, job) for entry in maps for job in entry["data"].values())
        else:
            yield name, text
    for page in PAGES:
        block = r"^```yaml\n(.*?)^```|<<'YAML'\n(.*?)^YAML"
        blocks = re.findall(block, page.read_text(), re.M | re.S)
        jobs = ["".join(block) for block in blocks]
        for number, job in enumerate(job for job in jobs if re.match(r"kind: ", job)):
            yield f"{page.relative_to(ROOT)} {number + 1}", job


JOBS = dict(shipped())


def by_kind(kind: str) -> list[str]:
    return [name for name, text in JOBS.items() if yaml.safe_load(text)["kind"] == kind]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a video, a labelled dataset, and a model of its classes."""
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "photos").mkdir()
    (folder / "drives").mkdir()
    for number in range(2):
        (folder / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    film(folder / "drives" / "street.mp4")
    labelled_dataset(str(folder / "labels"), train=4, val=1, long_side=96)
    network = random_network("deeplabv3plus", len(CLASSES))
    config = ModelConfig(
        "deeplabv3plus", BACKBONES["deeplabv3plus"], network.output_stride, CLASSES, long_side=96
    )
    save_bundle(str(folder / "model"), network, config)
    return folder


def run(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **replaced: Any
) -> Result:
    """Run a shipped job with the keys ``replaced``, dotted with ``__``."""
    monkeypatch.setenv("BUCKET", "bucket")
    (tmp_path / "job.yaml").write_text(JOBS[name])
    sets = [f"--set={key.replace('__', '.')}={value}" for key, value in replaced.items()]
    words = ["run", str(tmp_path / "job.yaml"), f"--set=output={tmp_path}/output", *sets]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_jobs_of_all_kinds_were_found() -> None:
    assert {kind: len(by_kind(kind)) for kind in KINDS} == {
        "segment": 6, "finetune": 7, "evaluate": 1
    }  # fmt: skip


@pytest.mark.usefixtures("ray_address")
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("jobs/segment.yaml", "docs/videos.md 1")
        else pytest.param(name, marks=pytest.mark.long)
        for name in by_kind("segment")
    ],
)
def test_a_shipped_segment_job_runs(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = yaml.safe_load(JOBS[name])["images"]
    where = {"images": f"{place}/photos/"}
    if isinstance(images, dict) and "video" in images:
        where = {"images__video": f"{place}/drives/"}
    done = run(name, place, tmp_path, monkeypatch, **where, model=place / "model",
               resources__device="cpu")  # fmt: skip
    assert re.search(r"status +complete", done.output)


@pytest.mark.usefixtures("ray_address")
@pytest.mark.parametrize("name", by_kind("evaluate"))
def test_a_shipped_evaluate_job_runs(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(name, place, tmp_path, monkeypatch, dataset=place / "labels", model=place / "model")
    assert (tmp_path / "output" / "metrics.json").exists()


@pytest.mark.long  # ResNet-50 and -101 at the papers' crops
@pytest.mark.usefixtures("ray_address")
@pytest.mark.parametrize("name", by_kind("finetune"))
def test_a_shipped_finetune_job_runs(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_size = yaml.safe_load(JOBS[name])["train"]["batch_size"]
    run(
        name,
        place,
        tmp_path,
        monkeypatch,
        dataset=place / "labels",
        model__backbone_weights="null",
        train__epochs=1,
        resources__device="cpu",
        resources__workers=1,  # for the memory of this machine; so are the parts of a batch
        resources__cpus_per_worker=2,
        train__accumulation=batch_size // 2,
    )
    assert (tmp_path / "output" / "model.safetensors").exists()
