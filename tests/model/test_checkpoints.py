"""Weights as people have them: each library's files are recognised, and become bundles."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision.models

from benchmarks.originals.fill import fill, picture
from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model import networks
from segbatch.model.bundle import load_bundle
from segbatch.model.checkpoints import Known, import_model, mmsegmentation
from segbatch.model.checkpoints import smp as of_smp
from segbatch.model.checkpoints import transformers as of_transformers
from segbatch.model.checkpoints.checkpoint import Candidate, Checkpoint
from segbatch.model.checkpoints.mmsegmentation import parse_config
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network

pytestmark = pytest.mark.unit

NAMES = ["wall", "window", "door"]
NOTHING, NAMED = Known(), Known(classes=Classes(NAMES))
PALETTE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]

MMSEG_CONFIG = """
norm_cfg = dict(requires_grad=True, type='SyncBN')
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    type='SegDataPreProcessor')
model = dict(
    backbone=dict(type='MobileNetV2', strides=(1, 2, 2, 2, 1, 1, 1),
        dilations=(1, 1, 1, 1, 1, 2, 2), norm_cfg=norm_cfg),
    data_preprocessor=data_preprocessor,
    decode_head=dict(align_corners=True, dilations=(1, 6, 12, 18)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(2048, 1024), type='Resize')]
"""


def mmsegmentation_network() -> Network:
    network = networks.build(
        "deeplabv3plus",
        "mobilenet_v2",
        3,
        16,
        library="mmsegmentation",
        options={"align_corners": True},
        auxiliary=True,
    )
    fill(network)
    return network.eval()


def mmsegmentation_candidate(
    config: str, backbone: str = "resnet50_v1c", known: Known = NOTHING, **values: torch.Tensor
) -> Candidate:
    """What a checkpoint with the text of a configuration is recognised as, without its weights but
    for ``values``.
    """
    with torch.device("meta"):
        network = networks.build("deeplabv3", backbone, 3, 8, library="mmsegmentation")
    saved = {"meta": {"cfg": config}}
    state = network.state_dict() | values
    candidate = mmsegmentation.recognise(Checkpoint("a.pth", ".", state, saved, ""), known)
    assert candidate is not None
    return candidate


def imported(source: Path, tmp_path: Path, known: Known = NOTHING) -> tuple[Network, ModelConfig]:
    import_model(str(source), str(tmp_path / "bundle"), known)
    return load_bundle(str(tmp_path / "bundle"))


@pytest.fixture
def history_buffer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class under the name of MMEngine's, which names its methods as that does."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.methods = {"mean": self.mean}

        @classmethod
        def mean(cls) -> float:
            return 0.0

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer()


def test_a_checkpoint_of_mmsegmentation_brings_its_classes_and_configuration(
    tmp_path: Path, history_buffer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    network = mmsegmentation_network()
    saved = {
        "meta": {"cfg": MMSEG_CONFIG, "dataset_meta": {"classes": NAMES, "palette": PALETTE}},
        "state_dict": network.state_dict(),
        "message_hub": {"log_scalars": {"train/loss": history_buffer}},
    }
    torch.save(saved, tmp_path / "iter_10.pth")
    found, config = imported(tmp_path / "iter_10.pth", tmp_path)
    assert "DeepLabV3+ of MMSegmentation on mobilenet_v2, 3 classes" in capsys.readouterr().err
    assert (config.arch, config.backbone, config.library) == (
        "deeplabv3plus",
        "mobilenet_v2",
        "mmsegmentation",
    )
    assert (config.output_stride, config.long_side) == (16, 1365)
    assert config.classes.names == NAMES
    assert [c.color for c in config.classes] == [tuple(color) for color in PALETTE]
    assert config.mean == pytest.approx((0.485, 0.456, 0.406))
    assert config.std == pytest.approx((0.229, 0.224, 0.225))
    assert found.align_corners
    with torch.inference_mode():
        expected = network.coarse(picture(65, 97))
        assert torch.equal(found.coarse(picture(65, 97)), expected)
    assert not any(key.startswith("auxiliary_head") for key in found.state_dict())


@pytest.mark.parametrize(
    ("step", "long_side", "note"),
    [
        ("dict(type='Resize', scale=(2048, 512), keep_ratio=True)", 683, "scale=(2048, 512)"),
        ("dict(type='Resize', scale=(512, 2048), keep_ratio=True)", 683, "scale=(512, 2048)"),
        ("dict(type='Resize', scale=[640, 600], keep_ratio=True)", 640, "scale=(640, 600)"),
        ("dict(type='Resize', scale=(2048, 512))", 2048, None),  # to exactly that size
        (
            "dict(type='MultiScaleFlipAug', img_scale=(2048, 512), transforms=[dict(type='Pad')])",
            683,
            "img_scale=(2048, 512)",
        ),
    ],
)
def test_the_scale_of_mmsegmentation_limits_both_sides(
    step: str, long_side: int, note: str | None
) -> None:
    candidate = mmsegmentation_candidate(f"test_pipeline = [{step}]")
    assert candidate.long_side == long_side
    assumed = (
        f"{note}: taken as a longer side of {long_side} pixels, which is right for photographs"
    )
    assert any(line.startswith(assumed) for line in candidate.notes) == (note is not None)
    known = Known(long_side=900)
    notes = mmsegmentation_candidate(f"test_pipeline = [{step}]", known=known).notes
    assert "4:3" not in "".join(notes)


RESNET = "backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)"
MEAN = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"


@torch.inference_mode()
def test_a_network_that_was_trained_on_bgr_gives_the_same_for_rgb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = mmsegmentation_network()
    config = MMSEG_CONFIG.replace("bgr_to_rgb=True", "bgr_to_rgb=False")
    torch.save({"meta": {"cfg": config}, "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    ours, found = imported(tmp_path / "a.pth", tmp_path, NAMED)
    expected = theirs.coarse(picture(65, 97).flip(1))
    # Sums are taken in another order.
    difference = (ours.coarse(picture(65, 97)) - expected).abs().max()
    assert difference / expected.abs().max() < 1e-4
    assert found.mean == pytest.approx((0.406, 0.456, 0.485))
    assert found.std == pytest.approx((0.225, 0.224, 0.229))
    assert "it was trained on BGR; its first layer is changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbone", "stem"),
    [
        ("resnet50", "backbone.conv1.weight"),
        ("resnet50_v1c", "backbone.stem.0.weight"),
        ("mobilenet_v2", "backbone.conv1.conv.weight"),
    ],
)
@pytest.mark.parametrize(
    ("text", "is_bgr"),
    [
        (f"data_preprocessor = dict({MEAN}, bgr_to_rgb=False)", True),
        (f"data_preprocessor = dict({MEAN})", True),
        (f"data_preprocessor = dict({MEAN}, bgr_to_rgb=True)", False),
        (f"data_preprocessor = dict({MEAN}, rgb_to_bgr=True)", False),
        (f"_base_ = 'a.py'\ndata_preprocessor = dict({MEAN})", False),
        (f"img_norm_cfg = dict({MEAN}, to_rgb=False)", True),
        (f"img_norm_cfg = dict({MEAN})", False),
        ("model = dict()", False),
    ],
)
def test_the_order_of_colours_is_the_configurations(
    backbone: str, stem: str, text: str, is_bgr: bool
) -> None:
    weight = torch.arange(3.0).reshape(1, 3, 1, 1)
    candidate = mmsegmentation_candidate(text, backbone, **{stem: weight})
    assert torch.equal(candidate.state[stem], weight.flip(1) if is_bgr else weight)
    if "mean" in text:
        mean = (0.485, 0.456, 0.406)
        assert candidate.mean == pytest.approx(mean[::-1] if is_bgr else mean)
    is_assumed = "the normalisation of ImageNet is assumed; --mean and --std set others"
    assert (is_assumed in candidate.notes) == ("mean" not in text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(1, 1, 2, 4)", "(1, 1, 1, 1)", r"has dilations=\(1, 1, 1, 1\) in the backbone.*MMDeploy"),
        (", dilations=(1, 1, 2, 4)", "", r"has dilations=\(1, 1, 1, 1\) in the backbone"),
        ("=True", "=False", "has contract_dilation=False in the backbone, and segbatch has True"),
        (", contract_dilation=True", "", "has contract_dilation=False in the backbone"),
        ("=True", "=True, style='caffe'", "has style=caffe in the backbone"),
        ("(1, 2, 1, 1)", "(1, 2, 2, 2)", "has output stride 8 or 16, not 32"),
    ],
)
def test_a_backbone_of_mmsegmentation_that_computes_otherwise_is_refused(
    old: str, new: str, message: str
) -> None:
    mmsegmentation_candidate(f"model = dict({RESNET})")
    with pytest.raises(ModelError, match=message) as refused:
        mmsegmentation_candidate(f"model = dict({RESNET.replace(old, new)})")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "keys", "message"),
    [
        ("backbone", "act_cfg=dict(type='SiLU')", "has act_cfg of type SiLU in the backbone"),
        ("decode_head", "act_cfg=dict(type='GELU')", "in the decode_head, and segbatch has ReLU"),
        ("decode_head", "act_cfg=None", "has act_cfg of type None in the decode_head"),
        ("decode_head", "conv_cfg=dict(type='ConvWS')", "and segbatch has Conv2d: export it"),
        (
            "backbone",
            "norm_cfg=dict(type='BN')), decode_head=dict(norm_cfg=dict(type='BN', eps=0.1)",
            "has one eps in the norm_cfg of",
        ),
    ],
)
def test_layers_of_mmsegmentation_that_compute_otherwise_are_refused(
    part: str, keys: str, message: str
) -> None:
    text = f"_base_ = 'a.py'\nmodel = dict({part}=dict({keys}))"
    with pytest.raises(ModelError, match=re.escape(message)):
        mmsegmentation_candidate(text)
    built = "act_cfg=dict(type='ReLU'), conv_cfg=None, norm_cfg=dict(type='SyncBN', eps=1e-5)"
    assert "norm_eps" not in mmsegmentation_candidate(text.replace(keys, built)).options


@pytest.mark.parametrize(
    "text",
    [
        "_base_ = 'a.py'\nmodel = dict(decode_head=dict(norm_cfg=dict(type='BN', eps=0.1)))",
        "n = dict(type='BN', eps=0.1)\n"
        "model = dict(backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),"
        " contract_dilation=True, norm_cfg=n), decode_head=dict(norm_cfg=n))",
    ],
)
def test_the_eps_that_is_known_is_that_of_all_batch_norms(text: str) -> None:
    assert mmsegmentation_candidate(text).options["norm_eps"] == 0.1


@pytest.mark.parametrize(
    ("text", "mean", "long_side"),
    [
        # MMEngine takes a variable only where the field that it stands for is missing.
        (
            f"data_preprocessor = dict({MEAN}, bgr_to_rgb=True)\n"
            "model = dict(data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255],"
            " bgr_to_rgb=True))",
            0.0,
            None,
        ),
        (
            "img_norm_cfg = dict(mean=[0, 0, 0], std=[1, 1, 1])\n"
            f"data = dict(test=dict(pipeline=[dict(type='MultiScaleFlipAug', img_scale=(999, 512),"
            f" transforms=[dict(type='Normalize', {MEAN}, to_rgb=True)])]))",
            0.485,
            683,
        ),
        (
            "test_pipeline = [dict(type='Resize', scale=(2048, 1024), keep_ratio=True)]\n"
            "test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(1024, 512),"
            " keep_ratio=True)]))",
            None,
            683,
        ),
    ],
)
def test_the_value_that_is_used_counts_and_not_the_variable(
    text: str, mean: float | None, long_side: int | None
) -> None:
    candidate = mmsegmentation_candidate(text)
    assert (candidate.mean or [None])[0] == (None if mean is None else pytest.approx(mean))
    assert candidate.long_side == long_side


def test_a_network_that_was_tested_in_crops_says_how_to_do_the_same() -> None:
    text = "model = dict(test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))"
    notes = "\n".join(mmsegmentation_candidate(text).notes)
    assert "predict: {tile: {size: 769, overlap: 256}}" in notes
    assert "crops" not in "".join(mmsegmentation_candidate("model = dict()").notes)


@torch.inference_mode()
def test_batch_norms_have_the_eps_of_the_configuration(tmp_path: Path) -> None:
    theirs = mmsegmentation_network()
    norms = [m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eps = 0.01
    config = MMSEG_CONFIG.replace("SyncBN'", "SyncBN', eps=0.01").replace(
        "align_corners=True", "align_corners=True, norm_cfg=norm_cfg"
    )
    torch.save({"meta": {"cfg": config}, "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    ours, _ = imported(tmp_path / "a.pth", tmp_path, NAMED)
    assert torch.equal(ours.coarse(picture(65, 97)), theirs.coarse(picture(65, 97)))


def test_what_a_configuration_has_in_another_file_is_assumed_and_said() -> None:
    candidate = mmsegmentation_candidate("_base_ = 'a.py'\nmodel = dict(backbone=dict(depth=50))")
    assert candidate.output_stride == 8
    notes = "\n".join(candidate.notes)
    assert "it builds on others (_base_), which are not read" in notes
    assert "output stride 8 is assumed; --output-stride sets another" in notes


def test_the_head_of_a_whole_configuration_has_the_dilations_of_mmsegmentation() -> None:
    text = f"model = dict({RESNET}, decode_head=dict(align_corners=False))"
    assert mmsegmentation_candidate(text).options == {"aspp_dilations": [1, 6, 12, 18]}


@pytest.mark.parametrize("stride", [4, 32])
def test_an_output_stride_that_mmsegmentation_does_not_have_is_refused(stride: int) -> None:
    with pytest.raises(ModelError, match=f"has output stride 8 or 16, not {stride}"):
        mmsegmentation_candidate("x = 1", known=Known(output_stride=stride))


def test_an_old_checkpoint_of_mmsegmentation_takes_the_configuration_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"module.{k}": v for k, v in mmsegmentation_network().state_dict().items()}
    torch.save({"meta": {"CLASSES": tuple(NAMES)}, "state_dict": state}, tmp_path / "old.pth")
    found, config = imported(tmp_path / "old.pth", tmp_path)
    assert not found.align_corners
    assert config.output_stride == 8
    assert "no configuration with it" in capsys.readouterr().err
    (tmp_path / "old.py").write_text(MMSEG_CONFIG)
    found, config = imported(tmp_path / "old.pth", tmp_path)
    assert found.align_corners
    assert config.output_stride == 16
    (tmp_path / "old.py").write_text("_base_ = '../a.py'\n")
    with pytest.raises(ModelError, match=r"has no `model = dict\(…\)` of literals.*work_dir"):
        imported(tmp_path / "old.pth", tmp_path)


def test_another_network_of_mmsegmentation_is_named(tmp_path: Path) -> None:
    state = mmsegmentation_network().state_dict()
    no_aspp = {k: v for k, v in state.items() if "aspp" not in k}
    torch.save({"state_dict": no_aspp}, tmp_path / "fcn.pth")
    with pytest.raises(ModelError, match=r"another head than segbatch has.*MMDeploy"):
        imported(tmp_path / "fcn.pth", tmp_path)


def test_a_configuration_is_read_and_not_run(tmp_path: Path) -> None:
    text = (
        f"import os\nmark = os.mkdir({str(tmp_path / 'ran')!r})\n"
        "base = dict(a=(1, 2))\nmodel = dict(base=base, b=[1.5, -2], c={'d': None})\nx = f(1)\n"
    )
    assert parse_config(text) == {
        "base": {"a": (1, 2)},
        "model": {"base": {"a": (1, 2)}, "b": [1.5, -2], "c": {"d": None}},
    }
    assert not (tmp_path / "ran").exists()
    assert parse_config("not python (") == {}


class Reached:
    """Reaches an attribute of a module when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (Reached, "found")

    found = "reached"


def test_getattr_in_a_checkpoint_reaches_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": getattr}, tmp_path / "a.pth")
    from segbatch.model.weights import decode_checkpoint

    saved, _ = decode_checkpoint((tmp_path / "a.pth").read_bytes(), "a.pth")
    assert saved["x"](torch, "save") is None
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Reached()}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match="could run code"):
        decode_checkpoint((tmp_path / "b.pth").read_bytes(), "b.pth")
    assert pickle.loads(pickle.dumps(Reached())) == "reached"


def segformer(**keys: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, **keys
    )
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    fill(network)
    return network


@torch.inference_mode()
def test_a_segformer_of_transformers_gives_what_it_gave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = segformer()
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": {"height": 640}}
        )
    )
    capsys.readouterr()
    ours, config = imported(tmp_path / "hf", tmp_path)
    told = capsys.readouterr().err
    assert "SegFormer of transformers on mit_b0, 3 classes" in told
    assert "not for commercial use" in told
    assert config.classes.names == NAMES
    assert (config.mean, config.long_side) == ((0.5, 0.4, 0.3), 640)
    for size in ((64, 96), (128, 32)):
        expected = theirs(picture(*size)).logits
        torch.testing.assert_close(ours.coarse(picture(*size)), expected, rtol=1e-4, atol=1e-4)
    full = torch.nn.functional.interpolate(expected, (128, 32), mode="bilinear")
    torch.testing.assert_close(ours(picture(128, 32)), full, rtol=1e-4, atol=1e-4)
    # The same network in memory has the names of transformers 5, in files those of before.
    torch.save({"model": theirs.state_dict()}, tmp_path / "sf.pth")
    again, _ = imported(tmp_path / "sf.pth", tmp_path, NAMED)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize(
    ("processor", "long_side"),
    [
        ({"size": {"shortest_edge": 513}}, 684),
        ({"size": {"shortest_edge": 513, "longest_edge": 600}}, 600),
        ({"size": 513, "image_processor_type": "MobileNetV2ImageProcessor"}, 684),
        ({"size": 512, "feature_extractor_type": "SegformerFeatureExtractor"}, 512),
        ({"size": {"height": 512, "width": 640}}, 640),
        ({"size": {"shortest_edge": 513}, "do_resize": False}, None),
    ],
)
def test_the_shortest_edge_of_transformers_is_the_shorter_side(
    tmp_path: Path, processor: dict[str, Any], long_side: int | None
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with torch.device("meta"):
        state = segformer().state_dict()
    checkpoint = Checkpoint("a.safetensors", str(tmp_path), state, state, "")
    candidate = of_transformers.recognise(checkpoint, NOTHING)
    assert candidate is not None
    assert candidate.long_side == long_side
    is_assumed = long_side in (684, 600)
    assert ("4:3; --long-side sets another" in "".join(candidate.notes)) == is_assumed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [0.9, 1.0, 1.1]},
        {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": 58.0},
    ],
)
def test_pixels_are_normalised_as_the_processor_of_transformers_does(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.SegformerImageProcessor(do_resize=False, **options)
    segformer().save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    capsys.readouterr()
    _, config = imported(tmp_path / "hf", tmp_path)
    off = [key for key in ("do_rescale", "do_normalize") if options.get(key) is False]
    said = " and ".join(f"{key}: false" for key in off)
    assert (f"its processor has {said}: taken are mean" in capsys.readouterr().err) == bool(off)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    # Without do_rescale it takes pixels from 0 to 1, unless its mean is of others.
    is_up_to_1 = "do_rescale" in off and "image_mean" not in options
    given = (pixels / 255).astype(np.float32) if is_up_to_1 else pixels
    theirs = processor(given, return_tensors="np")["pixel_values"][0]
    ours = (pixels / 255 - config.mean) / config.std
    np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs, rtol=1e-4, atol=1e-3)


def test_a_segformer_of_other_sizes_is_refused(tmp_path: Path) -> None:
    segformer(depths=[1, 1, 1, 1]).save_pretrained(tmp_path / "hf")
    with pytest.raises(ModelError, match="other sizes than b0 to b5"):
        imported(tmp_path / "hf", tmp_path)


@torch.inference_mode()
@pytest.mark.parametrize(("stride", "padding"), [(16, True), (32, False)])
def test_a_mobilenet_of_transformers_gives_what_it_gave(
    tmp_path: Path, stride: int, padding: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        num_labels=3, output_stride=stride, tf_padding=padding, depth_multiplier=0.5
    )
    theirs = transformers.MobileNetV2ForSemanticSegmentation(config).eval()
    fill(theirs)
    theirs.save_pretrained(tmp_path / "hf")
    ours, found = imported(tmp_path / "hf", tmp_path, NAMED)
    assert (found.library, found.output_stride) == ("transformers", stride)
    processor = transformers.MobileNetV2ImageProcessor()
    assert (found.mean, found.std) == (processor.image_mean, processor.image_std)
    assert "no preprocessor_config.json with it: taken are" in capsys.readouterr().err
    for size in ((97, 129), (64, 96)):
        torch.testing.assert_close(ours.coarse(picture(*size)), theirs(picture(*size)).logits)


def test_another_network_of_transformers_is_named(tmp_path: Path) -> None:
    segformer().save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["architectures"] = ["UperNetForSemanticSegmentation"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(1)}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ModelError, match=r"UperNetForSemanticSegmentation of transformers; .*ONNX"):
        imported(tmp_path / "hf", tmp_path)


@torch.inference_mode()
def test_a_folder_of_smp_brings_its_options(tmp_path: Path) -> None:
    theirs = smp.FPN(
        "resnet18", encoder_weights=None, classes=3, decoder_segmentation_channels=64
    ).eval()
    fill(theirs)
    theirs.save_pretrained(tmp_path / "hub")
    ours, config = imported(tmp_path / "hub", tmp_path, NAMED)
    assert config.options == {"decoder_segmentation_channels": 64}
    torch.testing.assert_close(ours(picture(64, 96)), theirs(picture(64, 96)))


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda state: state,
    "lightning, compiled": lambda state: {
        "state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()},
        "epoch": 3,
    },
    "ddp, ema": lambda state: {"model_ema": {f"module.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize(
    ("arch", "make", "backbone"),
    [
        ("unet", smp.Unet, "resnet18"),
        ("pspnet", smp.PSPNet, "efficientnet-b0"),
        ("segformer", smp.Segformer, "mit_b0"),
    ],
)
def test_a_network_of_smp_is_recognised_by_its_keys(
    tmp_path: Path, arch: str, make: Any, backbone: str, wrapping: str
) -> None:
    theirs = make(backbone, encoder_weights=None, classes=3, aux_params={"classes": 2})
    torch.save(WRAPPINGS[wrapping](theirs.state_dict()), tmp_path / "a.ckpt")
    ours, config = imported(tmp_path / "a.ckpt", tmp_path, NAMED)
    assert (config.arch, config.backbone, config.library) == (arch, backbone, None)
    key = "segmentation_head.0.weight"
    assert torch.equal(ours.state_dict()[key], theirs.state_dict()[key])


def test_a_deeplab_of_smp_with_a_narrow_decoder_is_recognised(tmp_path: Path) -> None:
    theirs = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=3, decoder_channels=64)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    _, config = imported(tmp_path / "a.pth", tmp_path, NAMED)
    assert config.options == {"decoder_channels": 64}


@pytest.mark.parametrize(
    ("make", "assumed", "other"), [(smp.DeepLabV3Plus, 16, 8), (smp.DeepLabV3, 8, 16)]
)
def test_the_output_stride_of_smp_is_said_where_no_file_says_it(
    tmp_path: Path, make: Any, assumed: int, other: int
) -> None:
    with torch.device("meta"):
        state = make("resnet18", encoder_weights=None, classes=3).state_dict()

    def found(folder: Path, stride: int | None = None) -> tuple[int | None, tuple[str, ...]]:
        checkpoint = Checkpoint("a.pth", str(folder), state, {}, "")
        known = Known(backbone="resnet18", output_stride=stride)
        candidate = of_smp.recognise(checkpoint, known)
        assert candidate is not None
        return candidate.output_stride, candidate.notes

    stride, [note] = found(tmp_path)
    assert stride == assumed
    assert note.startswith(f"output stride {assumed} is assumed, as is smp's default")
    assert f"--output-stride {other} for a network that was trained so" in note
    assert found(tmp_path, other) == (other, ())
    theirs = make("resnet18", encoder_weights=None, classes=3, encoder_output_stride=other)
    theirs.save_pretrained(tmp_path / "saved")
    assert found(tmp_path / "saved") == (other, ())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (smp.Unet, {"decoder_channels": [128, 64, 32, 32, 16], "decoder_attention_type": "scse"}),
        (smp.Unet, {"encoder_depth": 4, "decoder_channels": [64, 48, 32, 16]}),
        (smp.FPN, {"decoder_merge_policy": "cat"}),
        (smp.FPN, {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}),
    ],
)
@torch.inference_mode()
def test_other_decoders_of_smp_are_recognised_by_their_weights(
    tmp_path: Path, make: Callable[..., Any], options: dict[str, Any]
) -> None:
    theirs = make("resnet18", encoder_weights=None, classes=3, **options)
    fill(theirs)
    state = {
        **theirs.state_dict(),
        "encoder.total_ops": torch.zeros(1),
        "total_params": torch.ones(1),
    }
    torch.save(state, tmp_path / "a.pth")
    ours, config = imported(tmp_path / "a.pth", tmp_path, NAMED)
    assert config.options == options
    image = picture(64, 96)
    torch.testing.assert_close(ours(image), theirs.eval()(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (smp.Unet, {"in_channels": 1}, "takes 1 channels, not RGB"),
        (smp.DeepLabV3Plus, {"in_channels": 4}, "takes 4 channels, not RGB"),
        (smp.MAnet, {}, "MAnet of segmentation_models_pytorch that segbatch does not have"),
    ],
)
def test_what_segbatch_does_not_have_of_smp_is_named(
    tmp_path: Path, make: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    theirs = make("resnet18", encoder_weights=None, classes=3, **options)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message):
        imported(tmp_path / "a.pth", tmp_path, NAMED)


def test_mean_and_deviation_in_a_checkpoint_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in smp's own example of Lightning, which gives its network pixels from 0 to 255."""
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3)
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    for name, value in (("mean", 0.4), ("std", 0.2)):
        state[name] = torch.full((1, 3, 1, 1), value)
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    _, config = imported(tmp_path / "a.ckpt", tmp_path, NAMED)
    assert (config.mean, config.std) == ((0.4,) * 3, (0.2,) * 3)
    said = capsys.readouterr().err
    assert "if it took them from 0 to 255: --mean 0.00157," in said
    assert "left out" not in said
    advised = Known(classes=Classes(NAMES), mean=(0.00157,) * 3, std=(0.000784,) * 3)
    shutil.rmtree(tmp_path / "bundle")
    assert imported(tmp_path / "a.ckpt", tmp_path, advised)[1].std == (0.000784,) * 3


@torch.inference_mode()
def test_sigmoids_of_smp_get_a_class_for_the_pixels_that_none_sees(tmp_path: Path) -> None:
    theirs = smp.DeepLabV3Plus(
        "mobilenet_v2", encoder_weights=None, classes=2, activation="sigmoid"
    ).eval()
    fill(theirs)
    theirs.save_pretrained(tmp_path / "smp")
    with pytest.raises(ModelError, match=r"has 2 sigmoids.*background,window,door"):
        imported(tmp_path / "smp", tmp_path, Known(classes=Classes(["window", "door"])))
    ours, _ = imported(
        tmp_path / "smp", tmp_path, Known(classes=Classes(["background", "window", "door"]))
    )
    scores = theirs(picture(64, 96))
    expected = torch.where(scores.max(1).values > 0.5, scores.argmax(1) + 1, 0)
    is_clear = (scores - 0.5).abs().min(1).values > 1e-5
    assert torch.equal(ours(picture(64, 96)).argmax(1)[is_clear], expected[is_clear])


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    known = Known(input_range=(0.0, 1.0), output="labels")
    with pytest.raises(
        ModelError, match=r"is no graph, so .*: leave --input-range and --output out"
    ):
        imported(tmp_path / "a.pth", tmp_path, known)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="is a graph: leave --arch out"):
        imported(tmp_path / "a.onnx", tmp_path, Known(arch="unet"))


def test_options_of_smp_in_a_dict_are_kept(tmp_path: Path) -> None:
    norm = {"type": "batchnorm", "eps": 0.001}
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_use_norm=norm)
    theirs.save_pretrained(tmp_path / "smp")
    _, config = imported(tmp_path / "smp", tmp_path, NAMED)
    assert config.options == {"decoder_use_norm": norm}


@torch.inference_mode()
def test_one_channel_of_smp_is_the_sigmoid_of_the_second_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=1).eval()
    fill(theirs)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"one channel, a sigmoid.*background,crack"):
        imported(tmp_path / "a.pth", tmp_path, Known(classes=Classes(["crack"])))
    ours, config = imported(
        tmp_path / "a.pth", tmp_path, Known(classes=Classes(["background", "crack"]))
    )
    said = capsys.readouterr().err
    assert "a sigmoid for crack; where none is above 0.5, pixels are background" in said
    assert config.classes.names == ["background", "crack"]
    probabilities = ours(picture(64, 96)).softmax(1)
    torch.testing.assert_close(probabilities[:, 1:], theirs(picture(64, 96)).sigmoid())


@pytest.mark.parametrize(("keys", "threshold"), [("", 0.3), (", threshold=0.8", 0.8)])
@torch.inference_mode()
def test_one_channel_of_mmsegmentation_has_its_threshold(
    tmp_path: Path, keys: str, threshold: float
) -> None:
    theirs = networks.build(
        "deeplabv3plus", "mobilenet_v2", 1, 16, library="mmsegmentation",
        options={"align_corners": True},
    )  # fmt: skip
    fill(theirs)
    text = MMSEG_CONFIG.replace("align_corners=True", f"align_corners=True, out_channels=1{keys}")
    meta = {"cfg": text, "dataset_meta": {"classes": ["background", "crack"]}}
    torch.save({"meta": meta, "state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    ours, _ = imported(tmp_path / "a.pth", tmp_path)
    scores = theirs.eval()(picture(64, 96)).sigmoid()[:, 0]
    is_clear = (scores - threshold).abs() > 1e-5
    assert torch.equal(ours(picture(64, 96)).argmax(1)[is_clear], (scores > threshold)[is_clear])


@torch.inference_mode()
def test_a_deeplab_of_torchvision_is_recognised_by_its_keys(tmp_path: Path) -> None:
    theirs = torchvision.models.get_model(
        "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3,
        aux_loss=True,
    )  # fmt: skip
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth")
    _, config = imported(tmp_path / "a.pth", tmp_path, NAMED)
    assert (config.arch, config.backbone, config.library) == (
        "deeplabv3",
        "mobilenet_v3_large",
        None,
    )


def test_a_backbone_that_torchvision_does_not_have_is_refused(tmp_path: Path) -> None:
    message = "the deeplabv3 of torchvision has resnet50, resnet101, mobilenet_v3_large, not"
    with pytest.raises(ModelError, match=f"{message} resnet18"):
        networks.build("deeplabv3", "resnet18", 3, library="torchvision")
    theirs = networks.build("deeplabv3", "mobilenet_v3_large", 3)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=f"{message} resnet18"):
        imported(tmp_path / "a.pth", tmp_path, Known(backbone="resnet18", classes=Classes(NAMES)))


@pytest.mark.parametrize(
    ("arch", "backbone"), [("deeplabv3plus", "mobilenet_v2"), ("deeplabv3", "resnet50")]
)
def test_a_checkpoint_of_vainf_is_recognised_by_its_keys(
    tmp_path: Path, arch: str, backbone: str
) -> None:
    theirs = networks.build(arch, backbone, 3, 8, library="vainf").eval()
    fill(theirs)
    saved = {"cur_itrs": 30000, "model_state": theirs.state_dict(), "best_score": 0.7}
    torch.save(saved, tmp_path / "best.pth")
    known = Known(classes=Classes(NAMES), output_stride=8)
    ours, config = imported(tmp_path / "best.pth", tmp_path, known)
    assert (config.arch, config.backbone, config.library) == (arch, backbone, "vainf")
    with torch.inference_mode():
        assert torch.equal(ours.coarse(picture(65, 97)), theirs.coarse(picture(65, 97)))


def test_what_the_user_knows_better_is_taken(tmp_path: Path) -> None:
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    known = Known(
        classes=Classes(NAMES), mean=(127.5, 127.5, 127.5), std=(51.0, 51.0, 51.0), long_side=700
    )
    _, config = imported(tmp_path / "a.pth", tmp_path, known)
    assert (config.mean, config.std, config.long_side) == ((0.5,) * 3, (0.2,) * 3, 700)


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        ((0.0,) * 3, (255.0,) * 3, ((0.0,) * 3, (1.0,) * 3)),
        ((0.0,) * 3, (1.0,) * 3, ((0.0,) * 3, (1.0,) * 3)),
        ((103.53,) * 3, (1.0,) * 3, ((0.406,) * 3, (0.003922,) * 3)),
    ],
)
def test_mean_and_deviation_are_of_one_range_and_belong_together(
    tmp_path: Path, mean: Any, std: Any, found: Any
) -> None:
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    _, config = imported(tmp_path / "a.pth", tmp_path, Known(None, None, Classes(NAMES),
                                                             mean=mean, std=std))  # fmt: skip
    assert (config.mean, config.std) == found
    for known in (Known(mean=mean), Known(std=std)):
        with pytest.raises(ModelError, match="--mean and --std belong together: give both"):
            imported(tmp_path / "a.pth", tmp_path, known)


@pytest.mark.parametrize(
    ("state", "known", "message"),
    [
        (lambda: smp.Unet("resnet18", encoder_weights=None, classes=3).state_dict(), Known(),
         "Unet of segmentation_models_pytorch on resnet18; its files do not name its classes"),
        (lambda: smp.Unet("tu-test_resnet", encoder_weights=None, classes=3).state_dict(), NAMED,
         "on a backbone that its weights do not tell: name it with --backbone"),
        (lambda: smp.Linknet("resnet18", encoder_weights=None, classes=3).state_dict(), NAMED,
         "a network of segmentation_models_pytorch that segbatch does not have"),
        (lambda: {"layer.weight": torch.ones(2)}, NAMED,
         r"none of MMSegmentation, .*they have layer\.weight: name their --arch and --backbone"),
        (lambda: smp.Unet("resnet18", encoder_weights=None, classes=3).state_dict(),
         Known(arch="deeplabv3plus", classes=Classes(NAMES)), "Unet.*, not deeplabv3plus: leave"),
        (lambda: smp.Unet("resnet18", encoder_weights=None, classes=3).state_dict(),
         Known(arch="deeplabv3plus", backbone="resnet18", classes=Classes(NAMES)),
         "not weights of deeplabv3plus with resnet18"),
        (lambda: smp.Unet("resnet18", encoder_weights=None, classes=4).state_dict(), NAMED,
         "these weights know 4 classes, but 3 were given"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked_for(
    tmp_path: Path, state: Callable[[], Any], known: Known, message: str
) -> None:
    torch.save(state(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message) as refused:
        imported(tmp_path / "a.pth", tmp_path, known)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_not_imported_again(tmp_path: Path) -> None:
    torch.save(smp.Unet("resnet18", encoder_weights=None, classes=3).state_dict(), tmp_path / "a")
    imported(tmp_path / "a", tmp_path, NAMED)
    shutil.copytree(tmp_path / "bundle", tmp_path / "b")
    with pytest.raises(ModelError, match="is a bundle already: name it as the model of a job"):
        imported(tmp_path / "b", tmp_path, NAMED)
