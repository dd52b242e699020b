"""The numbers with which a backbone's published weights were trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from segbatch.masks.classes import Classes
from segbatch.model.bundle import load_config
from segbatch.model.checkpoints import Known, import_model
from segbatch.model.normalisation import normalisation_of
from segbatch.model.zoo import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.unit

IMAGENET = IMAGENET_MEAN, IMAGENET_STD
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("backbone", "same"),
    [
        ("xception", "legacy_xception"),
        ("inceptionv4", "inception_v4"),
        ("inceptionresnetv2", "inception_resnet_v2.tf_in1k"),
        ("dpn68", "dpn68.mx_in1k"),
        ("dpn131", "dpn131.mx_in1k"),
        ("senet154", "legacy_senet154"),
        ("densenet121", "densenet121.tv_in1k"),
        ("vgg16", "vgg16.tv_in1k"),
        ("resnet50", "resnet50.tv_in1k"),
        ("timm-tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"),
        ("timm-efficientnet-b0", "tf_efficientnet_b0.aa_in1k"),
        ("mobileone_s0", "mobileone_s0.apple_in1k"),
    ],
)
def test_smp_and_timm_publish_the_same_weights_with_the_same_numbers(
    backbone: str, same: str
) -> None:
    assert backbone in smp.encoders.get_encoder_names()
    assert normalisation_of(backbone) == normalisation_of(f"tu-{same}")


@pytest.mark.parametrize(
    ("backbone", "numbers"),
    [
        ("tu-xception65", HALF),
        ("tu-vit_base_patch16_224", HALF),
        ("tu-resnet50", IMAGENET),
        ("mit_b0", IMAGENET),
        ("mobilenet_v3_large", IMAGENET),
        ("tu-nothing_of_this_name", IMAGENET),
        ("tu-resnet50.no_such_tag", IMAGENET),
    ],
)
def test_the_numbers_are_those_of_the_weights_or_imagenets(
    backbone: str, numbers: tuple[object, object]
) -> None:
    assert normalisation_of(backbone) == numbers


def test_an_import_of_smp_takes_the_numbers_of_its_backbone(tmp_path: Path) -> None:
    for backbone, numbers in {"tu-test_resnet": HALF, "resnet18": IMAGENET}.items():
        state = smp.Unet(backbone, encoder_weights=None, classes=2).state_dict()
        torch.save(state, tmp_path / "a.pth")
        known = Known(backbone=backbone, classes=Classes(["a", "b"]))
        import_model(str(tmp_path / "a.pth"), str(tmp_path / "model"), known)
        config = load_config(str(tmp_path / "model"))
        assert (config.mean, config.std) == numbers
