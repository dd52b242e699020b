"""Checkpoints of VainF/DeepLabV3Plus-Pytorch. Their classes and output stride are not in them."""

from __future__ import annotations

from segbatch.errors import ModelError
from segbatch.model.checkpoints.checkpoint import (
    Candidate,
    Checkpoint,
    Known,
    inner_state,
    resnet_of,
)

# The last layer of DeepLabV3+, and of DeepLabV3.
SIGNATURES = {"deeplabv3plus": "classifier.classifier.3.weight",
              "deeplabv3": "classifier.classifier.4.weight"}  # fmt: skip


def recognise(checkpoint: Checkpoint, known: Known) -> Candidate | None:
    """A DeepLab of VainF's; ``None`` for anything that has another kind of keys.

    Raises :class:`~segbatch.errors.ModelError` for one on a backbone that segbatch does not have.
    """
    for arch, signature in SIGNATURES.items():
        inner = inner_state(checkpoint.state, signature, needs="backbone.")
        if inner is None:
            continue
        state = inner.state
        is_mobile = "backbone.high_level_features.4.conv.0.0.weight" in state
        backbone = "mobilenet_v2" if is_mobile else resnet_of(state, "backbone.layer3.")
        if backbone is None:
            raise ModelError(
                f"{checkpoint.uri}: {arch} of VainF on a backbone that segbatch does not have (it"
                " has resnet50, resnet101, mobilenet): export it with its export_onnx.py, and"
                " import that"
            )
        stride = known.output_stride or 16
        return Candidate(
            what=f"{arch} of VainF/DeepLabV3Plus-Pytorch on {backbone}",
            library="vainf",
            arch=arch,
            backbone=backbone,
            state=state,
            left_out=inner.left_out,
            output_stride=stride,
            notes=()
            if known.output_stride
            else (
                "output stride 16 is assumed, as in its published weights: --output-stride 8 for a"
                " network that was trained so",
            ),
        )
    return None
