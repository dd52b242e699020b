"""Engines and precisions of whole jobs: settled once, the same for every worker and resume."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segbatch import storage
from segbatch.config.job import Predict, SegmentJob, load_kind
from segbatch.errors import InputError, RunError
from segbatch.jobs.evaluate import evaluate
from segbatch.jobs.preflight import Sizes, prepare
from segbatch.jobs.runstate import RunState
from segbatch.jobs.segment import segment
from segbatch.model.bundle import bundle_sha256
from segbatch.model.engine import EngineChoice
from segbatch.model.predict import load_model
from segbatch.results.lease import Lease
from segbatch.run import Run
from tests.collection import jpeg
from tests.conftest import job
from tests.jobs.test_evaluate import dataset_of, row, work

FP32 = EngineChoice("openvino", "fp32")


def state_of(run: str) -> RunState:
    state = RunState.read(run)
    assert state is not None
    return state


@pytest.fixture(scope="module")
def int8_run(
    ray_address: str, collection: Path, model_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    output = str(tmp_path_factory.mktemp("int8") / "run")
    return segment(job(f"{collection}/", model_uri, output, predict={"precision": "int8"}))


def test_a_run_in_int8_calibrates_a_model_of_its_own(int8_run: Run, model_uri: str) -> None:
    info = int8_run.info
    assert (info.engine, info.precision) == ("openvino", "int8")
    assert info.quantized == bundle_sha256(f"{int8_run.uri}/int8")
    model = load_model(f"{int8_run.uri}/int8", "cpu")
    assert model.config.provenance["quantized_from"] == model_uri
    assert info.counts.ok > 0
    notes = [json.loads(line) for line in _first_commit(int8_run).splitlines()]
    assert any(note.get("commitInfo", {}).get("quantized") == info.quantized for note in notes)


def _first_commit(run: Run) -> str:
    entries = sorted(Path(run.uri, "rows", "_delta_log").glob("*.json"))
    return next(text for text in (entry.read_text() for entry in entries) if '"add"' in text)


def test_a_start_with_another_model_in_int8_is_refused(int8_run: Run, tmp_path: Path) -> None:
    copy = str(shutil.copytree(int8_run.uri, tmp_path / "run"))
    state = state_of(copy)
    with Lease(copy, print) as lease:
        ledger = state.open_ledger(_schema(state), lease.driver)
        state.keep_quantized(ledger)
        weights = Path(copy, "int8", "model.bin")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        with pytest.raises(RunError, match="is not the model that the run began with"):
            state.keep_quantized(ledger)


def _schema(state: RunState) -> Any:
    work = load_kind(state.info.job, SegmentJob)
    return state.schema(work, prepare(work).config.classes)


def test_what_a_first_start_settled_holds_for_the_next_ones(int8_run: Run, tmp_path: Path) -> None:
    copy = str(shutil.copytree(int8_run.uri, tmp_path / "run"))
    state = state_of(copy)
    old = state.info.model_copy(update={"engine": None, "precision": "bf16"})
    new = state.info.model_copy(update={"engine": None, "precision": None})
    with Lease(copy, print) as lease:
        ledger = state.open_ledger(_schema(state), lease.driver)
        for info, expected in ((old, EngineChoice("torch", "bf16")), (new, FP32)):
            state.info = info
            sizes = Sizes(6, 6)
            assert state.begin_start(ledger, "cpu", FP32, workers="1", sizes=sizes) == expected
            written = storage.read_bytes(f"{copy}/run.json")
            assert json.loads(written)["engine"] == expected.engine


def test_another_engine_needs_another_output(int8_run: Run) -> None:
    work = dict(int8_run.info.job)
    work["predict"] = Predict(engine="torch").model_dump(mode="json")
    with pytest.raises(RunError, match=r"predict\.engine was auto and is torch now"):
        segment(work)


@pytest.fixture(scope="module")
def predicted(model_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A labelled dataset whose truth is what the model predicts in fp32."""
    model = load_model(model_uri, "cpu")
    photos = [jpeg(seed) for seed in range(4)]
    truth = [model.predict(Image.open(io.BytesIO(data))).mask for data in photos]
    rows = [row(i, data, mask) for i, (data, mask) in enumerate(zip(photos, truth, strict=True))]
    uri = str(tmp_path_factory.mktemp("labels") / "labels")
    return dataset_of(uri, rows[:3], rows[3:], classes=model.classes)


def check_cost(metrics: dict[str, Any], model_uri: str, said: str) -> None:
    """That the metrics are of the model in int8, with what that costs."""
    assert (metrics["engine"], metrics["precision"]) == ("openvino", "int8")
    assert metrics["quantized_from"]["uri"] == model_uri
    assert metrics["quantized_from"]["miou"] > 0.99  # the truth is what that model predicts
    cost = metrics["quantized_from"]["miou"] - metrics["miou"]
    assert cost > 0.01  # random weights magnify every error
    assert metrics["quantized_from"]["cost"] == pytest.approx(cost)
    assert f"int8 costs {cost:.4f} mIoU" in said


@pytest.mark.long
def test_an_evaluation_of_a_model_in_int8_says_what_it_costs(
    int8_run: Run,
    predicted: str,
    model_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = evaluate(work(predicted, f"{int8_run.uri}/int8", str(tmp_path / "out")))
    check_cost(metrics, model_uri, capsys.readouterr().err)


@pytest.mark.long
def test_an_evaluation_in_int8_calibrates_a_model_of_its_own(
    predicted: str,
    model_uri: str,
    tmp_path: Path,
    ray_address: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "out")
    metrics = evaluate(work(predicted, model_uri, output, predict={"precision": "int8"}))
    check_cost(metrics, model_uri, capsys.readouterr().err)
    assert metrics["model"]["sha256"] == bundle_sha256(model_uri)
    model = load_model(f"{output}/int8", "cpu")
    assert (model.precision, model.config.provenance["calibration_images"]) == ("int8", 4)


def test_a_job_says_at_once_that_int8_needs_nncf(
    collection: Path, model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segbatch.model.quantize.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"int8 needs NNCF: pip install 'segbatch\[int8\]'"):
        segment(
            job(f"{collection}/", model_uri, str(tmp_path / "run"), predict={"precision": "int8"})
        )
    assert not (tmp_path / "run").exists()
