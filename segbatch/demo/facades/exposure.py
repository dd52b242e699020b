"""The exposure of a rendered scene: lens, sensor and file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def expose(
    image: Image.Image, rng: np.random.Generator, grain: np.random.Generator, dim: float
) -> Image.Image:
    """``image`` as a lens, a sensor and a JPEG file change it; the geometry stays, to the pixel.

    Adds vignette, white balance, exposure, blur, noise and JPEG artefacts; ``dim``, 0 to 1, adds
    more noise.
    """
    balance = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0.02, 0.1)).astype(np.float32)
    contrast, vignette = np.exp(rng.normal(0, 0.1)), rng.uniform(0, 0.25)
    blur, sigma = rng.uniform(0, 0.8), rng.uniform(0.8, 5) + 6 * dim
    quality = int(rng.integers(55, 96))

    image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32) / np.float32(255)
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in pixels.shape[:2])
    pixels *= (1 - vignette * (np.square(y)[:, None] + np.square(x)) / 2)[..., None] * balance
    np.clip(pixels, 0, 1, out=pixels)
    pixels **= np.float32(contrast)
    # Half of the noise is the same in the three colours, as after demosaicing.
    spread = np.float32(sigma / 255 * 0.7)
    pixels += spread * grain.standard_normal((*pixels.shape[:2], 1), np.float32)
    spread = np.float32(sigma / 255 * 0.7)
    pixels += spread * grain.standard_normal(pixels.shape, np.float32)
    file = io.BytesIO()
    bytes_hwc = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(bytes_hwc).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
