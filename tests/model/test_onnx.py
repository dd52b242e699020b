"""Bundles as ONNX files: their results in onnxruntime, and their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segbatch.errors import InputError, JobFailed, ModelError
from segbatch.model import networks
from segbatch.model import onnx as exporter
from segbatch.model.bundle import bundle_sha256, load_bundle, save_bundle
from segbatch.model.config import ModelConfig
from segbatch.model.onnx import RawImageNetwork, export_onnx
from segbatch.model.predict import load_model
from tests.drivers import cli
from tests.model.conftest import BACKBONES, CLASSES, picture, random_network

MEAN, STD = (0.45, 0.5, 0.4), (0.2, 0.25, 0.3)  # not the usual ones


@pytest.fixture(
    scope="module", params=["deeplabv3plus", pytest.param("deeplabv3", marks=pytest.mark.long)]
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of each architecture."""
    uri = str(tmp_path_factory.mktemp("models") / request.param)
    network = random_network(request.param)
    config = ModelConfig(
        request.param, BACKBONES[request.param], network.output_stride, CLASSES,
        mean=MEAN, std=STD, long_side=320,
    )  # fmt: skip
    save_bundle(uri, network, config)
    return uri


@pytest.fixture(scope="module")
def exported(bundle: str) -> str:
    """The file, as the command writes it."""
    file = f"{bundle}.onnx"
    ended = cli("model", "export", bundle, "--to", "onnx", "-o", file, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"{file}: onnx; on random images logits differ by ")
    return file


@pytest.fixture(scope="module")
def session(exported: str) -> Any:
    return onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(64, 64), (131, 77), (1, 300), (200, 129)])
def test_the_largest_logit_is_the_class_that_the_model_predicts(
    session: Any, bundle: str, size: tuple[int, int]
) -> None:
    photo = picture(*size, seed=3)
    [logits] = session.run(None, {"image": photo[None]})
    assert (logits.dtype, logits.shape) == (np.float32, (1, len(CLASSES), *size))
    mask = load_model(bundle).predict(photo).mask
    assert (logits[0].argmax(0) != mask).mean() < 1e-3
    assert len(np.unique(mask)) > 1 or size[0] == 1, "a picture in which something is seen"


def test_images_go_through_in_batches_of_any_number(session: Any) -> None:
    photos = np.stack([picture(90, 130, seed) for seed in range(5)])
    [together] = session.run(None, {"image": photos})
    for photo, logits in zip(photos, together, strict=True):
        [alone] = session.run(None, {"image": photo[None]})
        np.testing.assert_allclose(logits, alone[0], atol=1e-4)


def test_the_parity_is_near_and_not_that_of_a_network_that_has_moved(
    exported: str, bundle: str
) -> None:
    network, config = load_bundle(bundle)
    content = Path(exported).read_bytes()
    parity = exporter._compared(RawImageNetwork(network, config).eval(), content)
    assert parity.difference < 1e-5
    assert parity.equal > 0.9999
    with torch.no_grad():
        network.get_submodule(network.head_key).bias[0] += 0.5
    parity = exporter._compared(RawImageNetwork(network, config).eval(), content)
    assert parity.difference > exporter.MAX_DIFFERENCE
    assert parity.equal < exporter.MIN_EQUAL


def test_the_file_says_what_goes_in_what_comes_out_and_of_which_model(
    session: Any, bundle: str
) -> None:
    [image], [logits] = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", "height", "width", 3]
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape == ["batch", len(CLASSES), "height", "width"]
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == CLASSES.to_json()
    assert json.loads(said["long_side"]) == 320
    assert (json.loads(said["mean"]), json.loads(said["std"])) == (list(MEAN), list(STD))
    assert (said["model"], said["sha256"]) == (bundle, bundle_sha256(bundle))
    assert said["input"].startswith("image: RGB, uint8")


def test_the_file_is_valid_and_of_an_opset_that_runtimes_have(exported: str) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.long
def test_a_file_that_predicts_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = networks.build("deeplabv3plus", "tu-test_resnet", len(CLASSES), 8)
    config = ModelConfig("deeplabv3plus", "tu-test_resnet", 8, CLASSES)
    save_bundle(str(tmp_path / "small"), network, config)
    monkeypatch.setattr(exporter, "MAX_DIFFERENCE", 0.0)  # what rounding alone exceeds
    with pytest.raises(JobFailed, match="as ONNX it predicts something else: logits differ by"):
        export_onnx(str(tmp_path / "small"), str(tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        export_onnx(str(tmp_path), str(tmp_path / "model.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "REQUIRED", ("onnx", "onnx_of_nobody"))
    with pytest.raises(InputError, match=r"onnx_of_nobody: not installed; pip .*segbatch\[onnx\]"):
        export_onnx(str(tmp_path), str(tmp_path / "model.onnx"))
