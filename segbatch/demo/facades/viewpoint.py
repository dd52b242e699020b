"""The viewpoint of a scene: where the camera stands and how it projects the street.

World coordinates are metres: x to the right along the facades, y up from the ground, z from the
facades towards the street. Image coordinates are pixels from the top left corner; the centre of a
pixel is at one half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from segbatch.demo.facades.canvas import Box, Canvas

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Viewpoint:
    """A pinhole camera. ``focal`` is in pixels; ``axes`` has the rows right, up, forward (3×3)."""

    width: int
    height: int
    focal: float
    position: Doubles
    axes: Doubles
    middle: Doubles  # where the forward axis meets the image; off centre with a shifted lens

    @classmethod
    def aimed(
        cls,
        rng: np.random.Generator,
        size: tuple[int, int],
        target: tuple[float, float],
        span: float,
    ) -> Viewpoint:
        """A view from the street with ``target`` in its middle, ``span`` metres wide."""
        width, height = size
        focal = rng.uniform(0.85, 1.4) * max(width, height)
        distance = focal * span / width
        turn, eye = np.clip(rng.normal(0, 0.33), -0.65, 0.65), rng.uniform(1.5, 2.8)
        point = np.array([*target, 0.0])
        position = point + distance * np.array([np.sin(turn), 0, np.cos(turn)])
        position[1] = eye
        # Some photographers tilt the camera up, others hold it level and crop: the shift does both.
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
        view = cls(width, height, focal, position, axes, centre)
        return replace(view, middle=2 * centre - view.project(point))

    def scaled(self, factor: int) -> Viewpoint:
        """This view with ``factor`` times as many pixels a side."""
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
        """Image coordinates of a point in the world."""
        u, v, depth = self.projection @ np.append(np.asarray(point, np.float64), 1)
        return np.array([u / depth, v / depth])

    def facade_homography(self) -> Doubles:
        """From the plane of the facades (x, y) to the image."""
        return self.projection[:, [0, 1, 3]]

    def ground_homography(self) -> Doubles:
        """From the ground (x, z) to the image."""
        return self.projection[:, [0, 2, 3]]

    def visible(self) -> Box:
        """The part of the facades' plane that the image shows."""
        w, h = self.width, self.height
        corners = np.linalg.inv(self.facade_homography()) @ np.array(
            [[0, w, w, 0], [0, 0, h, h], [1] * 4]
        )
        x, y = np.clip(corners[:2] / corners[2], -60, 60)
        return Box(x.min(), y.min(), x.max(), y.max())

    def scale_at(self, x: float, z: float) -> float:
        """Pixels per metre for an object that stands on the ground at ``(x, z)``."""
        return float(self.focal / (self.axes[2] @ (np.array([x, 0.0, z]) - self.position)))

    def warp(
        self, picture: Image.Image, canvas: Canvas, how: Image.Resampling, outside: int = 0
    ) -> Image.Image:
        """``picture``, which covers ``canvas``, projected; ``outside`` fills the rest."""
        scale, extent = canvas.scale, canvas.extent
        to_metres = np.array([[1 / scale, 0, extent.left], [0, -1 / scale, extent.top], [0, 0, 1]])
        inverse = np.linalg.inv(self.facade_homography() @ to_metres)
        coefficients = (inverse / inverse[2, 2]).ravel()[:8].tolist()
        size, perspective = (self.width, self.height), Image.Transform.PERSPECTIVE
        return picture.transform(size, perspective, coefficients, how, fillcolor=outside)
