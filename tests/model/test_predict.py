"""Prediction compared with a plain reference, and independent of batches and threads."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from segbatch.config.job import Predict, Tile
from segbatch.errors import InputError, JobFailed
from segbatch.masks.classes import Classes
from segbatch.model.bundle import save_bundle
from segbatch.model.device import resolve_device, resolve_precision
from segbatch.model.networks import Network
from segbatch.model.predict import (
    Model,
    load_model,
)
from tests.model.conftest import (
    BACKBONES,
    CLASSES,
    config_of,
    plain_logits,
    plain_mask,
    share_that_differs,
)

# Rounding of the convolutions may turn a tie: design.md allows one pixel in 100,000, and the
# pictures here have fewer.
TIES = 5e-4


def model_of(networks, arch="deeplabv3plus", *, confidence=True, **options) -> Model:
    config = config_of(networks[arch], arch)
    return Model(networks[arch], config, "cpu", Predict(**options), confidence=confidence)


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize(("size", "mask_size"), [((96, 130), None), ((100, 75), (213, 150))])
def test_the_label_map_is_that_of_the_plain_reference(networks, photo, arch, size, mask_size):
    image = photo(*size)
    [prediction] = model_of(networks, arch).predict_batch([image], [mask_size])
    logits = plain_logits(networks[arch], image)
    expected = plain_mask(logits, mask_size or size)

    assert prediction.mask.shape == (mask_size or size)
    assert prediction.mask.dtype == np.uint8
    assert len(np.unique(prediction.mask)) > 1, "the picture should hold several classes"
    assert share_that_differs(prediction.mask, expected) < TIES
    assert prediction.pixels.tolist() == np.bincount(prediction.mask.ravel(), minlength=5).tolist()


@pytest.mark.parametrize("mask_size", [None, (150, 200)])
def test_confidence_is_the_mean_probability_with_which_a_class_won(networks, photo, mask_size):
    image = photo(90, 120)
    [prediction] = model_of(networks).predict_batch([image], [mask_size])
    probabilities = plain_logits(networks["deeplabv3plus"], image).softmax(0)
    (best, second), (ids, _) = probabilities.topk(2, dim=0)

    for seg_class in CLASSES:
        value = prediction.confidence[seg_class.name]
        won = best[ids == seg_class.id]
        assert value == (pytest.approx(won.mean().item(), abs=1e-4) if len(won) else None)
    assert prediction.uncertainty == pytest.approx(1 - (best - second).mean().item(), abs=1e-4)


def test_coverage_is_by_class_name_and_sums_to_one(networks, photo):
    coverage = model_of(networks).predict(photo(70, 64)).coverage
    assert list(coverage) == CLASSES.names
    assert sum(coverage.values()) == pytest.approx(1)


def test_without_confidence_there_is_none(networks, photo):
    prediction = model_of(networks, confidence=False).predict(photo(64, 64))
    assert set(prediction.confidence.values()) == {None}
    assert np.isnan(prediction.uncertainty)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_label_map_does_not_depend_on_the_batch(networks, photo, batch_size):
    sizes = [(64, 64), (40, 100), (64, 50), (130, 64), (33, 128), (64, 64)]
    images = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    alone = model_of(networks)
    together = model_of(networks, batch_size=batch_size).predict_batch(images, [None] * 6)
    for image, prediction in zip(images, together, strict=True):
        expected = alone.predict_batch([image], [None])[0].mask
        assert np.mean(prediction.mask != expected) < TIES
        assert prediction.image is image


def test_one_image_twice_is_identical(networks, photo):
    model, image = model_of(networks), photo(80, 90)
    first, second = (model.predict_batch([image], [(160, 180)])[0] for _ in range(2))
    assert (first.mask == second.mask).all()
    assert first.uncertainty == second.uncertainty


def test_flip_averages_with_the_mirror_image(networks, photo):
    image = photo(64, 100)
    [prediction] = model_of(networks, flip=True).predict_batch([image], [None])
    network = networks["deeplabv3plus"]
    mirrored = plain_logits(network, np.ascontiguousarray(image[:, ::-1])).flip(-1)
    expected = plain_mask((plain_logits(network, image) + mirrored) / 2, (64, 100))
    assert share_that_differs(prediction.mask, expected) < TIES


def test_with_flip_a_symmetric_image_has_a_symmetric_label_map(networks, photo):
    half = photo(64, 64)
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    mask = model_of(networks, flip=True).predict(image).mask
    assert np.mean(mask != mask[:, ::-1]) < TIES


def test_scales_average_on_the_grid_of_the_image(networks, photo):
    image = photo(96, 128)
    model = model_of(networks, scales=[0.5, 1.0, 1.5])
    [prediction] = model.predict_batch([image], [None])
    network = networks["deeplabv3plus"]
    total = torch.zeros(len(CLASSES), 96, 128)
    for size in [(48, 64), (96, 128), (144, 192)]:
        scaled = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        total += torch.nn.functional.interpolate(
            plain_logits(network, scaled)[None], (96, 128), mode="bilinear"
        )[0]
    assert share_that_differs(prediction.mask, plain_mask(total, (96, 128))) < TIES


def test_scales_do_not_depend_on_the_batch_either(networks, photo):
    images = [photo(64, 64), photo(50, 60, seed=1), photo(128, 64, seed=2)]
    model = model_of(networks, scales=[1.0, 0.5, 0.75], flip=True, batch_size=4)
    for image, prediction in zip(images, model.predict_batch(images, [None] * 3), strict=True):
        assert np.mean(prediction.mask != model.predict_batch([image], [None])[0].mask) < TIES


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_moves_few_pixels(networks, photo, precision):
    image = photo(64, 96)
    exact = model_of(networks).predict(image).mask
    assert np.mean(model_of(networks, precision=precision).predict(image).mask != exact) < 0.1


def test_predict_downscales_and_gives_a_mask_of_the_images_own_size(networks, photo):
    network = networks["deeplabv3plus"]
    config = replace(config_of(network, "deeplabv3plus"), long_side=64)
    image = photo(120, 200)
    prediction = Model(network, config, "cpu").predict(image)
    small = np.array(Image.fromarray(image).resize((64, 38), Image.Resampling.BILINEAR))
    assert prediction.mask.shape == (120, 200)
    expected = plain_mask(plain_logits(network, small), (120, 200))
    assert share_that_differs(prediction.mask, expected) < TIES
    assert prediction.overlay().size == (200, 120)


def test_a_notebook_shows_what_was_seen_and_not_the_pixels(networks, photo):
    model = model_of(networks)
    prediction = model.predict(photo(64, 96))
    largest = max(prediction.coverage, key=prediction.coverage.get)
    assert repr(prediction).startswith(f"Prediction(96×64: {largest} ")
    assert len(repr(prediction)) < 300
    page = prediction._repr_html_()
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as shown:
        assert shown.size == (96, 64)
    present = {name for name, value in prediction.coverage.items() if value}
    assert all((f"</span> {name}</td>" in page) == (name in present) for name in CLASSES.names)
    assert repr(model).startswith("Model(deeplabv3plus mobilenet_v2, 5 classes, cpu, torch ")
    assert all(name in model._repr_html_() for name in CLASSES.names)


def test_pillow_images_of_any_mode_are_taken(networks, photo):
    model, image = model_of(networks), Image.fromarray(photo(64, 64))
    assert (model.predict(image).mask == model.predict(np.asarray(image)).mask).all()
    assert model.predict(image.convert("RGBA")).mask.shape == (64, 64)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        "image.jpg",
    ],
)
def test_other_arrays_are_refused_by_shape_and_type(networks, image):
    with pytest.raises(InputError, match="RGB"):
        model_of(networks).predict(image)


class SmallMemory(Network):
    """Gives brightness as logits, and runs out of memory above ``limit`` images."""

    align_corners = False

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.batches: list[int] = []

    def coarse(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("device out of memory")
        return torch.cat([images.mean(1, keepdim=True), -images.mean(1, keepdim=True)], 1)


def small_memory(networks, limit: int) -> Model:
    config = config_of(networks["deeplabv3plus"], "deeplabv3plus", Classes(["bright", "dark"]))
    return Model(SmallMemory(limit), config, "cpu", Predict(batch_size=8))


def test_out_of_memory_halves_the_batch_and_remembers(networks, photo):
    images = [photo(64, 60, seed=seed) for seed in range(13)]
    model = small_memory(networks, limit=3)
    predictions = model.predict_batch(images, [None] * 13)
    expected = small_memory(networks, limit=99).predict_batch(images, [None] * 13)
    for prediction, other in zip(predictions, expected, strict=True):
        assert (prediction.mask == other.mask).all()
    model.module.batches.clear()
    model.predict_batch(images, [None] * 13)
    assert max(model.module.batches) <= 3


def test_one_image_that_does_not_fit_says_what_to_set(networks, photo):
    with pytest.raises(JobFailed, match=r"one image of 64×128.*long_side"):
        small_memory(networks, limit=0).predict(photo(100, 64))


def test_a_model_of_one_class_is_certain(networks, photo):
    class One(SmallMemory):
        def coarse(self, images: Tensor) -> Tensor:
            return super().coarse(images)[:, :1]

    config = config_of(networks["deeplabv3plus"], "deeplabv3plus", Classes(["all"]))
    prediction = Model(One(9), config, "cpu").predict(photo(64, 64))
    assert prediction.coverage == {"all": 1}
    assert prediction.confidence == {"all": 1}
    assert prediction.uncertainty == 0


def test_load_model_gives_the_network_and_its_classes(networks, photo, tmp_path):
    network = networks["deeplabv3"]
    save_bundle(str(tmp_path / "m"), network, config_of(network, "deeplabv3"))
    model = load_model(str(tmp_path / "m"), device="cpu")
    assert isinstance(model.module, torch.nn.Module)
    assert model.classes == CLASSES
    assert (model.predict(photo(64, 64)).mask < 5).all()


def test_auto_is_fp32_on_the_cpu():
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"


def test_an_unknown_device_is_refused():
    with pytest.raises(InputError, match="is no device"):
        resolve_device("gpu0")


def test_tiles_replace_downscaling_unless_it_is_asked_for(networks):
    network = networks["deeplabv3"]
    config = replace(config_of(network, "deeplabv3"), long_side=64)
    tile = Tile(size=64, overlap=0)
    assert Model(network, config, "cpu").long_side == 64
    assert Model(network, config, "cpu", Predict(tile=tile)).long_side is None
    assert Model(network, config, "cpu", Predict(long_side=99)).long_side == 99
    assert Model(network, config, "cpu", Predict(long_side=None)).long_side is None


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"scales": []},
        {"scales": [0.0]},
        {"long_side": 0},
        {"long_side": "x"},
        {"precision": "int4"},
        {"engine": "tensorrt"},
        {"engine": "openvino", "compile": True},
        {"engine": "openvino", "precision": "fp16"},
        {"engine": "torch", "precision": "int8"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        Predict(**options)
