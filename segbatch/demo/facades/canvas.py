"""The canvas of a row of buildings: paint with a depth, and the light that falls on it.

Everything on a facade is painted as a colour at a depth. The depths alone determine all shadows, of
sills, reveals, cornices and balconies, and the darkness of corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

BACKGROUND, BRICK, WALL, WINDOW, DOOR, SKY = range(6)
NOTHING = 255  # no building: the background shows through

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Color = tuple[float, float, float]


class Box(NamedTuple):
    """A rectangle on the facade in metres: x to the right, y up from the ground."""

    left: float
    bottom: float
    right: float
    top: float

    def grown(self, x: float, y: float | None = None) -> Box:
        """Larger by ``x`` at the sides and ``y`` (default ``x``) below and above; < 0: smaller."""
        y = x if y is None else y
        return Box(self.left - x, self.bottom - y, self.right + x, self.top + y)

    def grid(self, columns: int, rows: int, gap: float) -> list[Box]:
        """Equal cells with ``gap`` metres around and between them, from bottom to top."""
        width = (self.right - self.left - gap) / columns
        height = (self.top - self.bottom - gap) / rows
        return [
            Box(x, y, x + width - gap, y + height - gap)
            for y in (self.bottom + gap + row * height for row in range(rows))
            for x in (self.left + gap + column * width for column in range(columns))
        ]


@dataclass(frozen=True)
class Light:
    """Weather and time of day. Colours of the sky: sRGB, 0 to 255; of light: linear, 1 = white."""

    sky_top: Color
    sky_low: Color
    clouds: float  # share of the sky, 0 to 1
    sun: Color
    ambient: Color
    slant: tuple[float, float]  # metres that a shadow moves right and down per metre of depth
    lamps: float  # share of windows with the light on

    @property
    def on_the_street(self) -> Floats:
        """The light on things in the street, linear RGB: ambient light and half of the sun."""
        return as_floats(self.ambient) + np.float32(0.5) * as_floats(self.sun)


def as_floats(color: Color) -> Floats:
    """A colour as a float32 array, unchanged."""
    return np.array(color, np.float32)


def linear(color: Color) -> Floats:
    """An sRGB colour, 0 to 255, as linear light, 0 to 1 (with gamma 2: close enough, and fast)."""
    return np.square(as_floats(color) / 255)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Floats:
    """Smooth noise, ``shape`` HW float32, about -1 to 1, with blobs of about ``cell`` pixels."""
    height, width = shape
    knots = (int(height / max(cell, 1)) + 3, int(width / max(cell, 1)) + 3)
    coarse = rng.uniform(-1, 1, knots).astype(np.float32)
    return resized(coarse, shape, Image.Resampling.BICUBIC)


def resized(
    values: Floats, shape: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> Floats:
    """``values`` HW at another ``shape``."""
    return np.asarray(Image.fromarray(values).resize((shape[1], shape[0]), how), np.float32)


class Canvas:
    """The plane of the facades between ``extent``'s edges, at ``scale`` pixels a metre.

    ``color`` HWC float32, linear 0 to 1; ``depth`` HW float32, metres out of the wall; ``matte`` HW
    float32, the share of the colour that depends on light, 0 for what glows; ``label``
    HW uint8, a class id or ``NOTHING``. Textures draw from ``grain`` only, so that a layout does
    not depend on the scale at which it is drawn.
    """

    def __init__(self, extent: Box, scale: float, light: Light, grain: np.random.Generator) -> None:
        self.extent, self.scale, self.light, self.grain = extent, scale, light, grain
        height = max(1, round((extent.top - extent.bottom) * scale))
        width = max(1, round((extent.right - extent.left) * scale))
        self.x = extent.left + (np.arange(width, dtype=np.float32) + 0.5) / scale
        self.y = extent.top - (np.arange(height, dtype=np.float32) + 0.5) / scale
        self.color = np.full((height, width, 3), linear(light.sky_low), np.float32)
        self.depth = np.zeros((height, width), np.float32)
        self.matte = np.ones((height, width), np.float32)
        self.label = np.full((height, width), NOTHING, np.uint8)
        self.mirror = self._mirror()

    def region(self, box: Box) -> tuple[slice, slice]:
        """Rows and columns of ``box``: at least one each on the canvas, none outside."""

        def span(low: float, high: float, size: int) -> slice:
            start = round(low * self.scale)
            stop = max(start + 1, round(high * self.scale))
            return slice(min(max(start, 0), size), min(max(stop, 0), size))

        height, width = self.label.shape
        rows = span(self.extent.top - box.top, self.extent.top - box.bottom, height)
        return rows, span(box.left - self.extent.left, box.right - self.extent.left, width)

    def paint(
        self,
        box: Box,
        color: Floats,
        label: int,
        *,
        depth: float = 0.0,
        matte: float = 1.0,
        where: Mask | bool = True,
    ) -> None:
        """Paint ``box``, or the part of it where ``where`` (HW bool of its region) is true."""
        at = self.region(box)
        np.copyto(self.color[at], color, where=where if where is True else where[..., None])  # type: ignore[index]
        np.copyto(self.depth[at], np.float32(depth), where=where)
        np.copyto(self.matte[at], np.float32(matte), where=where)
        np.copyto(self.label[at], np.uint8(label), where=where)

    def stain(self, box: Box, factor: Floats | float) -> None:
        """Multiply the colour in ``box`` by ``factor``, a number or HW float32."""
        at = self.region(box)
        self.color[at] *= factor[..., None] if isinstance(factor, np.ndarray) else factor

    def arch(self, box: Box, rise: float) -> Mask | bool:
        """The part of ``box`` below an arch whose middle is ``rise`` metres above its ends."""
        if rise <= 0:
            return True
        rows, columns = self.region(box)
        half = (box.right - box.left) / 2
        across = np.clip(np.abs(self.x[columns] - box.left - half) / half, 0, 1)
        curve = box.top - rise + rise * np.sqrt(1 - across**2)
        return np.asarray(self.y[rows][:, None] < curve)

    def slope(self, box: Box, half_top: float, steps: int = 0) -> Mask:
        """The part of ``box`` between sides that lean in to ``half_top`` metres from its middle."""
        rows, columns = self.region(box)
        rise = (self.y[rows] - box.bottom) / (box.top - box.bottom)
        if steps:
            rise = np.floor(rise * steps) / steps
        half = (box.right - box.left) / 2
        reach = half + (half_top - half) * rise
        return np.asarray(np.abs(self.x[columns] - box.left - half) < reach[:, None])

    def bricks(self, box: Box, color: Color, mortar: Color, length: float, course: float) -> Floats:
        """Brickwork for ``box``, HWC: courses in running bond; each brick has its own tone."""
        rows, columns = self.region(box)
        up, along = self.y[rows] / course, self.x[columns] / length
        row = np.floor(up)
        place = along[None] + (row % 2)[:, None] / 2
        brick = np.floor(place)
        if not brick.size:
            return np.zeros((*brick.shape, 3), np.float32)
        row_of, brick_of = ((of - of.min()).astype(np.intp) for of in (row, brick))
        bricks = (int(row_of.max()) + 1, int(brick_of.max()) + 1)
        firing = 1 + 0.16 * self.grain.standard_normal((*bricks, 1), np.float32)
        hue = 1 + 0.05 * self.grain.standard_normal((*bricks, 3), np.float32)
        fired = linear(color) * np.clip(firing, 0.5, 1.6) * hue
        texture: Floats = fired[row_of[:, None], brick_of]
        pixel, joint = 1 / self.scale, 0.014
        bed = _covered((up - row) * course, course, joint, pixel)[:, None]
        seam = np.maximum(bed, _covered((place - brick) * length, length, joint, pixel))
        texture += seam[..., None] * (linear(mortar) - texture)
        return texture

    def plaster(self, box: Box, color: Color, roughness: float) -> Floats:
        """Plaster for ``box``, HWC: fine grain over uneven patches."""
        rows, columns = self.region(box)
        shape = (max(0, rows.stop - rows.start), max(0, columns.stop - columns.start))
        if 0 in shape:
            return np.zeros((*shape, 3), np.float32)
        tone: Floats = roughness * self.grain.standard_normal(shape, np.float32) + 1
        tone += 0.06 * noise(self.grain, shape, 0.9 * self.scale)
        tone += 0.04 * noise(self.grain, shape, 0.2 * self.scale)
        return tone[..., None] * linear(color)

    def glass(self, box: Box, behind: Floats, strength: float, shift: float) -> Floats:
        """Panes in ``box``, HWC: reflections of the sky and the houses opposite over ``behind``."""
        rows, columns = self.region(box)
        # Panes are never quite parallel: each reflection is shifted up or down a little.
        shifted = np.arange(rows.start, rows.stop) - int(shift * self.scale)
        mirror = self.mirror[np.clip(shifted, 0, len(self.mirror) - 1), columns]
        sky = (linear(self.light.sky_low) + linear(self.light.sky_top)) / 2
        return np.asarray(behind + strength * mirror[..., None] * sky, np.float32)

    def weather(self) -> None:
        """Add the marks of weather: patches of soot and damp, and splashes near the ground."""
        shape = self.label.shape
        soot = noise(self.grain, shape, 3 * self.scale) + 0.6 * noise(self.grain, shape, self.scale)
        splash = 0.25 * np.exp(-np.maximum(self.y, 0) / 0.45)[:, None]
        self.color *= np.clip(1 - 0.07 * soot - splash, 0.4, 1.2)[..., None]

    def streaks(self, box: Box, strength: float) -> None:
        """Add dirt that rain washed down from the top of ``box``, in runs of unequal length."""
        rows, columns = self.region(box)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height < 2 or width < 2:
            return
        run = self.grain.uniform(0.1, 1, width).astype(np.float32) ** 2
        fall = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        self.stain(box, 1 - strength * np.clip(1 - fall / run, 0, 1))

    def stone(self, box: Box, color: Color, depth: float) -> None:
        """Paint a course of stone, and the dirt below it if it stands out."""
        self.paint(box, self.plaster(box, color, 0.04), WALL, depth=depth)
        if depth > 0.05:
            self.streaks(Box(box.left, box.bottom - 1.0, box.right, box.bottom), 0.22)

    def render(self, sunlit: Floats) -> Image.Image:
        """The canvas in its light, RGBA, transparent where nothing is painted.

        ``sunlit`` HW float32, 0 to 1, is the sunlight before the canvas shades itself.
        """
        direct = sunlit * (1 - np.clip((self._horizon() - self.depth) / 0.03 - 0.3, 0, 1))
        small = (max(1, self.label.shape[0] // 8), max(1, self.label.shape[1] // 8))
        around = resized(resized(self.depth, small, Image.Resampling.BOX), self.label.shape)
        # Points deeper than their surroundings get less light from the sky.
        open_sky = np.clip(1 - 1.6 * (around - self.depth), 0.35, 1.05)
        light = np.empty_like(self.color)
        for channel in range(3):
            light[..., channel] = (
                self.light.ambient[channel] * open_sky + self.light.sun[channel] * direct
            )
        light -= 1
        light *= self.matte[..., None]
        light += 1
        light *= self.color
        picture = np.empty((*self.label.shape, 4), np.uint8)
        picture[..., :3] = np.sqrt(np.clip(light, 0, 1)) * 255
        picture[..., 3] = (self.label != NOTHING) * 255
        return Image.fromarray(picture)

    def _horizon(self) -> Floats:
        """The depth below which a point lies in shadow, HW float32, metres.

        A point ``d`` metres out of the wall shades up to ``d`` metres of depth along the sun's
        slant. Each round looks twice as far as the previous one.
        """
        right, down = self.light.slant
        length = max(abs(right), abs(down), 1e-3)
        step = 1 / (length * self.scale)  # metres of depth for which a shadow moves by a pixel
        horizon = self.depth.copy()
        reach = 1
        while reach * step < max(float(self.depth.max()), 0.2):
            by_x, by_y = round(reach * right / length), round(reach * down / length)
            horizon = np.maximum(horizon, _shifted(horizon, by_x, by_y) - np.float32(reach * step))
            reach *= 2
        return horizon

    def _mirror(self) -> Floats:
        """The reflections in panes, HW float32, 0 to 1: sky above, the houses opposite below."""
        shape = self.label.shape
        clouds = noise(self.grain, shape, 1.5 * self.scale)
        roofs = 5 + 3 * noise(self.grain, (1, shape[1]), 4 * self.scale)
        above = np.clip((self.y[:, None] - roofs) * 1.5, 0, 1)
        return np.asarray(0.12 + above * (0.6 + 0.3 * clouds), np.float32)


def _covered(position: Floats, period: float, width: float, pixel: float) -> Floats:
    """The share of a pixel at ``position`` that lines cover, one a ``period``, at its start."""
    first, last = position - pixel / 2, position + pixel / 2
    here = np.minimum(last, width) - np.maximum(first, 0)
    following = np.minimum(last - period, width)
    share: Floats = (np.maximum(here, 0) + np.maximum(following, 0)) / np.float32(pixel)
    return share


def _shifted(values: Floats, right: int, down: int) -> Floats:
    """``values`` HW shifted by whole pixels; the edges fill with a depth far behind the wall."""
    height, width = values.shape
    moved = np.full_like(values, -9)
    target = (
        slice(max(down, 0), height + min(down, 0)),
        slice(max(right, 0), width + min(right, 0)),
    )
    source = (
        slice(max(-down, 0), height - max(down, 0)),
        slice(max(-right, 0), width - max(right, 0)),
    )
    moved[target] = values[source]
    return moved
