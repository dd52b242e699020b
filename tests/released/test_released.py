"""Files that released versions wrote keep opening, resuming and auditing; write.py made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import segbatch
from segbatch import storage
from tests.conftest import S3
from tests.drivers import cli
from tests.runs import rows_of

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.iterdir() if (path / "finished").is_dir())
BUCKET = "released"


@pytest.fixture(scope="module", params=RELEASES)
def released(request: pytest.FixtureRequest, s3: S3) -> Iterator[str]:
    """The bucket as a release left it."""
    folder = HERE / request.param
    s3.client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.put(f"s3://{BUCKET}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield f"s3://{BUCKET}"
    storage.delete([file.uri for file in storage.list_files(f"s3://{BUCKET}")])
    s3.client.delete_bucket(Bucket=BUCKET)


def test_a_finished_run_opens_and_audits(released: str) -> None:
    run = segbatch.open_run(f"{released}/finished")
    assert run.status == "complete"
    audit = run.audit(deep=True)
    assert (audit.exit_code, audit.rows) == (0, 13)
    counts = run.sql("SELECT status, count(*) FROM images GROUP BY status ORDER BY status")
    assert counts.fetchall() == [("failed", 1), ("ok", 12)]
    mask = run.mask(0)
    assert mask is not None
    assert mask.shape == (64, 80)
    assert np.unique(mask).max() < len(run.classes)


def test_an_interrupted_run_resumes_and_equals_the_finished_one(
    released: str, ray_address: str, tmp_path: Path
) -> None:
    uri = f"{released}/interrupted"
    before = segbatch.open_run(uri)
    committed = before.sql("SELECT count(*) FROM images").fetchall()[0][0]
    assert 0 < committed < 13
    # Its driver's process is waited for if this machine has one of that number.
    storage.delete([f"{uri}/lease.json"])
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(before.info.job))
    done = cli("run", str(job), RAY_ADDRESS=ray_address, timeout=120)
    assert done.returncode == 0, done.stderr
    resumed, finished = segbatch.open_run(uri), segbatch.open_run(f"{released}/finished")
    assert resumed.audit(deep=True).exit_code == 0
    assert resumed.info.precision == before.info.precision
    assert resumed.info.engine == "torch"
    same = ["image_id", "uri", "status", "error", "width", "height", "pixels", "components"]
    assert rows_of(resumed).select(same).equals(rows_of(finished).select(same))


def test_a_model_loads_and_predicts_what_the_run_holds(released: str, tmp_path: Path) -> None:
    model = segbatch.load_model(f"{released}/model", precision="fp32")
    run = segbatch.open_run(f"{released}/finished")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(storage.read_bytes(f"{released}/photos/00.jpg"))
    with Image.open(photo) as image:
        prediction = model.predict(image.convert("RGB"))
    stored = run.mask(0)
    assert stored is not None
    assert (prediction.mask == stored).mean() > 0.9999


def test_a_dataset_can_be_trained_on(released: str) -> None:
    dataset = f"{released}/dataset"
    checked = cli("labels", "check", dataset)
    assert checked.returncode == 0, checked.stderr
    facts = json.loads(cli("labels", "check", dataset, "--format", "json").stdout)
    assert facts["errors"] == 0
    assert sum(facts["images"].values()) == 12


def test_a_finished_training_is_left_as_it_is(released: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    trained = json.loads((HERE / RELEASES[-1] / "model" / "run.json").read_text())
    job.write_text(yaml.safe_dump(trained["job"]))
    again = cli("run", str(job), timeout=120)
    assert again.returncode == 0, again.stderr
