"""Random weights that follow from their keys alone, so that two programs give a network the same.

Needs torch, and nothing of segbatch.
"""

from __future__ import annotations

import zlib

import torch
from torch import nn


def fill(module: nn.Module) -> None:
    """Fill the weights of ``module``: normal for layers, about 1 for norms, small for biases."""
    state = {}
    for key, value in module.state_dict().items():
        random = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if not value.is_floating_point():
            state[key] = value
        elif key.endswith("running_var"):
            state[key] = torch.rand(value.shape, generator=random) + 0.5
        elif value.ndim > 1:
            scale = (2 / value[0].numel()) ** 0.5
            state[key] = torch.randn(value.shape, generator=random) * scale
        elif key.endswith("weight"):
            state[key] = torch.rand(value.shape, generator=random) * 0.5 + 0.75
        else:
            state[key] = torch.randn(value.shape, generator=random) * 0.1
    module.load_state_dict(state)


def picture(height: int, width: int) -> torch.Tensor:
    """A normalised image, ``(1, 3, height, width)``, always the same."""
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
