"""Metrics of segmentation, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from segbatch.training.metrics import ConfusionMatrix

NUM_CLASSES = 5


@pytest.mark.parametrize("seed", range(4))
def test_iou_and_accuracy_are_those_of_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, NUM_CLASSES, (3, 17, 23)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, truth[::-1, ::-1])
    truth[rng.random(truth.shape) < 0.1] = 255
    matrix = ConfusionMatrix(NUM_CLASSES)
    for one, other in zip(truth, prediction, strict=True):
        matrix.update(one, other)

    tensors = torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()
    iou = multiclass_jaccard_index(*tensors, NUM_CLASSES, average="none", ignore_index=255)
    accuracy = multiclass_accuracy(*tensors, NUM_CLASSES, average="micro", ignore_index=255)
    np.testing.assert_allclose(matrix.iou(), iou.numpy(), rtol=1e-6)
    assert matrix.miou() == pytest.approx(float(iou.mean()), rel=1e-6)
    assert matrix.pixel_accuracy() == pytest.approx(float(accuracy), rel=1e-6)


def test_a_class_in_neither_map_has_no_iou_and_is_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 0, 2, 2]], np.uint8), np.array([[0, 0, 2, 0]], np.uint8))
    np.testing.assert_allclose(matrix.iou(), [2 / 3, np.nan, 1 / 2])
    assert matrix.miou() == pytest.approx(7 / 12)


def test_without_pixels_there_is_no_score() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert np.isnan(matrix.miou())
    assert np.isnan(matrix.pixel_accuracy())


def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    whole, upper, lower = (ConfusionMatrix(3) for _ in range(3))
    whole.update(truth, prediction)
    upper.update(truth[:4], prediction[:4])
    lower.update(truth[4:], prediction[4:])
    upper.counts += lower.counts
    np.testing.assert_array_equal(upper.counts, whole.counts)


def test_ids_that_are_no_class_and_other_shapes_are_refused() -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match="class ids go to 3, not 2"):
        matrix.update(np.array([3], np.uint8), np.array([0], np.uint8))
    with pytest.raises(ValueError, match="truth is"):
        matrix.update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
