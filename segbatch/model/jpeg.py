"""JPEG decoding on the device of the model: on a GPU by nvJPEG, so that CPUs have less to do.

The decoder is torchvision's. Its pixels differ from those of libjpeg-turbo by rounding, so a run
decodes in one way from its beginning to its end.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from segbatch.errors import DoesNotFit, InputError
from segbatch.model.patches import Pixels
from segbatch.storage import one_line


def decode_jpegs(files: Sequence[bytes], device: torch.device) -> list[Pixels | None]:
    """RGB of each file, ``(height, width, 3)`` uint8 on the host; ``None`` where ``device`` cannot
    decode a file.

    Raises :class:`~segbatch.errors.DoesNotFit` for an image too large for the device.
    """
    try:
        return list(_decoded(files, device)) if files else []
    except RuntimeError as error:  # of one of the files, and it does not say which
        if len(files) == 1:
            if isinstance(error, torch.OutOfMemoryError):
                raise DoesNotFit(
                    f"{device} has not enough memory to decode a JPEG: set predict.decode: cpu"
                ) from None
            return [None]
    half = len(files) // 2
    return decode_jpegs(files[:half], device) + decode_jpegs(files[half:], device)


def require_jpeg_decoder(device: torch.device) -> None:
    """Raise ``InputError`` if torchvision cannot decode JPEGs on ``device``."""
    sample = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sample, "JPEG")
    try:
        _decoded([sample.getvalue()], device)
    except RuntimeError as error:
        raise InputError(
            f"predict.decode: device: torchvision cannot decode JPEGs on {device} here"
            f" ({one_line(error)}): set predict.decode: cpu"
        ) from error


def _decoded(files: Sequence[bytes], device: torch.device) -> list[Pixels]:
    encoded = [torch.from_numpy(np.frombuffer(file, np.uint8).copy()) for file in files]
    decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return [pixels.permute(1, 2, 0).contiguous().cpu().numpy() for pixels in decoded]
