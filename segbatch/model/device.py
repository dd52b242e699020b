"""Device: what a network runs on, by the name that its makers gave it."""

from __future__ import annotations

import torch


def device_here(asked: str) -> str:
    """``cuda`` if this process has a GPU and ``asked`` (auto, cpu or cuda) allows it, else
    ``cpu``.
    """
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """``cpu``, or the name of the GPU: ``NVIDIA A10G``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
