"""JPEGs decoded where the model is: on a GPU by nvJPEG, so that CPUs have less to do.

The decoder is torchvision's. Its pixels differ from those of libjpeg-turbo by rounding, which is
why a run is decoded in one way from its beginning to its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from segbatch.model.patches import Pixels


def decode_jpegs(files: Sequence[bytes], device: torch.device) -> list[Pixels | None]:
    """RGB of each file, ``(height, width, 3)`` uint8 on the host; ``None`` for what the decoder on
    ``device`` does not take.
    """
    encoded = [torch.from_numpy(np.frombuffer(file, np.uint8).copy()) for file in files]
    try:
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    except RuntimeError:  # of one of them, and it does not say which; or there is no memory
        if len(files) == 1:
            return [None]
        return [pixels for file in files for pixels in decode_jpegs([file], device)]
    return [pixels.permute(1, 2, 0).contiguous().cpu().numpy() for pixels in decoded]
