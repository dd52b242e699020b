"""The model of facades that comes with segbatch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segbatch.cli.main import app
from segbatch.config.training import FromBundle
from segbatch.demo.facades.facades import render_facade
from segbatch.masks.classes import Classes
from segbatch.model.bundle import bundle_sha256, fingerprint, load_config
from segbatch.model.predict import load_model
from segbatch.model.zoo import shipped_bundle
from segbatch.results.formulas import Formula
from segbatch.training.network import build_network
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

NAMES = ["balcony-fence", "car", "facade", "fence", "infrastructure", "shop", "street",
         "vegetation", "window"]  # fmt: skip


def test_it_knows_facades_and_fits_into_the_package() -> None:
    config = load_config("zoo:facades")
    assert config.classes.names == NAMES
    assert config.metrics["miou"] >= 0.52
    goals = {"window": 0.55, "facade": 0.74, "vegetation": 0.65, "street": 0.65}
    assert all(config.metrics["iou"][name] >= least for name, least in goals.items())
    folder = files("segbatch.model") / "facades"
    assert sum(file.stat().st_size for file in Path(str(folder)).iterdir()) < 12_000_000
    assert fingerprint("zoo:facades") == bundle_sha256(str(folder))


def test_it_sees_windows_in_a_facade_that_it_never_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)  # no network is asked
    scene = render_facade(3, 512)
    prediction = load_model("zoo:facades", "cpu").predict(scene.image)
    assert prediction.coverage["facade"] > 0.2
    assert prediction.coverage["window"] > 0.02


def test_its_card_has_licence_and_attribution() -> None:
    card = Path(str(shipped_bundle("zoo:facades")), "README.md").read_text()
    shown = CliRunner().invoke(app, ["model", "info", "zoo:facades"]).output
    for text in (card, shown):
        assert "CC BY 4.0" in text
        assert "a-hwang/building-facade-segmentation" in text
        assert "EfficientNet-Lite0 (Apache-2.0)" in text


def test_a_training_starts_from_it_and_keeps_the_classes_of_the_same_name() -> None:
    said: list[str] = []
    keys = FromBundle.model_validate({"from": "zoo:facades"})
    network, config = build_network(keys, Classes(["brick", "window"]), said.append)
    assert config.long_side == 512
    assert network.get_submodule(network.head_key).weight.shape[0] == 2
    assert "classes kept: window; new: brick" in said[0]


def test_the_formula_of_the_job_file_is_one_of_its_classes() -> None:
    text = (ROOT / "jobs" / "segment.yaml").read_text()
    [formula] = [line.partition("zoo:facades: ")[2] for line in text.splitlines()
                 if "for zoo:facades: " in line]  # fmt: skip
    assert Formula.parse("window_to_wall", formula, load_config("zoo:facades").classes)


def test_predict_draws_it_over_a_photograph(tmp_path: Path) -> None:
    scene = render_facade(4, 300)
    Image.fromarray(scene.image).save(tmp_path / "photo.jpg")
    out = tmp_path / "overlay.png"
    arguments = ["predict", str(tmp_path / "photo.jpg"), "--model", "zoo:facades", "-o", str(out)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert np.asarray(Image.open(out)).std() > 5
