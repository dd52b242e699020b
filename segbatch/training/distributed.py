"""Collective operations over all workers, where ``torch.distributed`` is set up.

Alone, a worker is the only one: nothing is waited for, and a sum is its own value.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until all workers have come here."""
    if dist.is_initialized():
        dist.barrier()


def all_sum(values: Tensor) -> Tensor:
    """The sum of ``values`` over all workers, on each of them; ``values`` is not changed."""
    values = values.clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_sum_counts(counts: npt.NDArray[np.int64], device: torch.device) -> npt.NDArray[np.int64]:
    """:func:`all_sum` of a NumPy array; ``device`` is where the workers exchange tensors."""
    return all_sum(torch.from_numpy(counts).to(device)).cpu().numpy()
