"""A state_dict of torchvision's DeepLabV3."""

from __future__ import annotations

from segbatch.model.checkpoints.checkpoint import (
    Candidate,
    Checkpoint,
    Known,
    inner_state,
    resnet_of,
)

SIGNATURE = "classifier.4.weight"


def recognise(checkpoint: Checkpoint, known: Known) -> Candidate | None:
    """A DeepLabV3 of torchvision; ``None`` for anything that has another kind of keys."""
    inner = inner_state(checkpoint.state, SIGNATURE, needs="backbone.")
    if inner is None or "classifier.0.convs.0.0.weight" not in inner.state:
        return None
    state = inner.state
    is_mobile = "backbone.0.0.weight" in state
    found = "mobilenet_v3_large" if is_mobile else resnet_of(state, "backbone.layer3.")
    backbone = known.backbone or found
    if backbone is None:
        return None
    return Candidate(
        what=f"DeepLabV3 of torchvision on {backbone}",
        library="torchvision",
        arch="deeplabv3",
        backbone=backbone,
        state=state,
        left_out=inner.left_out,
        output_stride=known.output_stride,
    )
