"""Segmentation scores compared with torchmetrics, and with distances measured one by one."""

from __future__ import annotations

import json
from math import ceil, hypot

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index
from torchmetrics.functional.segmentation import mean_iou

from segbatch.masks.classes import Classes
from segbatch.training.confusion import BoundaryCounts, ConfusionMatrix, all_scores

NUM_CLASSES = 5

Ids = npt.NDArray[np.uint8]


def maps(seed: int, *, absent: bool = False) -> tuple[Ids, Ids]:
    """Three truths with void in them, and predictions that are right in most places."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, NUM_CLASSES, (3, 5, 6))
    truth = blocks.repeat(9, 1).repeat(8, 2).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, truth[::-1, ::-1])
    if absent:  # 4 is nowhere, 3 is only predicted, 2 is only true
        truth[truth >= 3] = 0
        prediction[prediction == 4] = 0
        prediction[prediction == 2] = 1
        prediction[0, 0, 0] = 3
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, prediction.astype(np.uint8)


def confusion(truth: Ids, prediction: Ids) -> ConfusionMatrix:
    matrix = ConfusionMatrix(NUM_CLASSES)
    for one, other in zip(truth, prediction, strict=True):
        matrix.update(one, other)
    return matrix


@pytest.mark.parametrize("absent", [False, True], ids=["all classes", "absent classes"])
@pytest.mark.parametrize("seed", range(3))
def test_the_scores_are_those_of_torchmetrics(seed: int, absent: bool) -> None:
    truth, prediction = maps(seed, absent=absent)
    matrix = confusion(truth, prediction)
    tensors = torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()

    def jaccard(average: str) -> npt.NDArray[np.float32]:
        return multiclass_jaccard_index(
            *tensors, NUM_CLASSES, average=average, ignore_index=255
        ).numpy()

    def accuracy(average: str) -> npt.NDArray[np.float32]:
        return multiclass_accuracy(*tensors, NUM_CLASSES, average=average, ignore_index=255).numpy()

    # torchmetrics says 0 of a class that is nowhere, and leaves it out of its means.
    np.testing.assert_allclose(np.nan_to_num(matrix.iou()), jaccard("none"), rtol=1e-6)
    np.testing.assert_allclose(np.nan_to_num(matrix.accuracy()), accuracy("none"), rtol=1e-6)
    assert np.isnan(matrix.iou()).tolist() == [False] * 4 + [absent]
    assert np.isnan(matrix.accuracy()).tolist() == [False] * 4 + [absent]
    assert matrix.miou() == pytest.approx(jaccard("macro"), rel=1e-6)
    assert matrix.frequency_weighted_iou() == pytest.approx(jaccard("weighted"), rel=1e-6)
    assert matrix.pixel_accuracy() == pytest.approx(accuracy("micro"), rel=1e-6)
    assert matrix.mean_accuracy() == pytest.approx(accuracy("macro"), rel=1e-6)


def test_the_iou_is_that_of_torchmetrics_for_segmentation() -> None:
    truth, prediction = maps(0)
    truth[truth == 255] = 0  # torchmetrics has no ignore index here
    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(ids).long(), NUM_CLASSES).movedim(3, 1)
               for ids in (prediction, truth)]  # fmt: skip
    # One image high enough to hold all three: it averages over images, and we sum.
    tall = [torch.cat(list(t), dim=1)[None] for t in one_hot]
    expected = mean_iou(*tall, num_classes=NUM_CLASSES, per_class=True)[0]
    np.testing.assert_allclose(confusion(truth, prediction).iou(), expected.numpy(), rtol=1e-6)


def test_a_class_in_neither_map_has_no_iou_and_is_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 0, 2, 2]], np.uint8), np.array([[0, 0, 2, 0]], np.uint8))
    np.testing.assert_allclose(matrix.iou(), [2 / 3, np.nan, 1 / 2])
    assert matrix.miou() == pytest.approx(7 / 12)
    assert matrix.mean_accuracy() == pytest.approx(3 / 4)


def test_without_pixels_there_is_no_score() -> None:
    matrix, boundaries = ConfusionMatrix(3), BoundaryCounts(3)
    void, prediction = np.full((2, 2), 255, np.uint8), np.array([[0, 1], [2, 0]], np.uint8)
    matrix.update(void, prediction)
    boundaries.update(void, prediction)
    scores = all_scores(matrix, boundaries, Classes(["brick", "wall", "window"]))
    nothing = dict.fromkeys(["brick", "wall", "window"])
    assert scores["miou"] is scores["pixel_accuracy"] is scores["mean_accuracy"] is None
    assert scores["frequency_weighted_iou"] is scores["boundary_f"] is None
    assert scores["iou"] == scores["accuracy"] == scores["boundary_f_per_class"] == nothing


def test_the_report_is_json_with_null_for_what_has_no_score() -> None:
    matrix, boundaries = ConfusionMatrix(3), BoundaryCounts(3)
    truth = np.array([[0, 0, 2, 2]], np.uint8)
    matrix.update(truth, truth)
    boundaries.update(truth, truth)
    scores = all_scores(matrix, boundaries, Classes(["brick", "wall", "traffic light"]))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert scores["iou"] == {"brick": 1.0, "wall": None, "traffic light": 1.0}
    assert scores["boundary_f_per_class"] == {"brick": 1.0, "wall": None, "traffic light": 1.0}
    assert scores["miou"] == scores["boundary_f"] == 1.0


def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole() -> None:
    truth, prediction = maps(0)
    whole, parts = confusion(truth, prediction), confusion(truth[:1], prediction[:1])
    parts.counts += confusion(truth[1:], prediction[1:]).counts
    np.testing.assert_array_equal(parts.counts, whole.counts)


def test_ids_that_are_no_class_and_other_shapes_are_refused() -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match="class ids go up to 3, not 2"):
        matrix.update(np.array([3], np.uint8), np.array([0], np.uint8))
    for counts in (matrix, BoundaryCounts(3)):
        with pytest.raises(ValueError, match="truth is"):
            counts.update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


# ------------------------------------------------------------------------------------- boundaries


def boundary(label_map: Ids, truth: Ids) -> dict[int, list[tuple[int, int]]]:
    """Pixels with a neighbour of another class, pixel by pixel, by class."""
    height, width = label_map.shape
    found: dict[int, list[tuple[int, int]]] = {class_id: [] for class_id in range(NUM_CLASSES)}
    for y in range(height):
        for x in range(width):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if not (0 <= v < height and 0 <= u < width):
                    continue
                if 255 not in (truth[y, x], truth[v, u]) and label_map[y, x] != label_map[v, u]:
                    found[int(label_map[y, x])].append((y, x))
                    break
    return found


def measured(truth: Ids, prediction: Ids) -> npt.NDArray[np.int64]:
    """The counts, by the distance of each pixel to each other."""
    radius = ceil(0.0075 * hypot(*truth.shape))
    true, predicted = boundary(truth, truth), boundary(prediction, truth)

    def near(points: list[tuple[int, int]], targets: list[tuple[int, int]]) -> int:
        return sum(
            any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in targets) for y, x in points
        )

    return np.array(
        [
            (len(true[c]), near(true[c], predicted[c]),
             len(predicted[c]), near(predicted[c], true[c]))
            for c in range(NUM_CLASSES)
        ]
    ).T  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(40, 55), (30, 400), (1, 500), (300, 2)])
def test_boundary_counts_are_those_of_measured_distances(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    centres = rng.random((12, 2)) * shape
    nearest = np.argmin([np.hypot(y - cy, x - cx) for cy, cx in centres], axis=0)
    truth = rng.integers(0, NUM_CLASSES, 12).astype(np.uint8)[nearest]
    prediction = np.roll(truth, (2, 5), (0, 1))
    prediction[rng.random(shape) < 0.005] = rng.integers(NUM_CLASSES)
    truth[height // 2 :, : width // 3] = 255
    counts = BoundaryCounts(NUM_CLASSES)
    counts.update(truth, prediction)
    np.testing.assert_array_equal(counts.counts, measured(truth, prediction))


def test_a_boundary_within_the_tolerance_is_found_and_one_beyond_is_not() -> None:
    truth = np.zeros((300, 400), np.uint8)  # 0.75 % of the diagonal is 3.75: 4 pixels
    truth[:, 200:] = 1
    for shift, score in ((4, 1.0), (6, 0.0)):
        counts = BoundaryCounts(2)
        counts.update(
            truth, np.roll(truth, shift, axis=1) * (np.arange(400) >= 10).astype(np.uint8)
        )
        assert counts.f_scores().tolist() == [score, score]
    counts = BoundaryCounts(2)
    counts.update(truth, truth)
    assert counts.mean_f() == 1.0
    assert counts.counts[0].tolist() == [300, 300], "the image's edge is no boundary"


def test_where_the_truth_is_ignored_there_is_no_boundary() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[:, 10:30] = 255
    prediction = np.zeros((40, 40), np.uint8)
    prediction[:, 20:30] = 1  # predicted where the truth is ignored
    counts = BoundaryCounts(2)
    counts.update(truth, prediction)
    assert not counts.counts.any()
    assert np.isnan(counts.mean_f())


def test_a_class_that_only_one_side_has_scores_zero() -> None:
    truth = np.zeros((40, 40), np.uint8)
    prediction = truth.copy()
    prediction[10:20, 10:20] = 1
    for pair in ((truth, prediction), (prediction, truth)):
        counts = BoundaryCounts(3)
        counts.update(*pair)
        np.testing.assert_array_equal(counts.f_scores(), [0, 0, np.nan])
        assert counts.mean_f() == 0


def test_boundary_counts_of_parts_add_up() -> None:
    truth, prediction = maps(1)
    whole, first, second = (BoundaryCounts(NUM_CLASSES) for _ in range(3))
    for counts, part in ((first, slice(1)), (second, slice(1, 3)), (whole, slice(3))):
        for one, other in zip(truth[part], prediction[part], strict=True):
            counts.update(one, other)
    first.counts += second.counts
    np.testing.assert_array_equal(first.counts, whole.counts)
