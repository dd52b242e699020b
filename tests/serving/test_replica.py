"""What a replica makes of errors of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from segbatch.errors import DoesNotFit, JobFailed
from segbatch.images.decode import Decoded
from segbatch.masks.classes import Classes
from segbatch.model.checkpoints import Known, import_model
from segbatch.model.config import ModelConfig
from segbatch.model.networks import Network
from segbatch.model.predict import Model, Prediction, load_model
from segbatch.serving.replica import Predictor
from tests.model.test_graphs import graph_file


class SmallMemory(Network):
    """Gives brightness as logits, for at most 64×64 pixels."""

    align_corners = False

    def coarse(self, images: Tensor) -> Tensor:
        if images.numel() > 3 * 64 * 64:
            raise torch.OutOfMemoryError("device out of memory")
        return torch.cat([images.mean(1, keepdim=True), -images.mean(1, keepdim=True)], 1)


def image(side: int) -> Decoded:
    return Decoded(np.full((side, side, 3), 99, np.uint8), side, side)


def predictor_of(model: Model) -> Predictor:
    predictor = Predictor.__new__(Predictor)  # without a replica of Ray Serve around it
    predictor.model = model
    return predictor


def test_an_image_that_does_not_fit_fails_alone() -> None:
    config = ModelConfig("deeplabv3", "resnet50", 8, Classes(["bright", "dark"]))
    predictor = predictor_of(Model(SmallMemory(), config, "cpu"))
    results = predictor._predict([image(64), image(100), image(50)])
    assert [type(result) for result in results] == [Prediction, DoesNotFit, Prediction]
    assert "one image of 128×128" in str(results[1])


def test_a_model_that_fails_is_no_fault_of_an_image(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "g.onnx", kinds=("labels",), stride=1)
    classes = Classes(["a", "b", "c", "d", "e"])
    import_model(str(path), str(tmp_path / "m"), Known(classes=classes, input_range=(0.0, 1.0)))
    model = load_model(str(tmp_path / "m"), "cpu", precision="fp32")
    model.engine._num_classes = 1  # type: ignore[attr-defined]  # as a model of fewer classes
    with pytest.raises(JobFailed, match="import it again with all its --classes") as error:
        predictor_of(model)._predict([image(64), image(50)])
    assert not isinstance(error.value, DoesNotFit)
