"""Training examples have an image and a label map of one size; each is measured once."""

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from segbatch.errors import SourceError
from segbatch.labels.samples import Sample
from segbatch.masks import encode_mask
from segbatch.masks.classes import Classes
from segbatch.model.predict import Model, load_model
from segbatch.training.confusion import ConfusionMatrix
from segbatch.training.examples import measure, training_example

Array = npt.NDArray[np.uint8]

PALETTE = Classes(["background", "wall", "window", "door", "roof"]).palette


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def picture(seed: int, width: int, height: int) -> Array:
    """Smooth colours."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC))


def sample(
    image_id: int, image: Array, label_map: Array, format: str = "PNG", **options: object
) -> Sample:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format, **options)
    mask = encode_mask(label_map, PALETTE)
    return Sample(image_id, f"s3://photos/{image_id}.jpg", sink.getvalue(), mask)


def labels(seed: int, width: int, height: int) -> Array:
    ids = np.random.default_rng(seed).choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (6, 8))
    blocks = Image.fromarray(ids)
    return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST))


# -------------------------------------------------------------------------------------- one example


def test_an_image_and_its_label_map_come_as_they_are() -> None:
    image, label_map = picture(0, 50, 40), labels(0, 50, 40)
    for long_side in (None, 50, 1000):
        got, truth = training_example(sample(0, image, label_map), long_side)
        np.testing.assert_array_equal(got, image)
        np.testing.assert_array_equal(truth, label_map)


def test_both_are_brought_to_the_long_side_and_no_class_is_made_up() -> None:
    label_map = np.where(np.arange(90) < 30, 1, 4).astype(np.uint8)[None].repeat(120, 0)
    got, truth = training_example(sample(0, picture(0, 90, 120), label_map), 60)
    assert got.shape == (60, 45, 3)
    assert truth.shape == (60, 45)
    assert (truth[:, :15] == 1).all()
    assert (truth[:, 15:] == 4).all()


def test_an_image_lies_as_its_camera_was_held_and_its_mask_stands_upright() -> None:
    upright, label_map = picture(0, 40, 60), labels(0, 40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    lying = np.ascontiguousarray(np.rot90(upright))
    got, truth = training_example(sample(0, lying, label_map, exif=exif), None)
    np.testing.assert_array_equal(got, upright)
    np.testing.assert_array_equal(truth, label_map)


@pytest.mark.parametrize(("width", "height", "long_side"), [(783, 448, 160), (607, 402, 64)])
def test_a_large_jpeg_and_its_label_map_have_one_size(
    width: int, height: int, long_side: int
) -> None:
    # Decoded at a fraction of its size first, it comes out a pixel higher or lower.
    one = sample(0, picture(0, width, height), labels(0, width, height), "JPEG")
    got, truth = training_example(one, long_side)
    assert got.shape[:2] == truth.shape
    assert max(truth.shape) == long_side


def test_what_cannot_be_trained_on_is_named() -> None:
    image, label_map = picture(0, 50, 40), labels(0, 50, 40)
    good = sample(7, image, label_map)
    gray = io.BytesIO()
    Image.fromarray(label_map).save(gray, "PNG")
    for bad, why in (
        (good._replace(image=good.image[:200]), "truncated"),
        (good._replace(mask=good.mask[:60]), "the mask is not a readable PNG"),
        (good._replace(mask=gray.getvalue()), "needs a palette"),
        (sample(7, image, labels(0, 40, 50)), "the image is 50×40, its mask 40×50"),
    ):
        with pytest.raises(SourceError) as error:
            training_example(bad, None)
        message = str(error.value)
        assert message.startswith("image 7 of the dataset, s3://photos/7.jpg: ")
        assert why in message
        assert "segbatch labels check" in message


# ----------------------------------------------------------------------------------------- measure


@pytest.fixture(scope="module")
def model(model_uri: str) -> Model:
    return load_model(model_uri, "cpu")


def dataset(count: int) -> list[Sample]:
    """Images of several sizes, some larger than what the model downscales to."""
    sizes = [(96, 64), (64, 96), (200, 140), (70, 70)]
    pairs = [sizes[number % len(sizes)] for number in range(count)]
    return [
        sample(number, picture(number, *size), labels(number, *size))
        for number, size in enumerate(pairs)
    ]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 37])
def test_every_example_is_measured_once_as_if_it_were_predicted_alone(
    count: int, model: Model
) -> None:
    examples = dataset(count)
    assert model.long_side == 128
    asked: list[int] = []

    def told() -> Iterator[Sample]:
        for one in examples:
            asked.append(one.image_id)
            yield one

    confusion = measure(model, told())
    assert asked == list(range(count))

    expected = ConfusionMatrix(5)
    for one in examples:
        image, truth = training_example(one, None)
        expected.update(truth, model.predict(image).mask)
    assert (expected.counts.sum(0) > 0).sum() >= (3 if count > 1 else 0)  # not one class alone
    # A batch may round differently than a single image.
    total = expected.counts.sum()
    assert confusion.counts.sum() == total
    assert np.abs(confusion.counts - expected.counts).sum() <= total / 10_000


def test_a_damaged_image_is_named_while_measuring(model: Model) -> None:
    examples = dataset(20)
    examples[18] = examples[18]._replace(image=b"")
    with pytest.raises(SourceError, match=r"image 18 of the dataset, s3://photos/18\.jpg"):
        measure(model, examples)
