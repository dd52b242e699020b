"""The camera: where it stands, what it projects, and what its lens and sensor add.

World coordinates are metres: x to the right along the facades, y up from the ground, z out of the
facades towards the street. Image coordinates are pixels from the top left corner, a pixel's centre
at one half.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from segbatch.demo.facades.canvas import Box, Canvas

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. ``focal`` in pixels, ``axes`` the rows right, up, forward (3×3)."""

    width: int
    height: int
    focal: float
    position: Doubles
    axes: Doubles
    middle: Doubles  # where forward meets the image; off centre where the lens is shifted

    @classmethod
    def aimed(
        cls,
        rng: np.random.Generator,
        size: tuple[int, int],
        target: tuple[float, float],
        span: float,
    ) -> Camera:
        """A camera on the street that has ``target`` in its middle and ``span`` metres in width."""
        width, height = size
        focal = rng.uniform(0.85, 1.4) * max(width, height)
        distance = focal * span / width
        turn, eye = np.clip(rng.normal(0, 0.33), -0.65, 0.65), rng.uniform(1.5, 2.8)
        point = np.array([*target, 0.0])
        position = point + distance * np.array([np.sin(turn), 0, np.cos(turn)])
        position[1] = eye
        # Some photographers tilt the camera up, some hold it level and crop: so does the shift.
        tilt = rng.uniform(0.2, 1.0) * np.arctan2(target[1] - eye, distance)
        roll = rng.normal(0, 0.012)
        forward = np.array(
            [-np.sin(turn) * np.cos(tilt), np.sin(tilt), -np.cos(turn) * np.cos(tilt)]
        )
        level = np.cross(forward, [0.0, 1.0, 0.0])
        level /= np.linalg.norm(level)
        upright = np.cross(level, forward)
        right = level * np.cos(roll) + upright * np.sin(roll)
        axes = np.stack([right, np.cross(right, forward), forward])
        centre = np.array([width / 2, height / 2])
        camera = cls(width, height, focal, position, axes, centre)
        return replace(camera, middle=2 * centre - camera.project(point))

    def scaled(self, factor: int) -> Camera:
        """The same view with ``factor`` times as many pixels a side."""
        return replace(
            self,
            width=self.width * factor,
            height=self.height * factor,
            focal=self.focal * factor,
            middle=self.middle * factor,
        )

    @property
    def projection(self) -> Doubles:
        """World to image, homogeneous, 3×4."""
        x, y = self.middle
        lens = np.array([[self.focal, 0, x], [0, -self.focal, y], [0, 0, 1]])
        pose = np.concatenate([self.axes, -self.axes @ self.position[:, None]], axis=1)
        return np.asarray(lens @ pose)

    def project(self, point: npt.ArrayLike) -> Doubles:
        """Image coordinates of a point of the world."""
        u, v, depth = self.projection @ np.append(np.asarray(point, np.float64), 1)
        return np.array([u / depth, v / depth])

    def facade(self) -> Doubles:
        """Homography from the facades (x, y) to the image."""
        return self.projection[:, [0, 1, 3]]

    def ground(self) -> Doubles:
        """Homography from the ground (x, z) to the image."""
        return self.projection[:, [0, 2, 3]]

    def sees(self) -> Box:
        """The part of the facades' plane that is in the image."""
        w, h = self.width, self.height
        corners = np.linalg.inv(self.facade()) @ np.array([[0, w, w, 0], [0, 0, h, h], [1] * 4])
        x, y = np.clip(corners[:2] / corners[2], -60, 60)
        return Box(x.min(), y.min(), x.max(), y.max())

    def scale_at(self, x: float, z: float) -> float:
        """Pixels a metre for what stands upright on the ground at ``(x, z)``."""
        return float(self.focal / (self.axes[2] @ (np.array([x, 0.0, z]) - self.position)))

    def warp(
        self, picture: Image.Image, canvas: Canvas, how: Image.Resampling, outside: int = 0
    ) -> Image.Image:
        """``picture``, painted on ``canvas``, as the camera sees it, with ``outside`` around it."""
        scale, extent = canvas.scale, canvas.extent
        to_metres = np.array([[1 / scale, 0, extent.left], [0, -1 / scale, extent.top], [0, 0, 1]])
        inverse = np.linalg.inv(self.facade() @ to_metres)
        coefficients = (inverse / inverse[2, 2]).ravel()[:8].tolist()
        size, perspective = (self.width, self.height), Image.Transform.PERSPECTIVE
        return picture.transform(size, perspective, coefficients, how, fillcolor=outside)


def developed(
    image: Image.Image, rng: np.random.Generator, grain: np.random.Generator, dim: float
) -> Image.Image:
    """What lens, sensor and file make of ``image``: the geometry stays, to the pixel.

    Vignette, white balance, exposure, blur, noise (more the less light there is: ``dim`` 0 to 1)
    and JPEG.
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
    # Half of the noise is common to the three colours, as demosaicing leaves it.
    spread = np.float32(sigma / 255 * 0.7)
    pixels += spread * grain.standard_normal((*pixels.shape[:2], 1), np.float32)
    spread = np.float32(sigma / 255 * 0.7)
    pixels += spread * grain.standard_normal(pixels.shape, np.float32)
    file = io.BytesIO()
    bytes_hwc = (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(bytes_hwc).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
